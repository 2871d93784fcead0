//! What only Linux has, and what the full level is made of.

pub mod cgroup;
pub mod disk;
