//! One tree laid over another: `chrootRootDigest` names the tree that holds the tools, and the input root is merged into it.
//!
//! As with BuildBox, who brought the property up, what is in both must be equal: a file with the same name and another
//! content is a collision, not a replacement. Directories that only one of them has are shared, not copied.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use super::fetch::measure;
use super::{Directory, Properties, Tree, TreeError, TreeLimits, quote};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// Entries of directories that are in both trees, with repetition for each pair.
const MOST: usize = 1_000_000;

/// Why two trees cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Both have something else at one path.
    #[error("the input root and the tree of chrootRootDigest collide at {path}: {problem}")]
    Collision {
        /// Where.
        path: String,
        /// What each of them has there.
        problem: &'static str,
    },
    /// There is too much to merge.
    #[error(
        "the input root and the tree of chrootRootDigest share directories with more than {MOST} entries"
    )]
    TooMuch,
    /// The result is larger than a tree may be.
    #[error("merged with the tree of chrootRootDigest: {0}")]
    Tree(#[from] TreeError),
}

/// Merges `input` into `base`; both are whole.
pub fn merge(
    input: &Tree,
    base: &Tree,
    function: DigestFunction,
    limits: TreeLimits,
) -> Result<Tree, MergeError> {
    let mut merger = Merger {
        function,
        directories: base.directories.clone(),
        merged: HashMap::new(),
        entries: 0,
    };
    (merger.directories).extend(input.directories.iter().map(|(k, v)| (*k, v.clone())));
    let root = merger.directory(input.root, base.root, &mut String::new())?;
    let size = measure(&merger.directories, root, limits)?;
    Ok(Tree {
        root,
        directories: merger.directories,
        nodes: size.nodes,
        bytes: size.bytes,
    })
}

struct Merger {
    function: DigestFunction,
    directories: HashMap<Digest, Arc<Directory>>,
    /// Pairs that are merged already: the same two directories often meet at several paths.
    merged: HashMap<(Digest, Digest), Digest>,
    entries: usize,
}

impl Merger {
    /// Merges two directories. As deep as the shallower tree at most, and trees are bounded in depth.
    fn directory(
        &mut self,
        input: Digest,
        base: Digest,
        path: &mut String,
    ) -> Result<Digest, MergeError> {
        if input == base {
            return Ok(input);
        }
        if let Some(&known) = self.merged.get(&(input, base)) {
            return Ok(known);
        }
        let pair = (self.read(input), self.read(base));
        self.entries += pair.0.entries() + pair.1.entries();
        if self.entries > MOST {
            return Err(MergeError::TooMuch);
        }
        let merged = self.entries(&pair.0, &pair.1, path)?;
        let digest = self.function.digest(&message(&merged).encode_to_vec());
        self.directories.insert(digest, Arc::new(merged));
        self.merged.insert((input, base), digest);
        Ok(digest)
    }

    fn read(&self, digest: Digest) -> Arc<Directory> {
        self.directories.get(&digest).cloned().unwrap_or_default()
    }

    fn entries(
        &mut self,
        input: &Directory,
        base: &Directory,
        path: &mut String,
    ) -> Result<Directory, MergeError> {
        let mut merged = Directory {
            properties: input.properties.clone().or_else(|| base.properties.clone()),
            ..input.clone()
        };
        for file in &base.files {
            match Met::at(input, &file.name) {
                Met::Nothing => merged.files.push(file.clone()),
                Met::File(at) if (at.digest, at.executable) == (file.digest, file.executable) => {}
                met => return Err(collision(path, &file.name, met.beside("a file"))),
            }
        }
        for link in &base.symlinks {
            match Met::at(input, &link.name) {
                Met::Nothing => merged.symlinks.push(link.clone()),
                Met::Symlink(target) if *target == *link.target => {}
                met => return Err(collision(path, &link.name, met.beside("a symbolic link"))),
            }
        }
        for child in &base.directories {
            match Met::at(input, &child.name) {
                Met::Nothing => merged.directories.push(child.clone()),
                Met::Directory(index) => {
                    let length = path.len();
                    if length > 0 {
                        path.push('/');
                    }
                    path.push_str(&child.name);
                    let over = input.directories[index].digest;
                    merged.directories[index].digest = self.directory(over, child.digest, path)?;
                    path.truncate(length);
                }
                met => return Err(collision(path, &child.name, met.beside("a directory"))),
            }
        }
        merged.files.sort_by(|a, b| a.name.cmp(&b.name));
        merged.symlinks.sort_by(|a, b| a.name.cmp(&b.name));
        merged.directories.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(merged)
    }
}

/// What the input root has under a name.
enum Met<'a> {
    Nothing,
    File(&'a super::File),
    Symlink(&'a str),
    Directory(usize),
}

impl<'a> Met<'a> {
    fn at(directory: &'a Directory, name: &str) -> Met<'a> {
        if let Ok(i) = directory.files.binary_search_by(|f| (*f.name).cmp(name)) {
            Met::File(&directory.files[i])
        } else if let Ok(i) = directory.symlinks.binary_search_by(|s| (*s.name).cmp(name)) {
            Met::Symlink(&directory.symlinks[i].target)
        } else if let Ok(i) = (directory.directories).binary_search_by(|d| (*d.name).cmp(name)) {
            Met::Directory(i)
        } else {
            Met::Nothing
        }
    }

    fn beside(&self, other: &'static str) -> &'static str {
        match (self, other) {
            (Met::File(_), "a file") => "two files of different content or mode",
            (Met::Symlink(_), "a symbolic link") => "two symbolic links with different targets",
            (Met::File(_), _) => "one has a file there",
            (Met::Symlink(_), _) => "one has a symbolic link there",
            _ => "one has a directory there",
        }
    }
}

fn collision(path: &str, name: &str, problem: &'static str) -> MergeError {
    let path = match path.is_empty() {
        true => quote::path(name),
        false => quote::path(&format!("{path}/{name}")),
    };
    MergeError::Collision { path, problem }
}

/// The message, in canonical form: its lists are sorted.
fn message(directory: &Directory) -> re::Directory {
    re::Directory {
        files: (directory.files.iter())
            .map(|file| re::FileNode {
                name: file.name.to_string(),
                digest: Some(file.digest.to_proto()),
                is_executable: file.executable,
                node_properties: properties(&file.properties),
            })
            .collect(),
        directories: (directory.directories.iter())
            .map(|child| re::DirectoryNode {
                name: child.name.to_string(),
                digest: Some(child.digest.to_proto()),
            })
            .collect(),
        symlinks: (directory.symlinks.iter())
            .map(|link| re::SymlinkNode {
                name: link.name.to_string(),
                target: link.target.to_string(),
                node_properties: properties(&link.properties),
            })
            .collect(),
        node_properties: properties(&directory.properties),
    }
}

fn properties(of: &Option<Box<Properties>>) -> Option<re::NodeProperties> {
    let of = of.as_ref()?;
    let named = of.named.iter().map(|(name, value)| re::NodeProperty {
        name: name.clone(),
        value: value.clone(),
    });
    Some(re::NodeProperties {
        properties: named.collect(),
        mtime: of.mtime,
        unix_mode: of.unix_mode,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Node, TreeBuilder};
    use super::*;

    const F: DigestFunction = DigestFunction::Sha256;

    /// Files by path and content; a content that begins with `->` makes a symbolic link, an empty one a directory.
    fn tree(entries: &[(&str, &str)]) -> Tree {
        let mut builder = TreeBuilder::new(F);
        for (path, content) in entries {
            match content.strip_prefix("->") {
                Some(target) => builder.symlink(path, target, None).unwrap(),
                None if content.is_empty() => builder.directory(path).unwrap(),
                None => builder
                    .file(path, F.digest(content.as_bytes()), false, None)
                    .unwrap(),
            }
        }
        builder.tree()
    }

    #[test]
    fn a_merged_tree_is_what_a_tree_of_both_would_be() {
        let input = [
            ("src/a.c", "a"),
            ("usr/include/a.h", "h"),
            ("same", "s"),
            ("tmp", ""),
        ];
        let base = [
            ("usr/bin/cc", "cc"),
            ("usr/include/std.h", "std"),
            ("lib", "->usr/lib"),
            ("same", "s"),
        ];
        let both: Vec<_> = input[..2]
            .iter()
            .chain(&base)
            .chain(&input[3..])
            .copied()
            .collect();
        let merged = merge(&tree(&input), &tree(&base), F, TreeLimits::default()).unwrap();
        assert_eq!(merged.root, tree(&both).root);
        assert_eq!(merged.nodes, 11);
        assert_eq!(merged.bytes, 8);
        assert!(matches!(
            merged.lookup("usr/include/std.h"),
            Some(Node::File(_))
        ));
        let alone = merge(&tree(&[]), &tree(&base), F, TreeLimits::default()).unwrap();
        assert_eq!(alone.root, tree(&base).root);
    }

    #[test]
    fn collisions_are_told_with_their_path() {
        let base = tree(&[("usr/bin/cc", "cc"), ("lib", "->usr/lib")]);
        for (path, content) in [
            ("usr/bin/cc", "another"),
            ("usr/bin/cc/x", "x"),
            ("usr", "file"),
            ("lib", "->elsewhere"),
            ("lib/libc.so", "x"),
        ] {
            let input = tree(&[(path, content)]);
            let error = merge(&input, &base, F, TreeLimits::default()).unwrap_err();
            let MergeError::Collision { path: at, .. } = &error else {
                panic!("{path}: {error}")
            };
            assert!(path.starts_with(at), "{error}");
            assert!(matches!(
                merge(&base, &input, F, TreeLimits::default()),
                Err(MergeError::Collision { .. })
            ));
        }
    }

    #[test]
    fn the_result_is_bounded_like_every_tree() {
        let limits = TreeLimits {
            nodes: 3,
            ..TreeLimits::default()
        };
        let error = merge(&tree(&[("a/b", "x")]), &tree(&[("c/d", "x")]), F, limits);
        assert!(matches!(
            error,
            Err(MergeError::Tree(TreeError::TooLarge { .. }))
        ));
    }
}
