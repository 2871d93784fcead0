//! The floor of free space, as far as actions go: what a command writes next to the store is counted by nobody before it is on the
//! disk. So room is made before it starts and while it runs, and a failure on a disk that was full is told as what it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Ending;
use crate::cas::LocalStore;
use crate::sandbox::End;

/// How often the file system is asked while a command runs; that costs a microsecond.
const LOOK: Duration = Duration::from_millis(200);
/// How often if less than [`LITTLE`] is free, which some programs fill, and free again, in no time.
const LOOK_CLOSELY: Duration = Duration::from_millis(20);
const LITTLE: u64 = 1 << 30;

/// How long nothing is evicted after that freed nothing: what fills the disk is not the store's then, and the whole cache would go
/// for it.
const PAUSE: Duration = Duration::from_secs(10);

/// What is known of the disk after a command has ended.
pub(super) struct Disk {
    /// It was seen to be.
    was_full: bool,
    /// Between two looks it may have been, as fast as it was written to.
    may_have_been_full: bool,
    /// What could be written when it began.
    before: u64,
}

/// Makes room if less is free than is to stay free and `ahead`.
pub(super) async fn make(store: &Arc<LocalStore>, ahead: u64) {
    make_beside(store, store.free_above_floor(), ahead).await;
}

/// The same for who has just asked what is free.
async fn make_beside(store: &Arc<LocalStore>, free: u64, ahead: u64) {
    if needs_room(free, ahead) {
        in_background(store, move |store| store.keep_free(ahead)).await;
    }
}

fn needs_room(free: u64, ahead: u64) -> bool {
    free < ahead || free == 0
}

async fn in_background(store: &Arc<LocalStore>, work: impl FnOnce(&LocalStore) + Send + 'static) {
    let store = store.clone();
    // A panic there is a fault of the store's, and told by the next who uses it.
    let _ = tokio::task::spawn_blocking(move || work(&store)).await;
}

/// Waits, but not for long, while what another action has filled the disk with is being removed: a command that began meanwhile could
/// find the disk full, and nobody would see it.
async fn settled(store: &Arc<LocalStore>) {
    let from = Instant::now();
    let recently = from.checked_sub(PAUSE).unwrap_or(from);
    let (mut most, mut still) = (store.free(), 0);
    while store.was_disk_full_since(recently) && from.elapsed() < PAUSE && still < 5 {
        tokio::time::sleep(LOOK_CLOSELY).await;
        let free = store.free();
        still = if free > most { 0 } else { still + 1 };
        most = most.max(free);
    }
}

/// Keeps the floor while a command runs, and room for what it will have written until the next look if it goes on like this.
pub(super) async fn kept<T>(store: &Arc<LocalStore>, run: impl Future<Output = T>) -> (T, Disk) {
    settled(store).await;
    let begun = Instant::now();
    let before = store.free_above_floor();
    let mut may_have_been_full = false;
    let watch = async {
        let (mut last, mut from) = (before, Instant::now());
        loop {
            let closely = last < LITTLE;
            tokio::time::sleep(if closely { LOOK_CLOSELY } else { LOOK }).await;
            store.is_disk_full();
            let now = store.free_above_floor();
            let written = last.saturating_sub(now);
            may_have_been_full |= written > store.free();
            last = now;
            if needs_room(now, written) && Instant::now() >= from {
                make_beside(store, now, written).await;
                last = store.free_above_floor();
                if last <= now {
                    from = Instant::now() + PAUSE;
                }
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = run => outcome,
        () = watch => unreachable!("it never ends"),
    };
    // What it has written is there still. Another that has filled the disk meanwhile has looked in the same way, before what it wrote
    // was removed.
    store.is_disk_full();
    let disk = Disk {
        was_full: store.was_disk_full_since(begun),
        may_have_been_full,
        before,
    };
    (outcome, disk)
}

/// The end of a command that ended by itself where the disk was full: nobody can tell that it would have failed so with room, or that
/// what it made is whole. There is twice as much room the next time, if blobs can be evicted for it.
pub(super) async fn tell(store: &Arc<LocalStore>, disk: Disk, end: &End) -> Result<(), Ending> {
    let told = judge(&disk, end);
    if told.is_err() {
        in_background(store, move |store| {
            store.make_room(disk.before);
        })
        .await;
    }
    told
}

fn judge(disk: &Disk, end: &End) -> Result<(), Ending> {
    let what = match end {
        End::Exited(0) if disk.was_full => "what the command made cannot be trusted",
        End::Exited(1..) | End::Signalled(_) if disk.was_full || disk.may_have_been_full => {
            "the command failed"
        }
        _ => return Ok(()),
    };
    Err(Ending::Infrastructure(format!(
        "{what}: the file system of the CAS, where its files are, was full while it ran; raise the floor of free space \
         (cas-free-floor), run fewer actions at a time, or bound what each may write (disk_bytes)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(was_full: bool, may_have_been_full: bool) -> Disk {
        Disk {
            was_full,
            may_have_been_full,
            before: 0,
        }
    }

    #[test]
    fn an_end_on_a_full_disk_is_not_the_command_s() {
        let ours =
            |disk: &Disk, end: &End| matches!(judge(disk, end), Err(Ending::Infrastructure(_)));
        for end in [End::Exited(1), End::Signalled(6)] {
            assert!(ours(&disk(true, false), &end));
            assert!(ours(&disk(false, true), &end));
            assert!(!ours(&disk(false, false), &end));
        }
        // It may have overlooked that it could not write, but not that nothing went wrong.
        assert!(ours(&disk(true, false), &End::Exited(0)));
        assert!(!ours(&disk(false, true), &End::Exited(0)));
        for end in [End::TimedOut, End::Cancelled] {
            assert_eq!(judge(&disk(true, true), &end), Ok(()));
        }
    }
}
