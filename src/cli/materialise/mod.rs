//! Files, directories and links out of a CAS onto the disk, for `run`'s outputs and `cas get`.
//!
//! What comes from a server cannot leave the destination: paths and names are checked, links are made
//! last, and no link within the destination is followed while writing. Contents are verified; a file
//! appears whole, under its name, or not at all.

mod destination;
mod directories;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::blobs::blocking;
use super::exit::{Exit, Failure};
use super::progress::Progress;
use crate::cas::{BlobSource, CasError};
use crate::reapi::Digest;
use crate::tree::{Directory, TreeLimits};

use destination::Destination;
pub(super) use directories::{Directories, fetch, of_tree};

/// A place for a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: String,
    executable: bool,
}

/// What to write, by path relative to the destination.
#[derive(Debug, Default)]
pub(super) struct Plan {
    directories: BTreeSet<String>,
    files: HashMap<Digest, Vec<Place>>,
    links: BTreeMap<String, String>,
    nodes: u64,
}

impl Plan {
    /// A file; `path` comes from a server.
    pub(super) fn file(
        &mut self,
        path: &str,
        digest: Digest,
        executable: bool,
    ) -> Result<(), Failure> {
        let place = Place {
            path: checked(path)?,
            executable,
        };
        self.count()?;
        self.files.entry(digest).or_default().push(place);
        Ok(())
    }

    /// A symbolic link; the target is kept as it is and never followed.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), Failure> {
        let path = checked(path)?;
        if target.is_empty() || target.contains('\0') {
            return Err(refused(&path, "is a link without a usable target"));
        }
        self.count()?;
        self.links.insert(path, target.to_owned());
        Ok(())
    }

    /// A whole directory; "" is the destination itself.
    pub(super) fn tree(
        &mut self,
        path: &str,
        root: Digest,
        all: &Directories,
    ) -> Result<(), Failure> {
        let path = match path {
            "" => String::new(),
            path => checked(path)?,
        };
        let depth = TreeLimits::default().depth as usize;
        let mut queue = vec![(path, root, 0)];
        while let Some((path, digest, level)) = queue.pop() {
            let directory: &Arc<Directory> = all
                .get(&digest)
                .ok_or_else(|| Failure::from(CasError::Missing(vec![digest])))?;
            if level > depth {
                return Err(refused(
                    &path,
                    &format!("is more than {depth} directories deep"),
                ));
            }
            self.count()?;
            let below = |name: &str| match path.as_str() {
                "" => name.to_owned(),
                path => format!("{path}/{name}"),
            };
            for file in &directory.files {
                self.file(&below(&file.name), file.digest, file.executable)?;
            }
            for link in &directory.symlinks {
                self.link(&below(&link.name), &link.target)?;
            }
            for child in &directory.directories {
                queue.push((below(&child.name), child.digest, level + 1));
            }
            self.directories.insert(path);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Failure> {
        self.nodes += 1;
        let limit = TreeLimits::default().nodes;
        if self.nodes > limit {
            return Err(Failure::new(
                Exit::Data,
                format!("more than {limit} files and directories"),
            ));
        }
        Ok(())
    }

    /// Writes it all below `destination`, which is made if it does not exist. What is there already and in nobody's way stays.
    pub(super) async fn write(
        self,
        source: &dyn BlobSource,
        destination: &Path,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let path = destination.to_owned();
        let directories = self.directories;
        let target = blocking(move || {
            let target = Destination::open(&path)?;
            directories
                .iter()
                .try_for_each(|path| target.directory(path))?;
            Ok(Arc::new(target))
        })
        .await?;
        let _given_up = GiveUp(target.clone());
        let total = self
            .files
            .iter()
            .map(|(digest, places)| digest.size() * places.len() as u64)
            .sum();
        progress.bytes("downloading", total);
        let limit = source.batch_limit().min(BATCH);
        let (mut batch, mut size) = (HashMap::new(), 0);
        for (digest, places) in self.files {
            if digest.size() > limit {
                stream(source, &target, digest, places, progress).await?;
                continue;
            }
            if size + digest.size() > limit || batch.len() == BATCH_BLOBS {
                fetch_batch(source, &target, std::mem::take(&mut batch), progress).await?;
                size = 0;
            }
            size += digest.size();
            batch.insert(digest, places);
        }
        fetch_batch(source, &target, batch, progress).await?;
        blocking(move || {
            self.links
                .iter()
                .try_for_each(|(path, link)| target.link(path, link))
        })
        .await
    }
}

/// Tells the threads that write when nobody waits for them any more.
struct GiveUp(Arc<Destination>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// The bytes that travel in one call.
const BATCH: u64 = 2 << 20;
/// The blobs that travel in one call.
const BATCH_BLOBS: usize = 1000;

async fn fetch_batch(
    source: &dyn BlobSource,
    target: &Arc<Destination>,
    mut batch: HashMap<Digest, Vec<Place>>,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut found: Vec<(Bytes, Vec<Place>)> = Vec::with_capacity(batch.len());
    for (digest, places) in batch.extract_if(|digest, _| digest.is_empty()) {
        debug_assert!(digest.is_empty());
        found.push((Bytes::new(), places));
    }
    if !batch.is_empty() {
        let wanted: Vec<Digest> = batch.keys().copied().collect();
        let mut sink = |digest, data| {
            if let Some(places) = batch.remove(&digest) {
                found.push((data, places));
            }
        };
        let missing = source.read_batch(&wanted, &mut sink).await?;
        if !missing.is_empty() {
            return Err(CasError::Missing(missing).into());
        }
    }
    let target = target.clone();
    let written = blocking(move || {
        let mut bytes = 0;
        for (data, places) in &found {
            for place in places {
                target.whole(&place.path, data, place.executable)?;
                bytes += data.len() as u64;
            }
        }
        Ok(bytes)
    })
    .await?;
    progress.advance(written);
    Ok(())
}

/// A blob too large for memory: straight into the first of its places, from there into the others.
async fn stream(
    source: &dyn BlobSource,
    target: &Arc<Destination>,
    digest: Digest,
    places: Vec<Place>,
    progress: &Progress,
) -> Result<(), Failure> {
    let Some((first, others)) = places.split_first() else {
        return Ok(());
    };
    let mut file = target.begin(&first.path, first.executable)?;
    let mut hasher = digest.function().hasher();
    let mut broken = None;
    let mut sink = |piece: Bytes| {
        // Pieces are written where they arrive: a copy into the page cache, which does not wait for the disk.
        if let Err(failure) = file.write(&piece) {
            broken = Some(failure);
            return Err(CasError::Missing(vec![digest]));
        }
        hasher.update(&piece);
        progress.advance(piece.len() as u64);
        Ok(())
    };
    let streamed = source.read_stream(digest, &mut sink).await;
    if let Some(failure) = broken {
        return Err(failure);
    }
    streamed?;
    let actual = hasher.finish();
    if actual != digest {
        return Err(CasError::Corrupt {
            expected: digest,
            actual,
        }
        .into());
    }
    file.finish()?;
    let (target, first, others) = (target.clone(), first.clone(), others.to_vec());
    blocking(move || {
        others
            .iter()
            .try_for_each(|other| target.copy(&first.path, &other.path, other.executable))
    })
    .await
}

/// A path from a server, refused unless it stays below where it is put.
fn checked(path: &str) -> Result<String, Failure> {
    let bad = path.is_empty()
        || path.len() > 4095
        || path.contains('\0')
        || path
            .split('/')
            .any(|segment| matches!(segment, "" | "." | ".."));
    match bad {
        true => Err(refused(path, "is not a path below the destination")),
        false => Ok(path.to_owned()),
    }
}

fn refused(path: &str, why: &str) -> Failure {
    let shown: String = path.chars().take(200).collect();
    Failure::new(Exit::Data, format!("refusing to write {shown:?}: it {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::{File, Subdirectory, Symlink};

    fn digest(text: &str) -> Digest {
        DigestFunction::Sha256.digest(text.as_bytes())
    }

    #[test]
    fn paths_stay_below_the_destination() {
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            "a/",
            "a\0b",
            "..",
        ] {
            let error = Plan::default().file(path, digest("x"), false).unwrap_err();
            assert_eq!(error.exit, Exit::Data, "{path:?}");
            assert!(Plan::default().link(path, "t").is_err());
            assert!(
                path.is_empty()
                    || Plan::default()
                        .tree(path, digest("x"), &HashMap::new())
                        .is_err()
            );
        }
    }

    #[test]
    fn a_tree_is_flattened() {
        let leaf = Directory {
            files: vec![File {
                name: "f".into(),
                digest: digest("f"),
                executable: true,
                properties: None,
            }],
            symlinks: vec![Symlink {
                name: "l".into(),
                target: "../f".into(),
                properties: None,
            }],
            ..Directory::default()
        };
        let twice = |name: &str| Subdirectory {
            name: name.into(),
            digest: digest("leaf"),
        };
        let root = Directory {
            directories: vec![twice("a"), twice("b")],
            ..Directory::default()
        };
        let all = [
            (digest("leaf"), Arc::new(leaf)),
            (digest("root"), Arc::new(root)),
        ]
        .into_iter()
        .collect();
        let mut plan = Plan::default();
        plan.tree("out", digest("root"), &all).unwrap();
        assert_eq!(plan.files.values().map(Vec::len).sum::<usize>(), 2);
        assert_eq!(
            plan.links.keys().collect::<Vec<_>>(),
            ["out/a/l", "out/b/l"]
        );
        assert!(plan.tree("", digest("nowhere"), &all).is_err());
    }

    #[test]
    fn an_exploding_tree_ends_at_a_bound() {
        // Each level holds the next one twice: 2^40 directories in 41 messages.
        let mut all = HashMap::new();
        let name = |level: usize| digest(&format!("level {level}"));
        for level in 0..40 {
            let twice = |text: &str| Subdirectory {
                name: text.into(),
                digest: name(level + 1),
            };
            let directory = Directory {
                directories: vec![twice("a"), twice("b")],
                ..Directory::default()
            };
            all.insert(name(level), Arc::new(directory));
        }
        all.insert(name(40), Arc::new(Directory::default()));
        let mut plan = Plan {
            nodes: TreeLimits::default().nodes - 100,
            ..Plan::default()
        };
        assert_eq!(plan.tree("", name(0), &all).unwrap_err().exit, Exit::Data);
    }
}
