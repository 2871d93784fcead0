//! Host users that actions run as.

/// The user that owns what an action sees and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Host user id.
    pub uid: u32,
    /// Host group id.
    pub gid: u32,
}
