//! What an operator may set.

pub mod endpoint;
pub mod owner;

pub use endpoint::Endpoint;
pub use owner::Owner;
