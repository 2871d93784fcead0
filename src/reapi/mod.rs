//! The wire: generated types, digests, resource names and statuses. Nothing in here waits, keeps
//! state or touches a disk.

pub mod any;
pub mod codec;
pub mod digest;
mod lists;
pub mod proto;
pub mod resource;
pub mod status;
pub mod time;
pub(crate) mod wire;

pub use digest::{Digest, DigestFunction};
