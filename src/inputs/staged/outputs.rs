//! The declared outputs that are inputs: files that the action may write in place, and so never share with the store.

use std::collections::HashSet;

use crate::tree::{Node, Tree};

/// Symbolic links that are followed on one way, as many as the kernel does.
const LINKS: usize = 40;

/// Where they are in the tree, through no link.
#[derive(Default)]
pub(super) struct Outputs {
    paths: HashSet<String>,
    /// The directories that they are in.
    parents: HashSet<String>,
}

impl Outputs {
    /// Those of `declared` that the tree has.
    pub(super) fn of(tree: &Tree, declared: &[String]) -> Self {
        let paths: HashSet<String> = { declared.iter() }
            .filter_map(|path| real(tree, path))
            .collect();
        let parents = { paths.iter() }
            .filter(|path| !path.is_empty())
            .map(|path| parent(path).to_owned())
            .collect();
        Outputs { paths, parents }
    }

    /// Whether a file or directory is declared itself.
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// Whether anything that is directly in a directory may be declared.
    pub(super) fn any_in(&self, directory: &str) -> bool {
        self.parents.contains(directory)
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// What a path leads to, if that is in the tree.
fn real(tree: &Tree, path: &str) -> Option<String> {
    let mut ahead: Vec<&str> = path.split('/').rev().collect();
    let (mut at, mut links) = (String::new(), 0);
    while let Some(name) = ahead.pop() {
        match name {
            "" | "." => continue,
            ".." if at.is_empty() => return None,
            ".." => {
                at.truncate(parent(&at).len());
                continue;
            }
            _ => {}
        }
        let before = at.len();
        if before > 0 {
            at.push('/');
        }
        at.push_str(name);
        if let Node::Symlink(link) = tree.lookup(&at)? {
            links += 1;
            if links > LINKS || link.target.starts_with('/') {
                return None;
            }
            at.truncate(before);
            ahead.extend(link.target.split('/').rev());
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::TreeBuilder;

    fn tree() -> Tree {
        const F: DigestFunction = DigestFunction::Sha256;
        let mut tree = TreeBuilder::new(F);
        let file = F.digest(b"x");
        for path in ["top", "a/b/file", "a/other"] {
            tree.file(path, file, false, None).unwrap();
        }
        for (path, target) in [
            ("to-b", "a/b"),
            ("a/up", "../top"),
            ("a/b/far", "../../to-b/./file"),
            ("out", "../outside"),
            ("absolute", "/etc"),
            ("loop", "loop"),
            ("nowhere", "none"),
        ] {
            tree.symlink(path, target, None).unwrap();
        }
        tree.tree()
    }

    #[test]
    fn outputs_are_found_where_links_lead() {
        let tree = tree();
        for (path, at) in [
            ("", Some("")),
            ("top", Some("top")),
            ("a/b", Some("a/b")),
            ("to-b", Some("a/b")),
            ("to-b/file", Some("a/b/file")),
            ("a/up", Some("top")),
            ("to-b/far", Some("a/b/file")),
            ("a/new", None),
            ("top/below", None),
            ("out/file", None),
            ("absolute", None),
            ("loop", None),
            ("nowhere", None),
        ] {
            assert_eq!(real(&tree, path).as_deref(), at, "{path}");
        }
        let outputs = Outputs::of(&tree, &["to-b/file".to_owned(), "a/new".to_owned()]);
        assert!(outputs.has("a/b/file") && !outputs.has("to-b/file") && !outputs.has("a/new"));
        assert!(outputs.any_in("a/b") && !outputs.any_in("a") && !outputs.any_in(""));
    }
}
