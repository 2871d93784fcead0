//! buildbox-fuse, as BuildBox shows an input tree: a process and a mount for each action, over a store of its own that already
//! holds every blob.
//!
//! It is started without buildbox-casd in between, which is kinder to it than its usual life: nothing is asked of another
//! process, neither for the mount nor for a blob.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boxwright::reapi::Digest;

/// How long a mount may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A buildbox-fuse and its store.
pub(crate) struct Peer {
    command: Vec<PathBuf>,
    store: PathBuf,
    mount: PathBuf,
}

impl Peer {
    /// With a store below `dir`; `None` if there is no buildbox-fuse.
    pub(crate) fn find(dir: &Path) -> Option<Peer> {
        let peer = Peer {
            command: program()?,
            store: dir.join("buildbox"),
            mount: dir.join("buildbox-mount"),
        };
        for place in [peer.objects(), peer.store.join("tmp"), peer.mount.clone()] {
            std::fs::create_dir_all(place).expect("a directory");
        }
        Some(peer)
    }

    fn objects(&self) -> PathBuf {
        self.store.join("objects")
    }

    /// Puts a blob into its store: another name of the file that it is in ours.
    pub(crate) fn take(&self, digest: Digest, file: &Path) {
        let hash = digest.hash_hex();
        let place = self.objects().join(&hash[..2]);
        std::fs::create_dir_all(&place).expect("a directory");
        match std::fs::hard_link(file, place.join(&hash[2..])) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                panic!("{}: {error}", file.display())
            }
            _ => {}
        }
    }

    /// The time of an action that does `work` with its root: setup, work and teardown.
    pub(crate) fn action(&self, root: Digest, work: impl FnOnce(&Path)) -> Duration {
        let begun = Instant::now();
        let child = self.show(root);
        work(&self.mount);
        self.take_down(child);
        begun.elapsed()
    }

    fn show(&self, root: Digest) -> Child {
        let before = device(&self.mount);
        let digest = format!("{}/{}", root.hash_hex(), root.size());
        let (program, arguments) = self.command.split_first().expect("a program");
        let mut child = Command::new(program)
            .args(arguments)
            .arg(format!("--local={}", self.store.display()))
            .arg(format!("--input-digest-value={digest}"))
            .arg(&self.mount)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("buildbox-fuse starts");
        let begun = Instant::now();
        while device(&self.mount) == before {
            let ended = child.try_wait().expect("buildbox-fuse");
            assert!(ended.is_none(), "buildbox-fuse: {ended:?}");
            assert!(begun.elapsed() < PATIENCE, "buildbox-fuse does not mount");
            std::thread::sleep(Duration::from_micros(200));
        }
        child
    }

    fn take_down(&self, mut child: Child) {
        rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH)
            .expect("an unmount");
        child.wait().expect("buildbox-fuse");
    }
}

fn device(path: &Path) -> u64 {
    rustix::fs::stat(path).map_or(0, |stat| stat.st_dev)
}

/// `$BOXWRIGHT_BUILDBOX_FUSE`, or the one of the Debian sid root or of the BuildStream that the scripts in tests/peers have made.
fn program() -> Option<Vec<PathBuf>> {
    if let Some(named) = std::env::var_os("BOXWRIGHT_BUILDBOX_FUSE") {
        return Some(vec![named.into()]);
    }
    let home = std::env::var_os("HOME")?;
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from);
    let peers = std::env::var_os("BOXWRIGHT_PEERS")
        .map_or_else(|| cache.join("boxwright-peers"), PathBuf::from);
    let sid = std::env::var_os("BOXWRIGHT_SID").map_or_else(|| peers.join("sid"), PathBuf::from);
    let (program, loader) = (
        sid.join("usr/bin/buildbox-fuse"),
        sid.join("usr/lib64/ld-linux-x86-64.so.2"),
    );
    // By its own loader, with its own libraries, it needs no root of its own.
    if program.exists() && loader.exists() {
        let libraries = sid.join("usr/lib/x86_64-linux-gnu");
        return Some(vec![loader, "--library-path".into(), libraries, program]);
    }
    { std::fs::read_dir(&peers).ok()? }
        .filter_map(|entry| Some(entry.ok()?.path().join("lib")))
        .filter_map(|lib| std::fs::read_dir(lib).ok())
        .flatten()
        .filter_map(|python| {
            let packages = python.ok()?.path().join("site-packages");
            let program = packages.join("buildstream/subprojects/buildbox/buildbox-fuse");
            program.exists().then_some(vec![program])
        })
        .next()
}
