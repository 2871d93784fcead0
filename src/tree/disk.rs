//! A tree from a directory on disk, for whoever uploads one: `boxwright run --input` and
//! `boxwright cas put`. Blocks; what is read belongs to the caller, so links above it are followed,
//! those within it are kept as links.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::{BuildError, TreeBuilder, quote};
use crate::reapi::{Digest, DigestFunction};

/// A directory on disk, as a tree.
#[derive(Clone, Debug)]
pub struct DiskTree {
    /// The root's digest.
    pub root: Digest,
    /// Every Directory message, children before parents.
    pub directories: Vec<(Digest, Bytes)>,
    /// Every distinct file content, with a file that has it.
    pub files: Vec<(Digest, PathBuf)>,
}

/// Why a directory on disk cannot be a tree.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Disk {
        /// The attempted operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something that a tree cannot hold.
    #[error("cannot upload {path}: {problem}")]
    Refused {
        /// Its path, escaped.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The entries do not make a tree.
    #[error(transparent)]
    Build(#[from] BuildError),
}

struct Found {
    /// Relative to the directory, with slashes.
    name: String,
    path: PathBuf,
    executable: bool,
}

/// Reads a directory: names, links, executable bits (any `x` bit), and the digest of every file, on as many threads as
/// there are processors.
pub fn from_disk(directory: &Path, function: DigestFunction) -> Result<DiskTree, DiskError> {
    let mut tree = TreeBuilder::new(function);
    let files = walk(directory, &mut tree)?;
    let digests = hash_all(&files, function)?;
    let mut seen = HashSet::new();
    let mut contents = Vec::new();
    for (file, digest) in files.into_iter().zip(digests) {
        tree.file(&file.name, digest, file.executable, None)?;
        if seen.insert(digest) {
            contents.push((digest, file.path));
        }
    }
    let (root, directories) = tree.finish();
    Ok(DiskTree {
        root,
        directories,
        files: contents,
    })
}

fn walk(root: &Path, tree: &mut TreeBuilder) -> Result<Vec<Found>, DiskError> {
    let mut files = Vec::new();
    let mut queue = vec![(root.to_owned(), String::new())];
    while let Some((directory, prefix)) = queue.pop() {
        let disk = |action| {
            let path = directory.clone();
            move |source| DiskError::Disk {
                action,
                path,
                source,
            }
        };
        for entry in std::fs::read_dir(&directory).map_err(disk("list directory"))? {
            let entry = entry.map_err(disk("list directory"))?;
            let path = entry.path();
            let name = text(entry.file_name().as_bytes(), &path)?;
            let name = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            let failed = |action| {
                let path = path.clone();
                move |source| DiskError::Disk {
                    action,
                    path,
                    source,
                }
            };
            let kind = entry.metadata().map_err(failed("look at"))?;
            if kind.is_file() {
                let executable = kind.permissions().mode() & 0o111 != 0;
                files.push(Found {
                    name,
                    path,
                    executable,
                });
            } else if kind.is_dir() {
                tree.directory(&name)?;
                queue.push((path, name));
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).map_err(failed("read link"))?;
                let target = text(target.as_os_str().as_bytes(), &path)?;
                tree.symlink(&name, &target, None)?;
            } else {
                let kind = kind.file_type();
                let what = if kind.is_fifo() {
                    "a named pipe"
                } else if kind.is_socket() {
                    "a socket"
                } else {
                    "a device"
                };
                return Err(DiskError::Refused {
                    path: quote::bytes(path.as_os_str().as_bytes()),
                    problem: format!(
                        "it is {what}; only files, directories and symbolic links can be inputs"
                    ),
                });
            }
        }
    }
    Ok(files)
}

fn text(bytes: &[u8], path: &Path) -> Result<String, DiskError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(DiskError::Refused {
            path: quote::bytes(path.as_os_str().as_bytes()),
            problem: format!(
                "{} is not UTF-8, as names in a tree are",
                quote::bytes(bytes)
            ),
        }),
    }
}

fn hash_all(files: &[Found], function: DigestFunction) -> Result<Vec<Digest>, DiskError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; super::READ_BUFFER];
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(index) else {
                return Ok(done);
            };
            match hash(&file.path, function, &mut buffer) {
                Ok(digest) => done.push((index, digest)),
                Err(source) => {
                    next.store(files.len(), Ordering::Relaxed);
                    return Err(DiskError::Disk {
                        action: "read",
                        path: file.path.clone(),
                        source,
                    });
                }
            }
        }
    };
    let results: Vec<Result<Vec<(usize, Digest)>, DiskError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(files.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut results = vec![work()];
        for other in others {
            results.push(other.join().unwrap_or_else(|panic| {
                std::panic::resume_unwind(panic);
            }));
        }
        results
    });
    let mut digests = vec![Digest::empty(function); files.len()];
    for result in results {
        for (index, digest) in result? {
            digests[index] = digest;
        }
    }
    Ok(digests)
}

fn hash(path: &Path, function: DigestFunction, buffer: &mut [u8]) -> io::Result<Digest> {
    // Something else may have come in the file's place: a pipe must not block, a link not be followed.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    super::digest_file(&file, function, buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("src/empty")).unwrap();
        std::fs::write(root.join("src/a.c"), "a").unwrap();
        std::fs::write(root.join("same"), "a").unwrap();
        std::fs::write(root.join("run.sh"), "#!").unwrap();
        let mode = std::fs::Permissions::from_mode(0o654);
        std::fs::set_permissions(root.join("run.sh"), mode).unwrap();
        symlink("/nowhere/at all", root.join("link")).unwrap();

        let read = from_disk(root, DigestFunction::Sha256).unwrap();

        let blob = |text: &str| DigestFunction::Sha256.digest(text.as_bytes());
        let mut tree = TreeBuilder::new(DigestFunction::Sha256);
        tree.directory("src/empty").unwrap();
        tree.file("src/a.c", blob("a"), false, None).unwrap();
        tree.file("same", blob("a"), false, None).unwrap();
        tree.file("run.sh", blob("#!"), true, None).unwrap();
        tree.symlink("link", "/nowhere/at all", None).unwrap();
        assert_eq!((read.root, read.directories), tree.finish());
        let mut digests: Vec<_> = read.files.iter().map(|(digest, _)| *digest).collect();
        digests.sort();
        let mut expected = vec![blob("a"), blob("#!")];
        expected.sort();
        assert_eq!(digests, expected);
    }

    #[test]
    fn what_a_tree_cannot_hold_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
        let error = from_disk(dir.path(), DigestFunction::Sha256).unwrap_err();
        assert!(error.to_string().contains("sock"), "{error}");
        assert!(error.to_string().contains("a socket"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
        std::fs::write(dir.path().join(name), "").unwrap();
        let error = from_disk(dir.path(), DigestFunction::Sha256).unwrap_err();
        assert!(error.to_string().contains(r"caf\xe9"), "{error}");
        assert!(from_disk(&dir.path().join("none"), DigestFunction::Sha256).is_err());
    }
}
