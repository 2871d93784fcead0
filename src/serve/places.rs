//! Places for whole messages in memory. All connections have so many together, and one has half of them at most, so that no
//! client that takes its answers slowly keeps all others from theirs.

use std::sync::Arc;

use http::Extensions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::taken::{Counted, Taken};

/// Messages of some MiB that are in memory at a time.
const ALL: usize = 64;
/// Those of one connection.
const OF_ONE: usize = ALL / 2;

/// The places of all connections.
pub(super) fn all() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ALL))
}

/// The places of one connection.
pub(super) fn of_one() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(OF_ONE))
}

/// Where calls of a connection get their places. With each request.
#[derive(Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    connection: Taken,
}

/// A place, until the last clone of it is dropped: what comes with an answer must be one that can be cloned.
#[derive(Clone)]
pub(super) struct Place {
    _permits: Arc<[OwnedSemaphorePermit; 2]>,
}

impl Places {
    /// Those among `all` that a connection may have.
    pub(super) fn new(all: Arc<Semaphore>, connection: &Taken) -> Self {
        Places {
            all,
            connection: connection.clone(),
        }
    }

    /// Those that came with a request.
    pub(super) fn of(request: &Extensions) -> Result<Self, Status> {
        let places = request.get::<Places>().cloned();
        places.ok_or_else(|| Status::internal("the request did not come through the gate"))
    }

    /// An upload waits for its turn, be it for a place or not, until what this gives is dropped.
    pub(super) fn upload(&self) -> Result<Counted, Status> {
        self.connection.upload()
    }

    /// Waits for one. The connection's own comes first: who waits for that keeps nobody else.
    pub(super) async fn take(self) -> Result<Place, Status> {
        let stopping = |_| Status::unavailable("the server is stopping");
        let own = self.connection.places().acquire_owned();
        let own = own.await.map_err(stopping)?;
        let common = self.all.acquire_owned().await.map_err(stopping)?;
        Ok(Place {
            _permits: Arc::new([own, common]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_connection_has_half_of_the_places() {
        let all = all();
        let taken = || {
            let places = Places::new(all.clone(), &Taken::default());
            std::iter::from_fn(move || places.clone().take().now_or_never()?.ok())
        };
        let first: Vec<_> = taken().collect();
        assert_eq!(first.len(), OF_ONE);
        let second: Vec<_> = taken().collect();
        assert_eq!(second.len(), ALL - OF_ONE);
        assert_eq!(taken().count(), 0);
        drop(first);
        assert_eq!(all.available_permits(), OF_ONE);
    }
}
