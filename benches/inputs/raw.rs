//! The least that a FUSE server can be: one thread, one buffer, a table of nodes in memory, files read where they lie. What a cold
//! walk through it costs is what the kernel asks for; what ours costs more is ours.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

const BUFFER: usize = 1 << 20;
/// As long as can be, in seconds.
const FOR_EVER: u64 = u32::MAX as u64;

// Requests and flags of <linux/fuse.h>.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READ: u32 = 15;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const ASYNC_READ: u32 = 1;
const PARALLEL_DIROPS: u32 = 1 << 18;
const NO_OPEN_SUPPORT: u32 = 1 << 17;
const NO_OPENDIR_SUPPORT: u32 = 1 << 24;

#[derive(Default)]
struct Node {
    children: HashMap<Vec<u8>, u64>,
    /// The file that holds it, and its size.
    file: Option<(PathBuf, u64)>,
}

/// A tree of files, to be mounted.
pub(crate) struct Raw {
    /// By number less one; the root is the first.
    nodes: Vec<Node>,
}

impl Raw {
    pub(crate) fn new() -> Self {
        Raw {
            nodes: vec![Node::default()],
        }
    }

    pub(crate) fn add(&mut self, path: &str, file: PathBuf) {
        let size = file.metadata().expect("a file").len();
        let mut at = 0;
        for name in path.split('/') {
            let next = self.nodes.len() as u64 + 1;
            let children = &mut self.nodes[at].children;
            let id = *children.entry(name.into()).or_insert(next);
            if id == next {
                self.nodes.push(Node::default());
            }
            at = id as usize - 1;
        }
        self.nodes[at].file = Some((file, size));
    }

    /// Mounts it and serves until it is unmounted, by a thread of its own.
    pub(crate) fn mount(self, at: &Path) -> Mounted {
        std::fs::create_dir_all(at).expect("a directory");
        let device = rustix::fs::openat(
            CWD,
            "/dev/fuse",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let device = device.expect("/dev/fuse");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
        nix::mount::mount(
            Some("raw"),
            at,
            Some("fuse.raw"),
            flags,
            Some(options.as_str()),
        )
        .expect("a mount");
        let thread = std::thread::spawn(move || self.serve(&device));
        Mounted {
            at: at.to_owned(),
            thread: Some(thread),
        }
    }

    fn serve(&self, device: &OwnedFd) {
        let mut buffer = vec![0; BUFFER + 4096];
        let mut data = vec![0; BUFFER];
        loop {
            let len = match rustix::io::read(device, &mut buffer[..]) {
                Ok(len) => len,
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                // Unmounted.
                Err(_) => return,
            };
            let request = &buffer[..len];
            let (opcode, unique) = (number32(request, 4), number64(request, 8));
            if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
                continue;
            }
            let node = number64(request, 16) as usize;
            let answer = self.answer(opcode, node, &request[40..], &mut data);
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error.raw_os_error(), Vec::new()),
            };
            let mut head = Vec::with_capacity(16);
            head.extend((16 + body.len() as u32).to_ne_bytes());
            head.extend(error.to_ne_bytes());
            head.extend(unique.to_ne_bytes());
            let _ = rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(&body)]);
        }
    }

    fn answer(
        &self,
        opcode: u32,
        node: usize,
        body: &[u8],
        data: &mut [u8],
    ) -> Result<Vec<u8>, Errno> {
        match opcode {
            INIT => {
                let flags = ASYNC_READ | PARALLEL_DIROPS | NO_OPEN_SUPPORT | NO_OPENDIR_SUPPORT;
                let mut out = Vec::with_capacity(64);
                let (readahead, granularity) = (128_u32 << 10, 1_u32);
                for field in [7, 31, readahead, flags, 12 << 16 | 16, 4096, granularity] {
                    out.extend(field.to_ne_bytes());
                }
                out.resize(64, 0);
                Ok(out)
            }
            LOOKUP => {
                let name = body.strip_suffix(&[0]).ok_or(Errno::INVAL)?;
                let id = self.node(node)?.children.get(name);
                let id = *id.ok_or(Errno::NOENT)?;
                let mut out = Vec::with_capacity(128);
                for field in [id, 0, FOR_EVER, FOR_EVER, 0] {
                    out.extend(field.to_ne_bytes());
                }
                self.attributes(id, &mut out)?;
                Ok(out)
            }
            GETATTR => {
                let mut out = Vec::with_capacity(104);
                out.extend(FOR_EVER.to_ne_bytes());
                out.extend(0_u64.to_ne_bytes());
                self.attributes(node as u64, &mut out)?;
                Ok(out)
            }
            READ => {
                let (offset, size) = (number64(body, 8), number32(body, 16) as usize);
                let (path, _) = self.node(node)?.file.as_ref().ok_or(Errno::ISDIR)?;
                let file = File::open(path).map_err(|_| Errno::IO)?;
                let size = size.min(data.len());
                let got = file.read_at(&mut data[..size], offset);
                Ok(data[..got.map_err(|_| Errno::IO)?].to_vec())
            }
            STATFS => Ok(vec![0; 80]),
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&self, id: usize) -> Result<&Node, Errno> {
        id.checked_sub(1)
            .and_then(|index| self.nodes.get(index))
            .ok_or(Errno::NOENT)
    }

    fn attributes(&self, id: u64, out: &mut Vec<u8>) -> Result<(), Errno> {
        let node = self.node(id as usize)?;
        let (mode, size) = match &node.file {
            Some((_, size)) => (0o100_644_u32, *size),
            None => (0o040_755, 4096),
        };
        for field in [id, size, size.div_ceil(512), 0, 0, 0] {
            out.extend(field.to_ne_bytes());
        }
        for field in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
            out.extend(field.to_ne_bytes());
        }
        Ok(())
    }
}

/// Dropped, it is unmounted and its thread ends.
pub(crate) struct Mounted {
    at: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
    part.map_or(0, u32::from_ne_bytes)
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    let part = bytes.get(at..at + 8).and_then(|part| part.try_into().ok());
    part.map_or(0, u64::from_ne_bytes)
}
