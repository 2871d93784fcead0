//! Whether a file system still is there. Who serves it and whoever may end a connection of the kernel's can end it under its users, and
//! what those are told by errors then is no doing of theirs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// One file system's.
#[derive(Clone, Default)]
pub(super) struct Life {
    over: CancellationToken,
    /// Another descriptor of the device that it is served by.
    device: Arc<Mutex<Option<OwnedFd>>>,
}

impl Life {
    /// Lets [`Life::is_over`] ask the kernel. The file system does not die with its server's own descriptor from now on, but at
    /// [`Life::end`].
    pub(super) fn watch(&self, device: OwnedFd) {
        *self.device.lock() = Some(device);
    }

    /// Nobody answers any more.
    pub(super) fn end(&self) {
        self.over.cancel();
        drop(self.device.lock().take());
    }

    /// Whether its users get errors by now. No request is made for this, which would be answered only when all before it are.
    pub(super) fn is_over(&self) -> bool {
        if self.over.is_cancelled() {
            return true;
        }
        let device = self.device.lock();
        let Some(device) = &*device else {
            return false;
        };
        let mut asked = [PollFd::new(device.as_fd(), PollFlags::empty())];
        let answer = poll(&mut asked, PollTimeout::ZERO);
        let said = asked[0].revents().unwrap_or(PollFlags::empty());
        answer.is_ok() && said.contains(PollFlags::POLLERR)
    }

    /// Waits for its server to end.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// Ends it when dropped: also when its server panics.
pub(super) struct Ends(pub(super) Life);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}
