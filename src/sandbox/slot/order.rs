//! What the daemon says to a launcher while a command runs.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::channel;
use super::wire::{Malformed, REQUEST_LEN, Request};

/// What the daemon wants of a running command.
pub(in crate::sandbox) enum Order {
    Nothing,
    Terminate,
    Kill,
    HungUp,
}

/// Why it is not known what the daemon wants.
pub(in crate::sandbox) enum Misheard {
    Receive(Errno),
    /// It asks for something else before the command has ended.
    Another,
    Malformed(Malformed),
}

/// What the daemon has said during run `id`; does not wait.
pub(in crate::sandbox) fn order(socket: &OwnedFd, id: u64) -> Result<Order, Misheard> {
    let mut buffer = [0; REQUEST_LEN];
    let len = match channel::receive(socket, &mut buffer, false) {
        Ok(got) => got.len,
        Err(Errno::WOULDBLOCK) => return Ok(Order::Nothing),
        Err(Errno::CONNRESET) => 0,
        Err(errno) => return Err(Misheard::Receive(errno)),
    };
    if len == 0 {
        return Ok(Order::HungUp);
    }
    match Request::decode(&buffer[..len]) {
        Ok((Request::Terminate { id: of }, _)) if of == id => Ok(Order::Terminate),
        Ok((Request::Kill { id: of }, _)) if of == id => Ok(Order::Kill),
        Ok((Request::Terminate { .. } | Request::Kill { .. }, _)) => Ok(Order::Nothing),
        Ok(_) => Err(Misheard::Another),
        Err(malformed) => Err(Misheard::Malformed(malformed)),
    }
}
