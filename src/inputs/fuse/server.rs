//! The thread that answers the kernel.
//!
//! It has a runtime of its own, so that the daemon's threads may touch the mount, as they must to set up an action's view,
//! without waiting for themselves; whatever takes time, it hands to the daemon's runtime.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuse3::MountOptions;
use fuse3::raw::{MountHandle, Session};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::kernel::Kernel;
use super::{descriptor, eager, mounts};

/// How long the thread waits for the kernel's farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A mounted file system and its thread. Dropped, it is unmounted.
pub(super) struct Server {
    mount: PathBuf,
    over: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Mounts at `mount`, an empty directory. Blocks for some milliseconds.
    pub(super) fn start(kernel: Kernel, mount: &Path) -> std::io::Result<Self> {
        let (mounted, answer) = mpsc::channel();
        let (over, end) = oneshot::channel();
        let (living, ended) = oneshot::channel();
        let at = mount.to_owned();
        let thread = std::thread::Builder::new()
            .name("fuse".to_owned())
            .stack_size(1 << 20)
            .spawn(move || {
                serve(kernel, &at, &mounted, end);
                drop(living);
            })?;
        let server = Server {
            mount: mount.to_owned(),
            over: Some(over),
            ended,
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
    /// Waits until somebody has unmounted it.
    pub(super) async fn ended(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.ended).await;
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
    runtime.block_on(async {
        tokio::spawn(eager::keep_awake(kernel.requests.clone()));
        let mut handle = match start(kernel, mount).await {
            Ok(handle) => handle,
            Err(error) => {
                let _ = mounted.send(Err(error));
                return;
            }
        };
        let _ = mounted.send(Ok(()));
        tokio::select! {
            biased;
            _ = end => {
                // The last one who leaves ends it; nobody is waited for long.
                let _ = tokio::time::timeout(FAREWELL, &mut handle).await;
            }
            ended = &mut handle => {
                tracing::warn!("somebody unmounted {}: {ended:?}", mount.display());
            }
        }
        // It is unmounted already: the handle would start a program to do that.
        std::mem::forget(handle);
    });
}

async fn start(kernel: Kernel, mount: &Path) -> std::io::Result<MountHandle> {
    let opens = kernel.recorder.is_some();
    let mut options = MountOptions::default();
    options
        .fs_name("boxwright")
        // The program fusermount3 gives it only to those who have leave for it in /etc/fuse.conf.
        .allow_other(rustix::process::geteuid().is_root() || mounts::may_mount())
        .default_permissions(true)
        .no_open_support(!opens)
        .no_open_dir_support(true);
    let handle = Session::new(options)
        .mount_with_unprivileged(kernel, mount)
        .await?;
    // A child that inherits the descriptor would keep the file system from dying with the daemon.
    descriptor::close_on_exec("/dev/fuse")?;
    Ok(handle)
}
