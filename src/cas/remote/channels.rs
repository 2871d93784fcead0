//! Connections to one remote: one for small calls, so that they never queue behind bulk data, and a
//! few for bulk data, made when they are first needed at the same time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::transport::Channel;

use crate::config::Endpoint;

const BULK_CONNECTIONS: usize = 3;

/// What a call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A few kilobytes.
    Light,
    /// Up to megabytes, or a stream.
    Bulk,
}

/// The connections. Each connects when first used and again after it was lost.
pub(super) struct Channels {
    endpoint: Endpoint,
    light: Slot,
    bulk: [Slot; BULK_CONNECTIONS],
}

#[derive(Default)]
struct Slot {
    channel: OnceLock<Channel>,
    calls: AtomicUsize,
}

/// A channel on loan; counts as busy until dropped.
pub(super) struct Loan<'a> {
    slot: &'a Slot,
    /// The channel itself.
    pub(super) channel: Channel,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.slot.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channels {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Channels {
            endpoint,
            light: Slot::default(),
            bulk: Default::default(),
        }
    }

    /// The least busy connection for such a load; the earliest among equals, so that sequential
    /// calls share one.
    pub(super) fn borrow(&self, load: Load) -> Loan<'_> {
        let slot = match load {
            Load::Light => &self.light,
            Load::Bulk => self
                .bulk
                .iter()
                .min_by_key(|slot| slot.calls.load(Ordering::Relaxed))
                .unwrap_or(&self.light),
        };
        slot.calls.fetch_add(1, Ordering::Relaxed);
        let channel = slot.channel.get_or_init(|| self.endpoint.channel()).clone();
        Loan { slot, channel }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bulk_calls_spread_only_when_they_overlap() {
        let channels = Channels::new(Endpoint::Http("127.0.0.1:1".into()));
        drop(channels.borrow(Load::Bulk));
        drop(channels.borrow(Load::Bulk));
        let made = |c: &Channels| c.bulk.iter().filter(|s| s.channel.get().is_some()).count();
        assert_eq!(made(&channels), 1);
        let loans: Vec<_> = (0..5).map(|_| channels.borrow(Load::Bulk)).collect();
        assert_eq!(made(&channels), BULK_CONNECTIONS);
        assert!(channels.light.channel.get().is_none());
        drop(loans);
        assert!(
            channels
                .bulk
                .iter()
                .all(|s| s.calls.load(Ordering::Relaxed) == 0)
        );
    }
}
