//! What became of each input, as a text for people who want to know which of them an action needs.
//!
//! ```text
//! boxwright input report 1
//! action: 5feceb66.../142
//! inputs: 5 files and links, 70012 bytes
//! read: 1, 12 bytes
//! looked at, never read: 1, 0 bytes
//! never used: 3, 70000 bytes
//! looked up in vain: 1
//!
//! read:
//! 12 src/main.c
//!
//! looked at, never read:
//! 0 src/configure.stamp
//!
//! never used:
//! 70000 toolchain/ (3)
//!
//! looked up in vain:
//! include/main.h
//! ```
//!
//! There is a tab behind the bytes. Lines are in the order of a walk through the tree, and hold nothing that changes from run
//! to run, so that two reports can be compared with `diff`. A directory of which nothing was used is one line, with the number
//! of files and links below it. The counts are always of everything, the lists are cut where they get too long.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::InputError;
use crate::beneath::{self, Links};
use crate::reapi::Digest;
use crate::tree::{Tree, quote};

/// Bytes of each list.
const LIST: usize = 512 << 10;

/// What a command did with its inputs: paths relative to the input root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Files that were opened, by whatever needs their content, and links that were followed.
    pub read: BTreeSet<String>,
    /// Files and links that were found by their name, which those that were read were as well.
    pub looked_at: BTreeSet<String>,
    /// There were too many to remember all of them.
    pub cut: bool,
    /// Where nothing was.
    pub in_vain: BTreeSet<String>,
}

impl Used {
    /// Leaves out of what was looked up in vain what is there by now: before it makes a file, a command looks whether
    /// there is one. `made` is the directory of what it made, which may be hostile. Blocks.
    pub fn leave_out_made(&mut self, made: &Path) -> Result<(), InputError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, made, flags | OFlags::DIRECTORY, Mode::empty());
        let top = top.map_err(|source| InputError::Disk {
            action: "open",
            object: made.display().to_string(),
            source: source.into(),
        })?;
        self.in_vain
            .retain(|path| beneath::open(&top, path, flags, Links::Refused).is_err());
        Ok(())
    }
}

/// The report of an action whose inputs were watched.
pub fn text(action: Digest, tree: &Tree, used: &Used) -> String {
    let mut report = Report {
        tree,
        used,
        below: HashMap::new(),
        touched: touched(used),
        lists: Default::default(),
    };
    report.walk();
    let [read, looked_at, unused] = &report.lists;
    let all = read.sum.and(looked_at.sum).and(unused.sum);
    let mut text = format!(
        "boxwright input report 1\naction: {action}\ninputs: {} files and links, {} bytes\n\
         read: {}\nlooked at, never read: {}\nnever used: {}\nlooked up in vain: {}\n",
        all.files,
        all.bytes,
        read.sum.shown(),
        looked_at.sum.shown(),
        unused.sum.shown(),
        used.in_vain.len(),
    );
    if used.cut {
        text += "incomplete: the command used more paths than are remembered\n";
    }
    let mut in_vain = List::default();
    for path in &used.in_vain {
        in_vain.line(|text| writeln!(text, "{}", quote::path(path)));
    }
    for (name, list) in [
        ("read", read),
        ("looked at, never read", looked_at),
        ("never used", unused),
        ("looked up in vain", &in_vain),
    ] {
        let _ = write!(text, "\n{name}:\n{}", list.text);
        if list.left_out > 0 {
            let _ = writeln!(text, "... and {} more lines", list.left_out);
        }
    }
    text
}

/// What is said instead for an action whose inputs could not be watched.
pub fn none(action: Digest, strategy: &str) -> String {
    format!(
        "boxwright input report 1\naction: {action}\n\n\
         There is none: this worker shows inputs as \"{strategy}\", where nobody sees which of them a command reads.\n\
         It needs a worker that shows them as \"fuse\" (boxwright worker --inputs fuse).\n"
    )
}

/// Every directory below which something was used.
fn touched(used: &Used) -> HashSet<&str> {
    let mut touched = HashSet::from([""]);
    for path in used.read.iter().chain(&used.looked_at) {
        for (at, _) in path.rmatch_indices('/') {
            if !touched.insert(&path[..at]) {
                break;
            }
        }
    }
    touched
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    files: u64,
    bytes: u64,
}

impl Sum {
    fn and(self, other: Sum) -> Sum {
        Sum {
            files: self.files.saturating_add(other.files),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn shown(self) -> String {
        format!("{}, {} bytes", self.files, self.bytes)
    }
}

#[derive(Default)]
struct List {
    sum: Sum,
    text: String,
    left_out: u64,
}

impl List {
    fn line(&mut self, write: impl FnOnce(&mut String) -> std::fmt::Result) {
        // Once full, nothing more comes in, however short: what is there is the beginning.
        if self.left_out > 0 || self.text.len() >= LIST {
            self.left_out += 1;
            return;
        }
        // Writing to a string does not fail.
        let _ = write(&mut self.text);
    }
}

struct Report<'r> {
    tree: &'r Tree,
    used: &'r Used,
    /// What is below each directory.
    below: HashMap<Digest, Sum>,
    touched: HashSet<&'r str>,
    /// Read, looked at, never used.
    lists: [List; 3],
}

/// An entry of a directory.
enum Entry {
    Directory(Digest),
    /// A file with its size, or a link.
    Leaf(u64),
}

impl<'r> Report<'r> {
    fn walk(&mut self) {
        // One path at a time, however many entries the directories on it have: the lengths are where each begins.
        let mut path = String::new();
        let mut ahead = vec![(0, self.entries(self.tree.root).into_iter())];
        while let Some((above, entries)) = ahead.last_mut() {
            let Some((name, entry)) = entries.next() else {
                ahead.pop();
                continue;
            };
            path.truncate(*above);
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(name);
            match entry {
                Entry::Leaf(bytes) => self.leaf(&path, bytes),
                Entry::Directory(digest) if self.touched.contains(path.as_str()) => {
                    ahead.push((path.len(), self.entries(digest).into_iter()));
                }
                Entry::Directory(digest) => self.unused(&path, digest),
            }
        }
    }

    /// The entries of a directory, by name.
    fn entries(&self, digest: Digest) -> Vec<(&'r str, Entry)> {
        let Some(directory) = self.tree.directories.get(&digest) else {
            return Vec::new();
        };
        let directories = directory.directories.iter();
        let files = directory.files.iter();
        let links = directory.symlinks.iter();
        let mut entries: Vec<_> = directories
            .map(|d| (&*d.name, Entry::Directory(d.digest)))
            .chain(files.map(|f| (&*f.name, Entry::Leaf(f.digest.size()))))
            .chain(links.map(|l| (&*l.name, Entry::Leaf(0))))
            .collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        entries
    }

    fn leaf(&mut self, path: &str, bytes: u64) {
        let [read, looked_at, unused] = &mut self.lists;
        let list = if self.used.read.contains(path) {
            read
        } else if self.used.looked_at.contains(path) {
            looked_at
        } else {
            unused
        };
        list.sum = list.sum.and(Sum { files: 1, bytes });
        list.line(|text| writeln!(text, "{bytes}\t{}", quote::path(path)));
    }

    fn unused(&mut self, path: &str, digest: Digest) {
        let sum = self.below(digest);
        let [_, _, unused] = &mut self.lists;
        unused.sum = unused.sum.and(sum);
        if sum.files > 0 {
            let Sum { files, bytes } = sum;
            unused.line(|text| writeln!(text, "{bytes}\t{}/ ({files})", quote::path(path)));
        }
    }

    /// What is below a directory, each distinct one added up once.
    fn below(&mut self, digest: Digest) -> Sum {
        let mut stack = vec![(digest, false)];
        while let Some((digest, children_are_known)) = stack.pop() {
            if self.below.contains_key(&digest) {
                continue;
            }
            let Some(directory) = self.tree.directories.get(&digest) else {
                continue;
            };
            if !children_are_known {
                stack.push((digest, true));
                stack.extend(directory.directories.iter().map(|d| (d.digest, false)));
                continue;
            }
            let files = directory.files.iter().map(|file| Sum {
                files: 1,
                bytes: file.digest.size(),
            });
            let links = directory
                .symlinks
                .iter()
                .map(|_| Sum { files: 1, bytes: 0 });
            let children = directory.directories.iter();
            let children = children.filter_map(|child| self.below.get(&child.digest).copied());
            let sum = { files.chain(links).chain(children) }.fold(Sum::default(), Sum::and);
            self.below.insert(digest, sum);
        }
        self.below.get(&digest).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::{Directory, File, Subdirectory, Symlink};

    const F: DigestFunction = DigestFunction::Sha256;

    fn file(name: &str, bytes: usize) -> File {
        File {
            name: name.into(),
            digest: F.digest(&vec![b'x'; bytes]),
            executable: false,
            properties: None,
        }
    }

    fn tree(root: Directory, others: Vec<Directory>) -> Tree {
        let digest = |n: usize| F.digest(n.to_string().as_bytes());
        let all = std::iter::once(root).chain(others);
        let directories = all.enumerate().map(|(n, d)| (digest(n), Arc::new(d)));
        Tree {
            root: digest(0),
            directories: directories.collect(),
            nodes: 0,
            bytes: 0,
        }
    }

    fn below(name: &str, n: usize) -> Subdirectory {
        Subdirectory {
            name: name.into(),
            digest: F.digest(n.to_string().as_bytes()),
        }
    }

    fn paths(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn every_input_is_in_one_list_and_unused_directories_are_one_line() {
        let tools = Directory {
            files: vec![file("cc", 4000), file("ld", 3000)],
            ..Directory::default()
        };
        let both = Directory {
            directories: vec![below("one", 1), below("two", 1)],
            ..Directory::default()
        };
        let source = Directory {
            files: vec![file("a.c", 10), file("b\n.c", 20), file("c.c", 0)],
            symlinks: vec![Symlink {
                name: "b.link".into(),
                target: "a.c".into(),
                properties: None,
            }],
            ..Directory::default()
        };
        let root = Directory {
            directories: vec![below("empty", 4), below("src", 3), below("tools", 2)],
            files: vec![file("README", 7)],
            ..Directory::default()
        };
        let tree = tree(root, vec![tools, both, source, Directory::default()]);
        let used = Used {
            read: paths(&["src/a.c", "src/b.link"]),
            looked_at: paths(&["src/a.c", "src/c.c"]),
            in_vain: paths(&["include", "src/a.h"]),
            ..Used::default()
        };
        insta::assert_snapshot!(text(F.digest(b"action"), &tree, &used));
        insta::assert_snapshot!(none(F.digest(b"action"), "staged"));
    }

    #[test]
    fn a_long_list_is_cut_and_its_counts_are_not() {
        let long = "n".repeat(200);
        let files = (0..20_000).map(|n| file(&format!("{long}{n:05}"), 1));
        let root = Directory {
            files: files.collect(),
            ..Directory::default()
        };
        let used = Used {
            in_vain: (0..20_000).map(|n| format!("{long}/{n}")).collect(),
            cut: true,
            ..Used::default()
        };
        let text = text(F.digest(b"action"), &tree(root, Vec::new()), &used);
        assert!(text.len() < 3 * LIST, "{}", text.len());
        assert!(text.contains("\nnever used: 20000, 20000 bytes\nlooked up in vain: 20000\n"));
        assert!(text.contains("\nincomplete: "));
        let shown = text
            .lines()
            .filter(|line| line.starts_with("1\tnnn"))
            .count();
        assert!(text.contains(&format!("... and {} more lines\n", 20_000 - shown)));
    }
}
