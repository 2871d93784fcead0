//! What the daemon says to a launcher while a command runs.

use std::os::fd::OwnedFd;

use super::launcher::{LauncherError, rustix_call};
use crate::sandbox::slot::channel;
use crate::sandbox::slot::wire::{REQUEST_LEN, Request};

/// What the daemon wants of a running command.
pub(super) enum Order {
    Nothing,
    Terminate,
    Kill,
    HungUp,
}

/// What the daemon has said during run `id`; does not wait.
pub(super) fn order(socket: &OwnedFd, id: u64) -> Result<Order, LauncherError> {
    let mut buffer = [0; REQUEST_LEN];
    let len = match channel::receive(socket, &mut buffer, false) {
        Ok(got) => got.len,
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Order::Nothing),
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(errno) => return Err(rustix_call("receive a request")(errno)),
    };
    if len == 0 {
        return Ok(Order::HungUp);
    }
    match Request::decode(&buffer[..len]) {
        Ok((Request::Terminate { id: of }, _)) if of == id => Ok(Order::Terminate),
        Ok((Request::Kill { id: of }, _)) if of == id => Ok(Order::Kill),
        Ok((Request::Terminate { .. } | Request::Kill { .. }, _)) => Ok(Order::Nothing),
        Ok(_) => Err(LauncherError::Protocol("a second run at a time")),
        Err(malformed) => Err(LauncherError::Protocol(malformed.0)),
    }
}
