//! What Linux has to isolate a command with.

pub mod probe;
