//! Which subtrees of an input tree are shown as shared ones.
//!
//! A shared subtree costs a mount of some 20 us and saves as much for each file in it that the action touches, if an
//! earlier action has touched it too. It is read-only, so that none may hold an output or a directory that was made for the action,
//! nor be within an output, all of which the action may change. What it could be is read-only for each action, whether it is shared or
//! not: what a command may do must not depend on what others did before it.
//!
//! What an earlier action brought is taken as large as possible; what is new is taken whole, so
//! that it is there for the next.

use std::collections::HashSet;
use std::sync::Arc;

use super::subtree::Subtree;
use super::upper::Way;

/// Directories that an action may not change, and as many parts in them.
const MOST: usize = 64;
/// Bytes of a path that is still mounted at: the kernel takes no longer one than 4 096, with what is above the root.
const LONGEST: usize = 3000;
/// Nodes from which a known subtree is worth a mount.
const KNOWN: u64 = 3;
/// The same for one that no earlier action had: a smaller one is shared when the second action brings it.
const NEW: u64 = 100;

/// A subtree to be shared, at a path below the root.
pub(super) struct Part {
    pub(super) path: String,
    pub(super) subtree: Arc<Subtree>,
}

/// How a tree is shown.
#[derive(Default)]
pub(super) struct Plan {
    /// Directories that the action may not change, and is to see as they are for itself, in no part.
    pub(super) closed: Vec<String>,
    /// What it sees as shared, largest first: all in directories that it may not change.
    pub(super) parts: Vec<Part>,
}

/// Chooses how action number `action` gets to see the tree. `ways` lead to directories that are made for it. What it may change depends on
/// nothing but these, the tree and the outputs. Only subtrees of `least` nodes are shared.
pub(super) fn plan(
    root: &Arc<Subtree>,
    ways: &[Way],
    outputs: &[String],
    action: u64,
    least: u64,
) -> Plan {
    let closed = closed(root, ways, outputs);
    let mut parts = Vec::new();
    for Part { path, subtree } in &closed {
        gather(path.clone(), subtree, action, &mut parts);
    }
    largest(&mut parts);
    parts.retain(|part| part.subtree.nodes >= least);
    let shared: HashSet<&str> = parts.iter().map(|part| &*part.path).collect();
    let closed = closed.into_iter().map(|closed| closed.path);
    Plan {
        closed: closed.filter(|path| !shared.contains(&**path)).collect(),
        parts,
    }
}

/// The largest directories that the action may not change: they are beside its outputs, or beside directories above those, and hold
/// something.
pub(super) fn closed(root: &Arc<Subtree>, ways: &[Way], outputs: &[String]) -> Vec<Part> {
    let outputs: HashSet<&str> = outputs.iter().map(String::as_str).collect();
    let ways = ways.iter().map(|way| way.path.as_str());
    let mut open: HashSet<&str> = HashSet::new();
    for path in ways.chain(outputs.iter().copied()) {
        open.insert(path);
        open.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    let mut closed = Vec::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, subtree)) = stack.pop() {
        if outputs.contains(path.as_str()) {
            continue;
        }
        for (name, child) in children(subtree) {
            let path = below(&path, name);
            if open.contains(path.as_str()) {
                stack.push((path, child));
            } else if child.nodes > 1 && path.len() <= LONGEST {
                let subtree = child.clone();
                closed.push(Part { path, subtree });
            }
        }
    }
    largest(&mut closed);
    closed
}

/// No more than can be mounted. Stable for what is equal, so that the same tree is always shown the same way.
fn largest(parts: &mut Vec<Part>) {
    parts.sort_by(|a, b| {
        { b.subtree.nodes.cmp(&a.subtree.nodes) }.then_with(|| a.path.cmp(&b.path))
    });
    parts.truncate(MOST);
}

/// The largest known subtrees at and below `subtree`, or itself if none is known. Says whether one is.
fn gather(path: String, subtree: &Arc<Subtree>, action: u64, parts: &mut Vec<Part>) -> bool {
    if path.len() > LONGEST {
        return false;
    }
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

#[cfg(test)]
mod tests {
    use super::super::subtree::tests::{directory, file};
    use super::*;

    fn paths(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let parts = plan.parts.iter().map(|part| &*part.path).collect();
        (plan.closed.iter().map(|path| &**path).collect(), parts)
    }

    #[test]
    fn nothing_is_mounted_where_the_path_is_too_long_for_it() {
        let small = directory(&[file("x", b"x")], &[]);
        let name = "n".repeat(200);
        let mut tree = small.clone();
        for _ in 0..20 {
            tree = directory(&[], &[("beside", small.clone()), (&name, tree)]);
        }
        let output = format!("{}/made", vec![&*name; 20].join("/"));
        let plan = plan(&tree, &[], &[output], 0, 0);
        let (closed, parts) = paths(&plan);
        assert_eq!(closed.len() + parts.len(), 15);
        assert!(
            closed
                .iter()
                .chain(&parts)
                .all(|path| path.len() <= LONGEST)
        );
    }

    #[test]
    fn what_may_not_be_changed_is_the_same_whatever_is_known() {
        let small = directory(&[file("x", b"x")], &[]);
        let known = directory(&[file("x", b"x"), file("y", b"y"), file("z", b"z")], &[]);
        let empty = directory(&[], &[]);
        let below = [("deep", known.clone()), ("none", empty.clone())];
        let holds = directory(&[], &below);
        let out = directory(&[file("a", b"a")], &[("lib", known.clone())]);
        let root = [
            ("empty", empty),
            ("holds", holds),
            ("out", out),
            ("small", small),
        ];
        let root = directory(&[file("own", b"own")], &root);
        let ways = super::super::upper::ways(&root, &["out".to_owned()]).unwrap();
        let outputs = ["out/made".to_owned()];
        // They are all of action 0: new to it, and known to the next.
        let (first, second) = (
            plan(&root, &ways, &outputs, 0, 0),
            plan(&root, &ways, &outputs, 1, 0),
        );
        assert_eq!(paths(&first), (vec!["holds", "out/lib", "small"], vec![]));
        assert_eq!(paths(&second), (vec!["small"], vec!["holds", "out/lib"]));
        let whole = plan(&root, &ways, &["out".to_owned()], 1, 0);
        assert_eq!(paths(&whole), (vec!["small"], vec!["holds"]));
    }

    #[test]
    fn what_is_shared_is_within_what_may_not_be_changed() {
        let many: Vec<(String, Arc<Subtree>)> = (0..80)
            .map(|n| {
                let files: Vec<_> = (0..3 + n % 2).map(|f| file(&f.to_string(), b"")).collect();
                (format!("d{n:02}"), directory(&files, &[]))
            })
            .collect();
        let many: Vec<(&str, Arc<Subtree>)> = { many.iter() }
            .map(|(name, subtree)| (&**name, subtree.clone()))
            .collect();
        let root = directory(&[], &many);
        let mut first = plan(&root, &[], &[], 0, 0).closed;
        let mut second: Vec<_> = { plan(&root, &[], &[], 1, 0).parts.into_iter() }
            .map(|part| part.path)
            .collect();
        first.sort();
        second.sort();
        assert_eq!(first.len(), MOST);
        assert_eq!(first, second);
    }
}
