//! Which subtrees of an input tree are shown as shared ones.
//!
//! A shared subtree costs a mount of some 20 us and saves as much for each file in it that the action touches, if an
//! earlier action has touched it too. It is read-only, so that none may hold an output or a directory that was made for the action,
//! nor be within an output, all of which the action may change.
//! What an earlier action brought is taken as large as possible; what is new is taken whole, so
//! that it is there for the next.

use std::collections::HashSet;
use std::sync::Arc;

use super::subtree::Subtree;
use super::upper::Way;

/// Mounts per action.
const MOST: usize = 64;
/// Nodes from which a known subtree is worth a mount.
const KNOWN: u64 = 3;
/// The same for one that no earlier action had: a smaller one is shared when the second action brings it.
const NEW: u64 = 100;

/// A subtree to be shared, at a path below the root.
pub(super) struct Part {
    pub(super) path: String,
    pub(super) subtree: Arc<Subtree>,
}

/// Chooses the parts of the tree that action number `action` gets to see as shared ones, largest first. `ways` lead to directories that
/// are made for it.
pub(super) fn parts(root: &Subtree, ways: &[Way], outputs: &[String], action: u64) -> Vec<Part> {
    let outputs: HashSet<&str> = outputs.iter().map(String::as_str).collect();
    let ways = ways.iter().map(|way| way.path.as_str());
    let mut open: HashSet<&str> = HashSet::new();
    for path in ways.chain(outputs.iter().copied()) {
        open.insert(path);
        open.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    let mut parts = Vec::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, subtree)) = stack.pop() {
        if outputs.contains(path.as_str()) {
            continue;
        }
        for (name, child) in children(subtree) {
            let path = below(&path, name);
            if open.contains(path.as_str()) {
                stack.push((path, child));
            } else {
                gather(path, child, action, &mut parts);
            }
        }
    }
    // Stable for what is equal, so that the same tree is always shown the same way.
    parts.sort_by(|a, b| {
        { b.subtree.nodes.cmp(&a.subtree.nodes) }.then_with(|| a.path.cmp(&b.path))
    });
    parts.truncate(MOST);
    parts
}

/// The largest known subtrees at and below `subtree`, or itself if none is known. Says whether one is.
fn gather(path: String, subtree: &Arc<Subtree>, action: u64, parts: &mut Vec<Part>) -> bool {
    let known = subtree.since < action;
    let before = parts.len();
    if !known {
        let mut any = false;
        for (name, child) in children(subtree) {
            any |= gather(below(&path, name), child, action, parts);
        }
        if any {
            return true;
        }
    }
    let worth = subtree.nodes >= if known { KNOWN } else { NEW };
    // A large file is read faster where it is shared, also the first time.
    if worth || subtree.large > 0 {
        parts.truncate(before);
        let subtree = subtree.clone();
        parts.push(Part { path, subtree });
    }
    known
}

fn children(subtree: &Subtree) -> impl Iterator<Item = (&str, &Arc<Subtree>)> {
    let names = subtree.directory.directories.iter().map(|d| &*d.name);
    names.zip(&*subtree.children)
}

pub(super) fn below(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}/{name}"),
    }
}
