//! Questions to a whole tree: what is at a path, which blobs it needs, where a blob is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Directory, File, Symlink, Tree};
use crate::cas::{Wanted, disk_size};
use crate::reapi::Digest;

/// What is at a path.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// A regular file.
    File(&'a File),
    /// A directory.
    Directory(Digest, &'a Arc<Directory>),
    /// A symbolic link; not followed.
    Symlink(&'a Symlink),
}

impl Directory {
    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.files.len() + self.directories.len() + self.symlinks.len()
    }

    /// The subdirectory of this name.
    pub(crate) fn subdirectory(&self, name: &str) -> Option<Digest> {
        let at = self
            .directories
            .binary_search_by(|d| (*d.name).cmp(name))
            .ok()?;
        Some(self.directories[at].digest)
    }
}

impl Tree {
    /// What is at `path`, which is relative to the root and clean; the root itself at "". Links are not followed.
    pub fn lookup(&self, path: &str) -> Option<Node<'_>> {
        let (digest, at) = self.directories.get_key_value(&self.root)?;
        let mut found = Node::Directory(*digest, at);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Node::Directory(_, at) = found else {
                return None;
            };
            found = if let Some(digest) = at.subdirectory(name) {
                let (digest, at) = self.directories.get_key_value(&digest)?;
                Node::Directory(*digest, at)
            } else if let Ok(i) = at.files.binary_search_by(|f| (*f.name).cmp(name)) {
                Node::File(&at.files[i])
            } else {
                let i = at.symlinks.binary_search_by(|s| (*s.name).cmp(name)).ok()?;
                Node::Symlink(&at.symlinks[i])
            };
        }
        Some(found)
    }

    /// Every distinct file content, once for each of its two kinds. The empty blob, which nobody needs to fetch, is
    /// left out.
    pub fn blobs(&self) -> Vec<Wanted> {
        let mut seen = HashSet::new();
        let files = self.directories.values().flat_map(|d| &d.files);
        files
            .filter(|file| !file.digest.is_empty())
            .map(|file| Wanted {
                digest: file.digest,
                executable: file.executable,
            })
            .filter(|wanted| seen.insert(*wanted))
            .collect()
    }

    /// The bytes of disk of those, if they are more than the `most` of a store that is to hold all of them at once.
    pub(crate) fn bytes_beyond(&self, most: u64) -> Option<u64> {
        // Each file for itself they are no fewer, and that is known but for what is unused of their last blocks.
        let unused = self.nodes.saturating_mul(disk_size(1));
        if self.bytes.saturating_add(unused) <= most {
            return None;
        }
        let blobs = self.blobs();
        let sizes = { blobs.iter() }.map(|wanted| disk_size(wanted.digest.size()));
        Some(sizes.fold(0, u64::saturating_add)).filter(|needed| *needed > most)
    }

    /// One path for each of these blobs that the tree holds as a file, found in one walk.
    pub fn paths_of(&self, digests: &[Digest]) -> HashMap<Digest, String> {
        self.paths_within(digests, usize::MAX)
    }

    /// The same of as many as have so many bytes of paths together, and perhaps one more: a path may be as long as the tree is deep. What
    /// lies higher comes first.
    pub fn paths_within(&self, digests: &[Digest], bytes: usize) -> HashMap<Digest, String> {
        let mut left = Some(bytes);
        let mut wanted: HashSet<Digest> = digests.iter().copied().collect();
        let mut found = HashMap::new();
        // Each distinct directory is looked at once, under the path where it is met first.
        let mut parents: HashMap<Digest, (Digest, &str)> = HashMap::new();
        let mut queue = vec![self.root];
        let mut next = 0;
        while let Some(&digest) = queue.get(next)
            && !wanted.is_empty()
        {
            next += 1;
            let Some(directory) = self.directories.get(&digest) else {
                continue;
            };
            for file in &directory.files {
                if wanted.remove(&file.digest) {
                    let path = path_to(&parents, self.root, digest, &file.name);
                    left = left.and_then(|left| left.checked_sub(path.len()));
                    found.insert(file.digest, path);
                    if left.is_none() {
                        return found;
                    }
                }
            }
            for child in &directory.directories {
                if child.digest != self.root && !parents.contains_key(&child.digest) {
                    parents.insert(child.digest, (digest, &child.name));
                    queue.push(child.digest);
                }
            }
        }
        found
    }
}

/// The path of `name` in the directory `at`, climbing by the way on which each directory was met first.
pub(super) fn path_to<N: AsRef<str>>(
    parents: &HashMap<Digest, (Digest, N)>,
    root: Digest,
    mut at: Digest,
    name: &str,
) -> String {
    let mut segments = vec![name];
    while at != root
        && let Some((parent, name)) = parents.get(&at)
    {
        segments.push(name.as_ref());
        at = *parent;
    }
    segments.retain(|s| !s.is_empty());
    segments.reverse();
    segments.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction::Sha256;

    #[test]
    fn small_files_take_whole_blocks_of_a_store() {
        let file = |name: &str, content: &[u8]| File {
            name: name.into(),
            digest: Sha256.digest(content),
            executable: false,
            properties: None,
        };
        let directory = Directory {
            // Two of one content, and two others.
            files: vec![
                file("a", b"a"),
                file("b", b"a"),
                file("c", b"c"),
                file("d", b"d"),
            ],
            ..Directory::default()
        };
        let root = Sha256.digest(b"root");
        let tree = Tree {
            root,
            directories: HashMap::from([(root, Arc::new(directory))]),
            nodes: 5,
            bytes: 4,
        };
        let three = 3 * disk_size(1);
        assert_eq!(tree.bytes_beyond(three), None);
        assert_eq!(tree.bytes_beyond(three - 1), Some(three));
        assert_eq!(tree.bytes_beyond(u64::MAX), None);
    }
}
