//! The thread that answers the kernel.
//!
//! It has a runtime of its own, so that the daemon's threads may touch the mount, as they must to set up an action's view,
//! without waiting for themselves; whatever takes time, it hands to the daemon's runtime.

use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuse3::MountOptions;
use fuse3::raw::{MountHandle, Session};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::kernel::Kernel;
use super::life::{Ends, Life};
use super::{descriptor, eager, mounts};

const DEVICE: &str = "/dev/fuse";
/// How often it is tried to mount where it cannot be told which descriptor came of it.
const TRIES: u32 = 5;
/// How long the thread waits for the kernel's farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A mounted file system and its thread. Dropped, it is unmounted.
pub(super) struct Server {
    mount: PathBuf,
    over: Option<oneshot::Sender<()>>,
    life: Life,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Mounts at `mount`, an empty directory. Blocks for some milliseconds.
    pub(super) fn start(kernel: Kernel, mount: &Path) -> std::io::Result<Self> {
        for _ in 1..TRIES {
            match Server::start_once(kernel.clone(), mount) {
                // Another one ended meanwhile; what was mounted is gone again.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
                other => return other,
            }
        }
        Server::start_once(kernel, mount)
    }

    fn start_once(kernel: Kernel, mount: &Path) -> std::io::Result<Self> {
        let (mounted, answer) = mpsc::channel();
        let (over, end) = oneshot::channel();
        let life = Life::default();
        let (at, living) = (mount.to_owned(), life.clone());
        let thread = std::thread::Builder::new()
            .name("fuse".to_owned())
            .stack_size(1 << 20)
            .spawn(move || {
                let living = Ends(living);
                serve(kernel, &at, &mounted, end, &living.0);
            })?;
        let server = Server {
            mount: mount.to_owned(),
            over: Some(over),
            life,
            thread: Some(thread),
        };
        match answer.recv() {
            Ok(Ok(())) => Ok(server),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(std::io::Error::other("the thread that mounts ended early")),
        }
    }
}

impl Server {
    /// Whether it still is there.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// The end of the mount is no accident from now on.
    pub(super) fn expect_end(&mut self) {
        drop(self.over.take());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.expect_end();
        // Whoever still is in it gets errors from now on.
        let detached = match mounts::detach(&self.mount) {
            // Who mounted it by a program that may do so has it unmounted by that.
            Err(Errno::PERM) => release(&self.mount),
            other => other,
        };
        if let Err(error) = detached
            && error != Errno::INVAL
        {
            tracing::warn!("cannot unmount {}: {error}", self.mount.display());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn release(mount: &Path) -> rustix::io::Result<()> {
    let status = std::process::Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mount)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Errno::PERM),
    }
}

fn serve(
    kernel: Kernel,
    mount: &Path,
    mounted: &mpsc::Sender<std::io::Result<()>>,
    end: oneshot::Receiver<()>,
    life: &Life,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Whatever else there is to do, requests are looked for after each step of it.
        .event_interval(1)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = mounted.send(Err(error));
            return;
        }
    };
    runtime.spawn(eager::keep_awake(kernel.requests.clone()));
    let mut handle = match start(&runtime, kernel, mount, life) {
        Ok(handle) => handle,
        Err(error) => {
            let _ = mounted.send(Err(error));
            return;
        }
    };
    let _ = mounted.send(Ok(()));
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = end => {
                // The last one who leaves ends it; nobody is waited for long.
                let _ = tokio::time::timeout(FAREWELL, &mut handle).await;
            }
            ended = &mut handle => {
                // Before anybody looks into the log: who waits for an answer is told now.
                life.end();
                tracing::warn!("somebody unmounted {}: {ended:?}", mount.display());
            }
        }
        // It is unmounted already, for which the handle of one that has not ended would start a program: as a task that never gets its
        // turn, as this was the last of the runtime's.
        drop(handle);
    });
}

fn start(
    runtime: &tokio::runtime::Runtime,
    kernel: Kernel,
    mount: &Path,
    life: &Life,
) -> std::io::Result<MountHandle> {
    /// One at a time, so that the descriptor that is new is known.
    static MOUNTING: Mutex<()> = Mutex::new(());
    let opens = kernel.recorder.is_some();
    let mut options = MountOptions::default();
    options
        .fs_name("boxwright")
        // The program fusermount3 gives it only to those who have leave for it in /etc/fuse.conf.
        .allow_other(rustix::process::geteuid().is_root() || mounts::may_mount())
        .default_permissions(true)
        .no_open_support(!opens)
        .no_open_dir_support(true);
    let _turn = MOUNTING.lock();
    let before = descriptor::of(DEVICE)?;
    let handle = runtime.block_on(Session::new(options).mount_with_unprivileged(kernel, mount))?;
    match find(&before, life) {
        Ok(()) => Ok(handle),
        Err(error) => {
            // It starts a task, which wants a runtime and never gets its turn in this one.
            runtime.block_on(async { drop(handle) });
            Err(error)
        }
    }
}

/// Watches the descriptor that was not there before.
fn find(before: &[RawFd], life: &Life) -> std::io::Result<()> {
    let mut watched = false;
    for number in descriptor::of(DEVICE)? {
        // A child that inherits the descriptor would keep the file system from dying with the daemon.
        descriptor::close_on_exec(number)?;
        if !before.contains(&number) {
            // Nothing of the session runs before this thread waits for it again.
            life.watch(descriptor::duplicate(number)?);
            watched = true;
        }
    }
    match watched {
        true => Ok(()),
        // Another file system's end gave its number to this one.
        false => Err(std::io::Error::new(
            ErrorKind::ResourceBusy,
            "cannot tell the new descriptor of /dev/fuse from the others; try again",
        )),
    }
}
