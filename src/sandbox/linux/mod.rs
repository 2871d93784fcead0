//! The full sandbox of Linux.

pub mod profile;
