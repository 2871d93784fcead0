//! One Directory message, from bytes to a validated [`Directory`].
//!
//! REAPI, Directory: "Every child in the directory must have a path of exactly one segment", "a
//! unique path segment (file name)", and the lists "must each be sorted in lexicographical order
//! by path". What breaks these rules is refused with the offending entry named: an unsorted
//! directory would be a second digest for the same content.

use prost::Message;

use super::{Directory, File, Properties, Subdirectory, Symlink, TreeError, quote};
use crate::reapi::proto::re;
use crate::reapi::wire::{self, Field};
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
mod tests;
