//! The floor of free space, as far as actions go: what a command writes next to the store is counted by nobody before it is on the
//! disk. So room is made before it starts and while it runs, and its end on a disk that was full is told as what it is.
//!
//! No kernel tells that somebody met a full disk. It is seen by looks, and by what they tell of the time between them ([`Looks`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Ending;
use super::looks::Looks;
use crate::cas::{LocalStore, Pins};
use crate::sandbox::{End, Outcome};
use crate::tree::Tree;

/// How long what filled the disk may take to be removed.
const PAUSE: Duration = Duration::from_secs(10);
/// How often it is asked for.
const SETTLING: Duration = Duration::from_millis(20);

/// The part of the store that goes for another attempt of a command that filled the disk: it may do so again, and the cache is for all.
const FOR_ANOTHER: u64 = 8;

/// What is known of the disk after a command has ended.
#[derive(Default)]
pub(super) struct Disk {
    /// It was seen to be, or between two looks it may have been.
    full: Option<Seen>,
    /// Bytes that the command's files took when it ended, as far as is known.
    left: u64,
    /// The inputs, if anything was evicted: another attempt needs them too.
    inputs: Option<Pins>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Full,
    PerhapsFull,
}

/// Makes room for what is to be staged and run, if less is free than is to stay free.
pub(super) async fn make(store: &Arc<LocalStore>, cancel: &CancellationToken) {
    settled(store, cancel).await;
    if store
        .look()
        .is_some_and(|free| needs_room(free.above_floor, 0))
    {
        // A panic there is a fault of the store's, and told by the next who uses it.
        let _ = in_background(store, move |store| store.keep_free(0)).await;
    }
}

fn needs_room(above_floor: u64, ahead: u64) -> bool {
    above_floor < ahead || above_floor == 0
}

fn in_background<T: Send + 'static>(
    store: &Arc<LocalStore>,
    work: impl FnOnce(&Arc<LocalStore>) -> T + Send + 'static,
) -> JoinHandle<T> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store))
}

/// An eviction that has begun: never of the inputs, if others have none of them to give.
fn evict(
    store: &Arc<LocalStore>,
    inputs: Option<&Arc<Tree>>,
    work: impl FnOnce(&LocalStore) + Send + 'static,
) -> JoinHandle<Option<Pins>> {
    let inputs = inputs.cloned();
    in_background(store, move |store| {
        let pins = inputs.map(|tree| pin(store, &tree));
        work(store);
        pins
    })
}

fn pin(store: &Arc<LocalStore>, tree: &Tree) -> Pins {
    let directories = tree.directories.keys().copied();
    let files = tree.blobs().into_iter().map(|wanted| wanted.digest);
    store.pin(directories.chain(files))
}

/// Waits, but not for long, while what another action has filled the disk with is being removed: a command that began meanwhile could
/// find the disk full, and nobody would see it.
async fn settled(store: &Arc<LocalStore>, cancel: &CancellationToken) {
    let from = Instant::now();
    let recently = from.checked_sub(PAUSE).unwrap_or(from);
    let (mut most, mut still) = (0, 0);
    while store.was_disk_full_since(recently) && from.elapsed() < PAUSE && still < 5 {
        let sleep = tokio::time::sleep(SETTLING);
        if cancel.run_until_cancelled(sleep).await.is_none() {
            return;
        }
        let free = store.look().map_or(0, |free| free.bytes);
        still = if free > most { 0 } else { still + 1 };
        most = most.max(free);
    }
}

/// Keeps the floor while a command runs, and room for what it will have written until the next look if it goes on like this. `inputs` are
/// those that nobody else has.
pub(super) async fn kept<T>(
    store: &Arc<LocalStore>,
    inputs: Option<&Arc<Tree>>,
    cancel: &CancellationToken,
    run: impl Future<Output = T>,
) -> (T, Disk) {
    settled(store, cancel).await;
    let begun = Instant::now();
    let mut disk = Disk::default();
    let before = store.look().map(|free| free.bytes);
    let mut looks = Looks::begun(begun, before.unwrap_or(u64::MAX));
    let look = |looks: &mut Looks| {
        let began = Instant::now();
        let free = store.look()?;
        looks.look(began, Instant::now(), free.bytes);
        Some(free)
    };
    let watch = async {
        let mut last = None;
        // What is evicted meanwhile is no reason not to look.
        let mut evicting: Option<JoinHandle<Option<Pins>>> = None;
        loop {
            tokio::time::sleep(looks.pause()).await;
            let Some(free) = look(&mut looks) else {
                continue;
            };
            let last = last.replace(free.above_floor).unwrap_or_default();
            let written = u64::saturating_sub(last, free.above_floor);
            if let Some(done) = evicting.take_if(|evicting| evicting.is_finished()) {
                disk.inputs = done.await.unwrap_or_default().or(disk.inputs.take());
            }
            if evicting.is_none() && needs_room(free.above_floor, written) {
                let inputs = inputs.filter(|_| disk.inputs.is_none());
                let work = move |store: &LocalStore| store.keep_free(written);
                evicting = Some(evict(store, inputs, work));
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = run => outcome,
        never = watch => never,
    };
    // What it has written is there still. Another that has filled the disk meanwhile has looked in the same way, before what it wrote
    // was removed.
    let after = look(&mut looks).map(|free| free.bytes);
    disk.full = if store.was_disk_full_since(begun) {
        Some(Seen::Full)
    } else {
        looks.may_have_been_full().then_some(Seen::PerhapsFull)
    };
    disk.left = { before.zip(after) }.map_or(0, |(before, after)| before.saturating_sub(after));
    (outcome, disk)
}

/// The end of a command that ended by itself where the disk was full: nobody can tell that it would have failed so with room, or that
/// what it made is whole. There is more room the next time, if blobs can be evicted for it. Returns what another attempt begins with, to be
/// kept as long as there may be one.
pub(super) async fn tell(
    store: &Arc<LocalStore>,
    inputs: Option<&Arc<Tree>>,
    disk: Disk,
    outcome: &Outcome,
) -> (Result<(), Ending>, Option<Pins>) {
    let told = judge(disk.full, &outcome.end);
    if told.is_ok() {
        return (told, None);
    }
    // What it wrote need not be what it left.
    let written = { outcome.usage.blocks_out.saturating_mul(512) }.max(disk.left);
    let missing = inputs.filter(|_| disk.inputs.is_none());
    let work = move |store: &LocalStore| {
        store.make_room(for_another(written, store.usage().disk));
    };
    let pins = evict(store, missing, work).await.unwrap_or_default();
    (told, disk.inputs.or(pins))
}

/// How much of a store is evicted for another attempt of a command that wrote so much.
fn for_another(written: u64, store: u64) -> u64 {
    written.min(store / FOR_ANOTHER)
}

fn judge(seen: Option<Seen>, end: &End) -> Result<(), Ending> {
    let what = match end {
        End::Exited(0) => "what the command made cannot be trusted",
        End::Exited(_) | End::Signalled(_) => "the command failed",
        _ => return Ok(()),
    };
    let full = match seen {
        None => return Ok(()),
        Some(Seen::Full) => "was",
        Some(Seen::PerhapsFull) => "may have been",
    };
    Err(Ending::Infrastructure(format!(
        "{what}: the file system of the CAS, where its files are, {full} full while it ran; raise the floor of free space \
         (cas-free-floor), run fewer actions at a time, or bound what each may write (disk_bytes)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cas::StoreConfig;
    use crate::reapi::DigestFunction;
    use crate::sandbox::{Captured, Usage};
    use std::time::SystemTime;

    #[test]
    fn an_end_on_a_full_disk_is_not_the_command_s() {
        for end in [End::Exited(1), End::Signalled(6), End::Exited(0)] {
            assert_eq!(judge(None, &end), Ok(()));
            for (seen, word) in [
                (Seen::Full, " was full"),
                (Seen::PerhapsFull, "may have been full"),
            ] {
                let Err(Ending::Infrastructure(said)) = judge(Some(seen), &end) else {
                    panic!("{end:?}");
                };
                assert!(said.contains(word), "{said}");
            }
        }
        for end in [End::TimedOut, End::Cancelled] {
            assert_eq!(judge(Some(Seen::Full), &end), Ok(()));
        }
    }

    fn outcome(code: i32, written: u64) -> Outcome {
        let nothing = || Captured::Memory(bytes::Bytes::new());
        Outcome {
            end: End::Exited(code),
            usage: Usage {
                blocks_out: written / 512,
                ..Usage::default()
            },
            started: SystemTime::now(),
            finished: SystemTime::now(),
            stdout: nothing(),
            stdout_dropped: 0,
            stderr: nothing(),
            stderr_dropped: 0,
        }
    }

    #[tokio::test]
    async fn one_command_that_fills_the_disk_takes_a_small_part_of_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 1 << 30,
            low_water: 1 << 30,
            free_floor: 0,
        })
        .unwrap();
        let blobs: Vec<_> = (0..64u8)
            .map(|n| {
                let data = vec![n; 64 << 10];
                let digest = DigestFunction::Sha256.digest(&data);
                store.put(digest, &data, false).unwrap();
                digest
            })
            .collect();
        for attempt in 0..3 {
            let disk = Disk {
                full: Some(Seen::Full),
                ..Disk::default()
            };
            let (told, _) = tell(&store, None, disk, &outcome(1, 1 << 40)).await;
            told.unwrap_err();
            let gone = store.missing(&blobs).len();
            assert!(gone > 8 * attempt && gone <= 12 * (attempt + 1), "{gone}");
        }
    }
}
