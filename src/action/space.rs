//! The floor of free space, as far as actions go: what a command writes next to the store is counted by nobody before it is on the
//! disk. So room is made before it starts and while it runs, and a failure on a disk that was full is told as what it is.

use std::sync::Arc;
use std::time::Duration;

use super::Ending;
use crate::cas::LocalStore;
use crate::sandbox::End;

/// How often the file system is asked while a command runs; that costs a microsecond.
const LOOK: Duration = Duration::from_millis(200);

/// Makes room if less is free than is to stay free.
pub(super) async fn make(store: &Arc<LocalStore>) {
    if store.is_below_floor() {
        let store = store.clone();
        // A panic there is a fault of the store's, and told by the next who uses it.
        let _ = tokio::task::spawn_blocking(move || store.keep_free()).await;
    }
}

/// Keeps the floor while a command runs. Says beside its outcome whether the disk was seen full.
pub(super) async fn kept<T>(store: &Arc<LocalStore>, run: impl Future<Output = T>) -> (T, bool) {
    let mut was_full = false;
    let watch = async {
        loop {
            tokio::time::sleep(LOOK).await;
            was_full |= store.is_disk_full();
            make(store).await;
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = run => outcome,
        () = watch => unreachable!("it never ends"),
    };
    // What it has written is there still.
    was_full |= store.is_disk_full();
    (outcome, was_full)
}

/// The end of a command that failed by itself where the disk was full: nobody can tell that it would have failed so with room.
pub(super) fn tell(was_full: bool, end: &End) -> Result<(), Ending> {
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
            assert!(matches!(tell(true, &end), Err(Ending::Infrastructure(_))));
            assert_eq!(tell(false, &end), Ok(()));
        }
        for end in [End::Exited(0), End::TimedOut, End::Cancelled] {
            assert_eq!(tell(true, &end), Ok(()));
        }
    }
}
