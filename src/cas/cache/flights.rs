//! Single flight: a blob that is on its way is not asked for again.
//!
//! A *flight* is one download of some blobs (a batch, or one large blob), run by a task of its own. Whoever
//! needs one of its blobs boards it. A flight that fails tells only those who started it; everybody else asks for what
//! they still need in a flight of their own, so that nobody gets an error about a blob that is not theirs. A flight that nobody waits for any more
//! is stopped. Boarding is one pass under one lock for any number of blobs.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::cas::Behalf;
use crate::cas::CasError;
use crate::reapi::Digest;

/// How a flight ended.
#[derive(Default)]
pub(super) struct Landing {
    /// Blobs that the source lacks.
    pub(super) missing: Vec<Digest>,
    /// The content of blobs that were asked for in memory.
    pub(super) blobs: HashMap<Digest, Bytes>,
    /// Why the others did not come.
    pub(super) failed: Option<CasError>,
}

impl From<CasError> for Landing {
    fn from(error: CasError) -> Self {
        Landing {
            failed: Some(error),
            ..Landing::default()
        }
    }
}

/// A flight to be started: its blobs, and the work that brings them.
pub(super) struct Plan {
    pub(super) digests: Vec<Digest>,
    pub(super) work: Pin<Box<dyn Future<Output = Landing> + Send>>,
}

/// What is in the air.
#[derive(Clone, Default)]
pub(super) struct Flights {
    in_air: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
}

struct Flight {
    digests: Vec<Digest>,
    landed: watch::Sender<Option<Arc<Landing>>>,
    task: OnceLock<AbortHandle>,
    /// How many wait for it; changed under the lock of `in_air` only.
    waiting: Mutex<usize>,
}

/// A seat: somebody waits for the flight.
struct Seat {
    flights: Flights,
    flight: Arc<Flight>,
    /// Which of its blobs they need.
    needs: Vec<Digest>,
    /// Whether they started it.
    leads: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut in_air = self.flights.in_air.lock();
        let mut waiting = self.flight.waiting.lock();
        *waiting -= 1;
        if *waiting == 0 && self.flight.landed.borrow().is_none() {
            remove(&mut in_air, &self.flight);
            if let Some(task) = self.flight.task.get() {
                task.abort();
            }
        }
    }
}

fn remove(in_air: &mut HashMap<Digest, Arc<Flight>>, flight: &Arc<Flight>) {
    for digest in &flight.digests {
        if in_air.get(digest).is_some_and(|f| Arc::ptr_eq(f, flight)) {
            in_air.remove(digest);
        }
    }
}

/// Takes the flight out of the air however its task ends, by a panic or an abort too.
struct Controller {
    flights: Flights,
    flight: Arc<Flight>,
}

impl Controller {
    fn land(&self, landing: Landing) {
        let mut in_air = self.flights.in_air.lock();
        remove(&mut in_air, &self.flight);
        self.flight.landed.send_replace(Some(Arc::new(landing)));
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if self.flight.landed.borrow().is_none() {
            self.land(Landing::from(CasError::Disk {
                action: "fetch",
                object: format!("{} blobs", self.flight.digests.len()),
                source: std::io::Error::other("the download ended without a result"),
            }));
        }
    }
}

impl Flights {
    /// Waits for all of `needed`, boarding the flights that are in the air and starting those that `plan` makes
    /// of the rest. Returns what came into memory and what is missing; fails with the first failure of a
    /// flight started here.
    pub(super) async fn bring(
        &self,
        needed: Vec<Digest>,
        plan: impl Fn(Vec<Digest>) -> Vec<Plan>,
    ) -> Result<(Vec<(Digest, Bytes)>, Vec<Digest>), CasError> {
        let mut blobs = Vec::new();
        let mut missing = Vec::new();
        let mut needed = needed;
        // Another round only follows a flight of somebody else that failed; that one ended with an error there, so that
        // rounds are as many as there are failing callers at most.
        while !needed.is_empty() {
            let mut seats: FuturesUnordered<_> = self
                .board(std::mem::take(&mut needed), &plan)
                .into_iter()
                .map(Seat::landing)
                .collect();
            while let Some((seat, landing)) = seats.next().await {
                let Some(landing) = landing else {
                    needed.extend(&seat.needs);
                    continue;
                };
                if seat.leads
                    && let Some(error) = &landing.failed
                {
                    return Err(duplicate(error));
                }
                let lacks: HashSet<&Digest> = landing.missing.iter().collect();
                for digest in &seat.needs {
                    if lacks.contains(digest) {
                        missing.push(*digest);
                    } else if let Some(bytes) = landing.blobs.get(digest) {
                        blobs.push((*digest, bytes.clone()));
                    } else if landing.failed.is_some() {
                        needed.push(*digest);
                    }
                }
            }
        }
        Ok((blobs, missing))
    }

    fn board(&self, needed: Vec<Digest>, plan: &impl Fn(Vec<Digest>) -> Vec<Plan>) -> Vec<Seat> {
        let mut in_air = self.in_air.lock();
        let mut boarded: HashMap<*const Flight, (Arc<Flight>, Vec<Digest>)> = HashMap::new();
        let mut rest = Vec::new();
        for digest in needed {
            match in_air.get(&digest) {
                Some(flight) => {
                    boarded
                        .entry(Arc::as_ptr(flight))
                        .or_insert_with(|| (flight.clone(), Vec::new()))
                        .1
                        .push(digest);
                }
                None => rest.push(digest),
            }
        }
        let mut seats: Vec<Seat> = boarded
            .into_values()
            .map(|(flight, needs)| self.seat(flight, needs, false))
            .collect();
        if rest.is_empty() {
            return seats;
        }
        for Plan { digests, work } in plan(rest) {
            let flight = Arc::new(Flight {
                digests: digests.clone(),
                landed: watch::Sender::new(None),
                task: OnceLock::new(),
                waiting: Mutex::new(0),
            });
            for digest in &digests {
                in_air.insert(*digest, flight.clone());
            }
            seats.push(self.seat(flight.clone(), digests, true));
            let controller = Controller {
                flights: self.clone(),
                flight: flight.clone(),
            };
            let task = tokio::spawn(Behalf::current().pass_on(async move {
                let landing = work.await;
                controller.land(landing);
            }));
            // Set once, here, while the seat just taken keeps the flight in the air.
            let _ = flight.task.set(task.abort_handle());
        }
        seats
    }

    fn seat(&self, flight: Arc<Flight>, needs: Vec<Digest>, leads: bool) -> Seat {
        *flight.waiting.lock() += 1;
        Seat {
            flights: self.clone(),
            flight,
            needs,
            leads,
        }
    }

    /// How many blobs are in the air.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.in_air.lock().len()
    }
}

impl Seat {
    async fn landing(self) -> (Self, Option<Arc<Landing>>) {
        let mut landed = self.flight.landed.subscribe();
        let landing = match landed.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone(),
            Err(_) => None,
        };
        (self, landing)
    }
}

/// The same error for another reader; causes that cannot be copied keep their kind and text.
fn duplicate(error: &CasError) -> CasError {
    match error {
        CasError::Missing(digests) => CasError::Missing(digests.clone()),
        CasError::Corrupt { expected, actual } => CasError::Corrupt {
            expected: *expected,
            actual: *actual,
        },
        CasError::Disk {
            action,
            object,
            source,
        } => CasError::Disk {
            action,
            object: object.clone(),
            source: match source.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(source.kind(), source.to_string()),
            },
        },
        CasError::Full { needed, why } => CasError::Full {
            needed: *needed,
            why: why.clone(),
        },
        CasError::Remote {
            call,
            remote,
            status,
        } => CasError::Remote {
            call,
            remote: remote.clone(),
            status: status.clone(),
        },
        CasError::TooLarge {
            digest,
            limit,
            what,
        } => CasError::TooLarge {
            digest: *digest,
            limit: *limit,
            what,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::reapi::DigestFunction;
    use tokio::sync::Semaphore;

    fn digest(n: u32) -> Digest {
        DigestFunction::Sha256.digest(&n.to_le_bytes())
    }

    /// Plans one flight that waits for `gate` and then lands with what `landing` makes.
    fn planner(
        gate: &Arc<Semaphore>,
        started: &Arc<AtomicUsize>,
        landing: fn(&[Digest]) -> Landing,
    ) -> impl Fn(Vec<Digest>) -> Vec<Plan> + Clone + use<> {
        let (gate, started) = (gate.clone(), started.clone());
        move |digests| {
            let (gate, of) = (gate.clone(), digests.clone());
            started.fetch_add(digests.len(), Ordering::SeqCst);
            let work = Box::pin(async move {
                let _open = gate.acquire().await;
                landing(&of)
            });
            vec![Plan { digests, work }]
        }
    }

    fn all_there(digests: &[Digest]) -> Landing {
        Landing {
            blobs: digests
                .iter()
                .map(|d| (*d, Bytes::from_static(b"x")))
                .collect(),
            ..Landing::default()
        }
    }

    #[tokio::test]
    async fn fifty_callers_share_one_flight() {
        let (gate, started) = (Arc::new(Semaphore::new(0)), Arc::default());
        let plan = planner(&gate, &started, all_there);
        let flights = Flights::default();
        let callers: Vec<_> = (0..50)
            .map(|_| {
                let (flights, plan) = (flights.clone(), plan.clone());
                tokio::spawn(
                    async move { flights.bring((0..100).map(digest).collect(), plan).await },
                )
            })
            .collect();
        while started.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap().0.len(), 100);
        }
        assert_eq!(started.load(Ordering::SeqCst), 100);
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn a_leader_that_goes_away_leaves_its_flight_to_the_others() {
        let (gate, started) = (Arc::new(Semaphore::new(0)), Arc::default());
        let plan = planner(&gate, &started, all_there);
        let flights = Flights::default();
        let mut leader = Box::pin(flights.bring(vec![digest(1)], plan.clone()));
        assert!(futures::poll!(&mut leader).is_pending());
        let mut other = Box::pin(flights.bring(vec![digest(1)], plan));
        assert!(futures::poll!(&mut other).is_pending());
        drop(leader);
        gate.add_permits(1);
        assert_eq!(other.await.unwrap().0.len(), 1);
        assert_eq!(started.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_is_stopped() {
        let (gate, started) = (Arc::new(Semaphore::new(0)), Arc::default());
        let plan = planner(&gate, &started, all_there);
        let flights = Flights::default();
        let mut only = Box::pin(flights.bring(vec![digest(1)], plan));
        assert!(futures::poll!(&mut only).is_pending());
        let task = flights.in_air.lock()[&digest(1)]
            .task
            .get()
            .cloned()
            .unwrap();
        drop(only);
        assert_eq!(flights.len(), 0);
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_failure_is_the_leader_s_and_others_try_for_themselves() {
        let (gate, started) = (Arc::new(Semaphore::new(0)), Arc::default());
        let failing = planner(&gate, &started, |_| {
            Landing::from(CasError::Full {
                needed: 1,
                why: "test".into(),
            })
        });
        let working = planner(&gate, &started, all_there);
        let flights = Flights::default();
        let mut leader = Box::pin(flights.bring(vec![digest(1), digest(2)], failing));
        assert!(futures::poll!(&mut leader).is_pending());
        let mut other = Box::pin(flights.bring(vec![digest(2), digest(3)], working));
        assert!(futures::poll!(&mut other).is_pending());
        gate.add_permits(10);
        assert!(matches!(leader.await, Err(CasError::Full { .. })));
        assert_eq!(other.await.unwrap().0.len(), 2);
    }

    #[tokio::test]
    async fn a_panic_hangs_nobody() {
        let (gate, started) = (Arc::new(Semaphore::new(1)), Arc::default());
        let plan = planner(&gate, &started, |_| panic!("on purpose"));
        let flights = Flights::default();
        assert!(flights.bring(vec![digest(1)], plan).await.is_err());
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn missing_blobs_of_all_flights_are_collected() {
        let (gate, started) = (Arc::new(Semaphore::new(10)), Arc::default());
        let plan = planner(&gate, &started, |digests| Landing {
            missing: digests.to_vec(),
            ..Landing::default()
        });
        let one_each =
            move |digests: Vec<Digest>| digests.into_iter().flat_map(|d| plan(vec![d])).collect();
        let (_, missing) = Flights::default()
            .bring((0..20).map(digest).collect(), one_each)
            .await
            .unwrap();
        assert_eq!(missing.len(), 20);
    }
}
