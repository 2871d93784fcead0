//! One Directory message, from bytes to a validated [`Directory`].
//!
//! REAPI, Directory: "Every child in the directory must have a path of exactly one segment", "a
//! unique path segment (file name)", and the lists "must each be sorted in lexicographical order
//! by path". What breaks these rules is refused with the offending entry named: an unsorted
//! directory would be a second digest for the same content.

use prost::Message;

use super::wire::{self, Field};
use super::{Directory, File, Properties, Subdirectory, Symlink, TreeError, quote};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// No entry of a directory is longer than this, with its properties; a longer one is refused undecoded.
const MAX_ENTRY: usize = 64 << 10;
/// NAME_MAX of every file system that matters.
const MAX_NAME: usize = 255;
/// PATH_MAX without its NUL.
const MAX_TARGET: usize = 4095;
/// Named properties of one node: an empty one is two bytes in a message and 48 in memory.
const MAX_NAMED: usize = 64;
/// Named properties of all nodes of one directory.
const MAX_NAMED_IN_ALL: usize = 1 << 20;

/// Decodes and validates one message. `digest` is its own name (its function is that of all digests inside).
pub fn decode(digest: Digest, message: &[u8]) -> Result<Directory, TreeError> {
    let invalid = |problem: String| TreeError::Invalid {
        digest,
        path: String::new(),
        problem,
    };
    let directory = read(digest.function(), message).map_err(invalid)?;
    unique(&directory).map_err(invalid)?;
    Ok(directory)
}

fn read(function: DigestFunction, mut rest: &[u8]) -> Result<Directory, String> {
    let mut directory = Directory::default();
    let mut properties: Option<re::NodeProperties> = None;
    let mut of_itself = 0;
    let mut in_all = 0;
    while let Some(Field { number, bytes }) = wire::next(&mut rest)? {
        if !matches!(number, 1 | 2 | 3 | 5) {
            continue;
        }
        let bytes = bytes.ok_or_else(|| format!("field {number} is not a message"))?;
        if bytes.len() > MAX_ENTRY {
            return Err(format!(
                "has an entry of {} bytes; {MAX_ENTRY} are allowed",
                bytes.len()
            ));
        }
        let named = match number {
            1 => named_of_node(bytes, 6)?,
            3 => named_of_node(bytes, 4)?,
            5 => {
                let more = named(bytes)?;
                of_itself += more;
                if of_itself > MAX_NAMED {
                    return Err(too_many_named("the directory itself"));
                }
                more
            }
            _ => 0,
        };
        in_all += named;
        if in_all > MAX_NAMED_IN_ALL {
            return Err(format!(
                "has more than {MAX_NAMED_IN_ALL} named properties in all"
            ));
        }
        let broken = |error: prost::DecodeError| format!("has a malformed entry: {error}");
        match number {
            1 => {
                let node = file(function, re::FileNode::decode(bytes).map_err(broken)?)?;
                ordered(directory.files.last().map(|f| &*f.name), &node.name)?;
                directory.files.push(node);
            }
            2 => {
                let node =
                    subdirectory(function, re::DirectoryNode::decode(bytes).map_err(broken)?)?;
                ordered(directory.directories.last().map(|d| &*d.name), &node.name)?;
                directory.directories.push(node);
            }
            3 => {
                let node = symlink(re::SymlinkNode::decode(bytes).map_err(broken)?)?;
                ordered(directory.symlinks.last().map(|s| &*s.name), &node.name)?;
                directory.symlinks.push(node);
            }
            // A field that is given again adds to what was given before.
            _ => properties
                .get_or_insert_default()
                .merge(bytes)
                .map_err(broken)?,
        }
    }
    directory.properties = self::properties(properties, "the directory itself")?;
    directory.files.shrink_to_fit();
    directory.directories.shrink_to_fit();
    directory.symlinks.shrink_to_fit();
    Ok(directory)
}

/// Counts the named properties of a serialized node, whose NodeProperties are field `field`. They are counted before they are
/// decoded, as each takes many times its size in memory.
fn named_of_node(mut node: &[u8], field: u64) -> Result<usize, String> {
    let mut name: &[u8] = &[];
    let mut count = 0;
    while let Some(Field { number, bytes }) = wire::next(&mut node)? {
        match bytes {
            Some(bytes) if number == 1 => name = bytes,
            Some(bytes) if number == field => count += named(bytes)?,
            _ => {}
        }
    }
    if count > MAX_NAMED {
        return Err(too_many_named(&String::from_utf8_lossy(name)));
    }
    Ok(count)
}

/// Counts the named properties of serialized NodeProperties.
fn named(mut properties: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    while let Some(Field { number, .. }) = wire::next(&mut properties)? {
        count += usize::from(number == 1);
    }
    Ok(count)
}

fn too_many_named(of: &str) -> String {
    format!(
        "has more than {MAX_NAMED} named properties of {}",
        quote::name(of)
    )
}

fn file(function: DigestFunction, node: re::FileNode) -> Result<File, String> {
    let name = name(node.name)?;
    let digest = Digest::from_proto(function, node.digest.as_ref())
        .map_err(|e| format!("file {}: {e}", quote::name(&name)))?;
    let properties = properties(node.node_properties, &name)?;
    Ok(File {
        name,
        digest,
        executable: node.is_executable,
        properties,
    })
}

fn subdirectory(function: DigestFunction, node: re::DirectoryNode) -> Result<Subdirectory, String> {
    let name = name(node.name)?;
    let digest = Digest::from_proto(function, node.digest.as_ref())
        .map_err(|e| format!("directory {}: {e}", quote::name(&name)))?;
    Ok(Subdirectory { name, digest })
}

fn symlink(node: re::SymlinkNode) -> Result<Symlink, String> {
    let name = name(node.name)?;
    let problem = if node.target.is_empty() {
        "has no target"
    } else if node.target.len() > MAX_TARGET {
        "has a target of more than 4095 bytes"
    } else if node.target.contains('\0') {
        "has a target with a NUL in it"
    } else {
        let properties = properties(node.node_properties, &name)?;
        return Ok(Symlink {
            name,
            target: node.target.into_boxed_str(),
            properties,
        });
    };
    Err(format!("symbolic link {} {problem}", quote::name(&name)))
}

/// Checks that `name` can be the name of a directory entry.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("is empty")
    } else if name == "." || name == ".." {
        Err("names a directory itself or its parent")
    } else if name.len() > MAX_NAME {
        Err("is longer than 255 bytes")
    } else if name.bytes().any(|b| b == b'/' || b == 0) {
        Err("has a slash or a NUL in it")
    } else {
        Ok(())
    }
}

fn name(name: String) -> Result<Box<str>, String> {
    match check_name(&name) {
        Ok(()) => Ok(name.into_boxed_str()),
        Err(problem) => Err(format!("name {} {problem}", quote::name(&name))),
    }
}

fn properties(
    given: Option<re::NodeProperties>,
    of: &str,
) -> Result<Option<Box<Properties>>, String> {
    let Some(given) = given else { return Ok(None) };
    if let Some(time) = &given.mtime {
        // Years 1 to 9999, as google.protobuf.Timestamp has it.
        if !(-62_135_596_800..=253_402_300_799).contains(&time.seconds)
            || !(0..1_000_000_000).contains(&time.nanos)
        {
            return Err(format!(
                "mtime of {} is not a time: {} s {} ns",
                quote::name(of),
                time.seconds,
                time.nanos
            ));
        }
    }
    if let Some(mode) = given.unix_mode
        && mode > 0o7777
    {
        return Err(format!(
            "unix_mode {mode:#o} of {} is more than permission bits",
            quote::name(of)
        ));
    }
    let properties = Properties {
        mtime: given.mtime,
        unix_mode: given.unix_mode,
        named: given
            .properties
            .into_iter()
            .map(|p| (p.name, p.value))
            .collect(),
    };
    Ok((properties != Properties::default()).then(|| Box::new(properties)))
}

fn ordered(last: Option<&str>, name: &str) -> Result<(), String> {
    match last.map(|last| (last, last.cmp(name))) {
        None | Some((_, std::cmp::Ordering::Less)) => Ok(()),
        Some((_, std::cmp::Ordering::Equal)) => Err(twice(name)),
        Some((last, std::cmp::Ordering::Greater)) => Err(format!(
            "is not sorted by name: {} comes after {}",
            quote::name(name),
            quote::name(last)
        )),
    }
}

fn twice(name: &str) -> String {
    format!("has two entries named {}", quote::name(name))
}

/// Each list is sorted and without duplicates by now: what is left is a name in two of them.
fn unique(directory: &Directory) -> Result<(), String> {
    let files = directory.files.iter().map(|f| &*f.name);
    let directories = directory.directories.iter().map(|d| &*d.name);
    let symlinks = directory.symlinks.iter().map(|s| &*s.name);
    disjoint(files.clone(), directories.clone())?;
    disjoint(files, symlinks.clone())?;
    disjoint(directories, symlinks)
}

fn disjoint<'a>(
    mut left: impl Iterator<Item = &'a str>,
    mut right: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let (mut a, mut b) = (left.next(), right.next());
    while let (Some(x), Some(y)) = (a, b) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => a = left.next(),
            std::cmp::Ordering::Greater => b = right.next(),
            std::cmp::Ordering::Equal => return Err(twice(x)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_digest() -> Option<re::Digest> {
        Some(DigestFunction::Sha256.digest(b"x").to_proto())
    }

    fn file(name: &str) -> re::FileNode {
        re::FileNode {
            name: name.to_owned(),
            digest: some_digest(),
            ..Default::default()
        }
    }

    fn directory(name: &str) -> re::DirectoryNode {
        re::DirectoryNode {
            name: name.to_owned(),
            digest: some_digest(),
        }
    }

    fn symlink(name: &str, target: &str) -> re::SymlinkNode {
        re::SymlinkNode {
            name: name.to_owned(),
            target: target.to_owned(),
            node_properties: None,
        }
    }

    fn problem(bytes: &[u8]) -> String {
        let error = decode(DigestFunction::Sha256.digest(bytes), bytes).unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 600, "{text}");
        match error {
            TreeError::Invalid { problem, .. } => problem,
            other => panic!("{other}"),
        }
    }

    fn problem_of(message: &re::Directory) -> String {
        problem(&message.encode_to_vec())
    }

    #[test]
    fn bad_names_are_named() {
        let long = "x".repeat(256);
        for bad in ["", ".", "..", "a/b", "/", "a\0b", long.as_str()] {
            let shown = quote::name(bad);
            for message in [
                re::Directory {
                    files: vec![file(bad)],
                    ..Default::default()
                },
                re::Directory {
                    directories: vec![directory(bad)],
                    ..Default::default()
                },
                re::Directory {
                    symlinks: vec![symlink(bad, "t")],
                    ..Default::default()
                },
            ] {
                let problem = problem_of(&message);
                assert!(problem.contains(&shown), "{problem}");
            }
        }
    }

    #[test]
    fn order_and_uniqueness_are_required() {
        let message = re::Directory {
            files: vec![file("b"), file("a")],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#""a" comes after "b""#));
        let message = re::Directory {
            files: vec![file("a"), file("a")],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#"two entries named "a""#));
        let files = || vec![file("a"), file("m"), file("z")];
        let message = re::Directory {
            files: files(),
            directories: vec![directory("b"), directory("z")],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#"two entries named "z""#));
        let message = re::Directory {
            files: files(),
            symlinks: vec![symlink("b", "t"), symlink("m", "t")],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#"two entries named "m""#));
        let message = re::Directory {
            directories: vec![directory("d")],
            symlinks: vec![symlink("d", "t")],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#"two entries named "d""#));
    }

    #[test]
    fn digests_targets_and_properties_are_checked() {
        let mut node = file("a");
        node.digest = None;
        let message = |node| re::Directory {
            files: vec![node],
            ..Default::default()
        };
        assert!(problem_of(&message(node)).contains(r#"file "a": no digest"#));
        let mut node = file("a");
        node.digest = Some(re::Digest {
            hash: "../../etc/passwd".into(),
            size_bytes: 1,
        });
        assert!(problem_of(&message(node)).contains("etc/passwd"));
        for target in ["", "a\0b", &"t".repeat(4096)] {
            let message = re::Directory {
                symlinks: vec![symlink("link", target)],
                ..Default::default()
            };
            assert!(problem_of(&message).contains(r#"symbolic link "link""#));
        }
        let with = |properties| {
            let mut node = file("a");
            node.node_properties = Some(properties);
            problem_of(&message(node))
        };
        assert!(
            with(re::NodeProperties {
                unix_mode: Some(0o10000),
                ..Default::default()
            })
            .contains("unix_mode")
        );
        assert!(
            with(re::NodeProperties {
                mtime: Some(prost_types::Timestamp {
                    seconds: 1,
                    nanos: -1,
                }),
                ..Default::default()
            })
            .contains("mtime")
        );
    }

    #[test]
    fn named_properties_are_counted() {
        let named = |count| re::NodeProperties {
            properties: vec![re::NodeProperty::default(); count],
            ..Default::default()
        };
        let of_file = |count| {
            let mut node = file("many");
            node.node_properties = Some(named(count));
            re::Directory {
                files: vec![node],
                ..Default::default()
            }
        };
        let of_link = |count| {
            let mut node = symlink("many", "t");
            node.node_properties = Some(named(count));
            re::Directory {
                symlinks: vec![node],
                ..Default::default()
            }
        };
        let of_itself = |count| re::Directory {
            node_properties: Some(named(count)),
            ..Default::default()
        };
        let fine = |message: re::Directory| {
            let bytes = message.encode_to_vec();
            decode(DigestFunction::Sha256.digest(&bytes), &bytes).unwrap()
        };
        let read = fine(of_file(MAX_NAMED));
        let properties = read.files[0].properties.as_ref().unwrap();
        assert_eq!(properties.named.len(), MAX_NAMED);
        fine(of_link(MAX_NAMED));
        fine(of_itself(MAX_NAMED));
        for many in [of_file(MAX_NAMED + 1), of_link(MAX_NAMED + 1)] {
            let problem = problem_of(&many);
            assert!(
                problem.contains(r#"more than 64 named properties of "many""#),
                "{problem}"
            );
        }
        assert!(problem_of(&of_itself(MAX_NAMED + 1)).contains("the directory itself"));
        // A field that is given in many parts is as long as all of them.
        let parts = of_itself(1).encode_to_vec().repeat(MAX_NAMED + 1);
        assert!(problem(&parts).contains("more than 64 named properties"));
        let many = re::Directory {
            files: (0..=MAX_NAMED_IN_ALL / MAX_NAMED)
                .map(|n| re::FileNode {
                    node_properties: Some(named(MAX_NAMED)),
                    ..file(&format!("{n:06}"))
                })
                .collect(),
            ..Default::default()
        };
        assert!(problem_of(&many).contains("named properties in all"));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let good = re::Directory {
            files: vec![file("a")],
            ..Default::default()
        }
        .encode_to_vec();
        for end in 1..good.len() {
            problem(&good[..end]);
        }
        let mut garbage = good.clone();
        garbage.extend_from_slice(b"\xff\xff\xff");
        problem(&garbage);
        problem(&[0x08, 0x01]); // files as a number
        problem(&[0x0b]); // a group
        let mut huge = vec![0x0a];
        wire::put_varint(&mut huge, u64::MAX);
        problem(&huge);
        // Two bytes a node: refused at the first one, not after gigabytes.
        problem(&[0x0a, 0x00].repeat(1 << 20));
    }

    #[test]
    fn fields_of_later_versions_are_ignored() {
        let mut bytes = re::Directory {
            files: vec![file("a")],
            ..Default::default()
        }
        .encode_to_vec();
        bytes.extend_from_slice(&[0x78, 0x05]); // field 15, a number
        bytes.extend_from_slice(&[0x7a, 0x01, b'x']); // field 15, bytes
        let read = decode(DigestFunction::Sha256.digest(&bytes), &bytes).unwrap();
        assert_eq!(read.files.len(), 1);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(DigestFunction::Sha256.digest(b""), &bytes);
        }

        #[test]
        fn mutated_messages_never_panic(at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = re::Directory {
                files: vec![file("a"), file("b")],
                symlinks: vec![symlink("c", "t")],
                ..Default::default()
            }
            .encode_to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = decode(DigestFunction::Sha256.digest(b""), &bytes) {
                for file in &read.files {
                    prop_assert!(check_name(&file.name).is_ok());
                }
            }
        }

        /// What is accepted holds the promises of [`Directory`], and everything that the
        /// generated decoder and an independent check accept is accepted here.
        #[test]
        fn agrees_with_a_naive_check(names in proptest::collection::vec("[a-c./]{0,2}", 0..5)) {
            let message = re::Directory {
                files: names.iter().map(|n| file(n)).collect(),
                ..Default::default()
            };
            let mut sorted = names.clone();
            sorted.sort();
            sorted.dedup();
            let fine = sorted == names
                && names.iter().all(|n| !n.is_empty() && n != "." && n != ".." && !n.contains('/'));
            let bytes = message.encode_to_vec();
            prop_assert_eq!(decode(DigestFunction::Sha256.digest(&bytes), &bytes).is_ok(), fine);
        }
    }
}
