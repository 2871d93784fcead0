//! The floor of free space, as far as actions go: what a command writes next to the store is counted by nobody before it is on the
//! disk. So room is made before it starts and while it runs, and a failure on a disk that was full is told as what it is.

use std::sync::Arc;
use std::time::Duration;

use super::Ending;
use crate::cas::LocalStore;
use crate::sandbox::End;

/// How often the file system is asked while a command runs; that costs a microsecond.
const LOOK: Duration = Duration::from_millis(200);

/// What is known of the disk after a command has ended.
pub(super) struct Disk {
    was_full: bool,
    /// What could be written when it began.
    before: u64,
}

/// Makes room if less is free than is to stay free and `ahead`.
pub(super) async fn make(store: &Arc<LocalStore>, ahead: u64) {
    make_beside(store, store.free_above_floor(), ahead).await;
}

/// The same for who has just asked what is free.
async fn make_beside(store: &Arc<LocalStore>, free: u64, ahead: u64) {
    if free < ahead || free == 0 {
        in_background(store, move |store| store.keep_free(ahead)).await;
    }
}

async fn in_background(store: &Arc<LocalStore>, work: impl FnOnce(&LocalStore) + Send + 'static) {
    let store = store.clone();
    // A panic there is a fault of the store's, and told by the next who uses it.
    let _ = tokio::task::spawn_blocking(move || work(&store)).await;
}

/// Keeps the floor while a command runs, and room for what it will have written until the next look if it goes on like this.
pub(super) async fn kept<T>(store: &Arc<LocalStore>, run: impl Future<Output = T>) -> (T, Disk) {
    let before = store.free_above_floor();
    let mut was_full = false;
    let watch = async {
        let mut last = before;
        loop {
            tokio::time::sleep(LOOK).await;
            was_full |= store.is_disk_full();
            let now = store.free_above_floor();
            make_beside(store, now, last.saturating_sub(now)).await;
            last = store.free_above_floor();
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = run => outcome,
        () = watch => unreachable!("it never ends"),
    };
    // What it has written is there still.
    was_full |= store.is_disk_full();
    (outcome, Disk { was_full, before })
}

/// The end of a command that failed by itself where the disk was full: nobody can tell that it would have failed so with room. There
/// is twice as much of it the next time, if blobs can be evicted for it.
pub(super) async fn tell(store: &Arc<LocalStore>, disk: Disk, end: &End) -> Result<(), Ending> {
    let told = judge(disk.was_full, end);
    if told.is_err() {
        in_background(store, move |store| {
            store.make_room(disk.before);
        })
        .await;
    }
    told
}

fn judge(was_full: bool, end: &End) -> Result<(), Ending> {
    match end {
        End::Exited(0) => Ok(()),
        End::Exited(_) | End::Signalled(_) if was_full => Err(Ending::Infrastructure(
            "the command failed, and the file system of the CAS, where its files are, was full while it ran: raise the floor of free \
             space (cas-free-floor), run fewer actions at a time, or bound what each may write (disk_bytes)"
                .into(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_on_a_full_disk_is_not_the_command_s() {
        for end in [End::Exited(1), End::Signalled(6)] {
            assert!(matches!(judge(true, &end), Err(Ending::Infrastructure(_))));
            assert_eq!(judge(false, &end), Ok(()));
        }
        for end in [End::Exited(0), End::TimedOut, End::Cancelled] {
            assert_eq!(judge(true, &end), Ok(()));
        }
    }
}
