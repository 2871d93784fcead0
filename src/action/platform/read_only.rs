//! `SubtreeReadOnly`, a node property of directories: BuildStream marks the root with `true` and the few places
//! where a build may write with `false`. It holds for all below, up to the next directory that says otherwise.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::reapi::Digest;
use crate::tree::{Directory, Tree};

/// The property.
pub(super) const NAME: &str = "SubtreeReadOnly";
/// Places where it changes; each is a mount. BuildStream has five or so.
const MOST: usize = 256;

/// The directories from which on down a tree is read-only, and those below from which on it is writable again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadOnly {
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) writable: Vec<PathBuf>,
}

/// Finds them; parents come before what is below them. The error says what is wrong with the tree.
pub(crate) fn of(tree: &Tree) -> Result<ReadOnly, String> {
    let mut found = ReadOnly::default();
    // Nearly every tree ends here, and each distinct directory is looked at once.
    if !tree
        .directories
        .values()
        .any(|directory| says(directory).is_some())
    {
        return Ok(found);
    }
    let mut speaks = HashMap::new();
    mark(tree, tree.root, &mut speaks);
    walk(
        tree,
        tree.root,
        &mut String::new(),
        false,
        &speaks,
        &mut found,
    )?;
    Ok(found)
}

fn says(directory: &Directory) -> Option<&str> {
    let named = &directory.properties.as_ref()?.named;
    let (_, value) = named.iter().find(|(name, _)| name == NAME)?;
    Some(value)
}

/// Whether a directory, or one below it, says anything. Trees are bounded in depth, and a digest cannot hold itself.
fn mark(tree: &Tree, digest: Digest, speaks: &mut HashMap<Digest, bool>) -> bool {
    if let Some(&known) = speaks.get(&digest) {
        return known;
    }
    let Some(directory) = tree.directories.get(&digest) else {
        return false;
    };
    let mut any = says(directory).is_some();
    for child in &directory.directories {
        any |= mark(tree, child.digest, speaks);
    }
    speaks.insert(digest, any);
    any
}

fn walk(
    tree: &Tree,
    digest: Digest,
    path: &mut String,
    above: bool,
    speaks: &HashMap<Digest, bool>,
    found: &mut ReadOnly,
) -> Result<(), String> {
    let Some(directory) = tree.directories.get(&digest) else {
        return Ok(());
    };
    let here = match says(directory) {
        None => above,
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            return Err(format!(
                "node property {NAME}={} of directory {path:?} of the input root: it is true or false",
                super::shorten(other)
            ));
        }
    };
    if here != above {
        let changed = match here {
            true => &mut found.read_only,
            false => &mut found.writable,
        };
        changed.push(PathBuf::from(&path));
        if found.read_only.len() + found.writable.len() > MOST {
            return Err(format!(
                "node property {NAME} changes at more than {MOST} places of the input root"
            ));
        }
    }
    for child in &directory.directories {
        if speaks.get(&child.digest) == Some(&true) {
            let length = path.len();
            if length > 0 {
                path.push('/');
            }
            path.push_str(&child.name);
            walk(tree, child.digest, path, here, speaks, found)?;
            path.truncate(length);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::{Properties, TreeBuilder};

    fn tree(says: &[(&str, &str)]) -> Tree {
        let mut builder = TreeBuilder::new(DigestFunction::Sha256);
        for (path, value) in says {
            let properties = Properties {
                named: vec![(NAME.to_owned(), (*value).to_owned())],
                ..Default::default()
            };
            builder.directory_properties(path, properties).unwrap();
        }
        builder.tree()
    }

    #[test]
    fn buildstream_s_root_is_read_only_but_for_a_few_places() {
        let found = of(&tree(&[
            ("", "true"),
            ("dev", "false"),
            ("buildstream/lab", "false"),
            ("buildstream/lab/kept", "true"),
            ("usr", "true"),
            ("usr/lib", "true"),
        ]))
        .unwrap();
        assert_eq!(
            found.read_only,
            [PathBuf::new(), "buildstream/lab/kept".into()]
        );
        assert_eq!(
            found.writable,
            [PathBuf::from("buildstream/lab"), "dev".into()]
        );
    }

    #[test]
    fn other_trees_say_nothing() {
        assert_eq!(of(&tree(&[("a/b", "false")])), Ok(ReadOnly::default()));
        let mut plain = TreeBuilder::new(DigestFunction::Sha256);
        plain.directory("a/b").unwrap();
        assert_eq!(of(&tree(&[])), Ok(ReadOnly::default()));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(of(&tree(&[("a", "yes")])).unwrap_err().contains("\"a\""));
        let many: Vec<String> = (0..300).map(|n| format!("d{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|d| (d.as_str(), "true")).collect();
        assert!(of(&tree(&many)).unwrap_err().contains("256"));
    }
}
