//! Connections to one remote: one for small calls, so that they never queue behind bulk data, and two
//! for bulk data in each direction, made when they are first needed at the same time.
//!
//! The directions are apart because calls of one connection share its HTTP/2 window: an upload that the
//! server does not take in would hold up the requests of all downloads beside it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::endpoint::Dialer;
use crate::config::{Credentials, Endpoint, EndpointError, Line};

const BULK_CONNECTIONS: usize = 2;

/// What a call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A few kilobytes.
    Light,
    /// Megabytes from the remote, or a stream.
    Down,
    /// Megabytes to the remote, or a stream.
    Up,
}

/// The connections. Each connects when first used and again after it was lost.
pub(super) struct Channels {
    dialer: Dialer,
    light: Slot,
    down: [Slot; BULK_CONNECTIONS],
    up: [Slot; BULK_CONNECTIONS],
}

#[derive(Default)]
struct Slot {
    line: OnceLock<Line>,
    calls: AtomicUsize,
}

/// A line on loan; counts as busy until dropped.
pub(super) struct Loan<'a> {
    slot: &'a Slot,
    /// The line itself.
    pub(super) line: Line,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.slot.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channels {
    pub(super) fn new(
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<Self, EndpointError> {
        Ok(Channels {
            dialer: endpoint.dialer(credentials)?,
            light: Slot::default(),
            down: Default::default(),
            up: Default::default(),
        })
    }

    /// The least busy connection for such a load; the earliest among equals, so that sequential
    /// calls share one.
    pub(super) fn borrow(&self, load: Load) -> Loan<'_> {
        let slots = match load {
            Load::Light => std::slice::from_ref(&self.light),
            Load::Down => &self.down,
            Load::Up => &self.up,
        };
        let slot = slots
            .iter()
            .min_by_key(|slot| slot.calls.load(Ordering::Relaxed))
            .unwrap_or(&self.light);
        slot.calls.fetch_add(1, Ordering::Relaxed);
        let line = slot.line.get_or_init(|| self.dialer.line()).clone();
        Loan { slot, line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bulk_calls_spread_only_when_they_overlap() {
        let channels =
            Channels::new(&Endpoint::Http("127.0.0.1:1".into()), &Default::default()).unwrap();
        drop(channels.borrow(Load::Down));
        drop(channels.borrow(Load::Down));
        let made = |c: &Channels| c.down.iter().filter(|s| s.line.get().is_some()).count();
        assert_eq!(made(&channels), 1);
        let loans: Vec<_> = (0..5).map(|_| channels.borrow(Load::Down)).collect();
        assert_eq!(made(&channels), BULK_CONNECTIONS);
        assert!(channels.light.line.get().is_none());
        assert!(channels.up.iter().all(|s| s.line.get().is_none()));
        drop(loans);
        assert!(
            channels
                .down
                .iter()
                .all(|s| s.calls.load(Ordering::Relaxed) == 0)
        );
    }
}
