//! The output fields of an ActionResult, and the Directory and Tree messages that they name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::take::Taken;
use super::walk::{Found, Link, Node};
use super::{CollectRequest, Collected, OutputError, OutputKind};
use crate::cas::LocalStore;
use crate::reapi::proto::re;
use crate::reapi::proto::re::command::OutputDirectoryFormat as Format;
use crate::reapi::wire::put_varint;
use crate::reapi::{Digest, DigestFunction};

/// Describes what was found at the declared paths, in the order of their names.
pub(super) fn describe(
    store: &Arc<LocalStore>,
    request: &CollectRequest,
    nodes: &HashMap<&str, Node>,
    found: &Found,
    mut taken: Taken,
) -> Result<Collected, OutputError> {
    let mut messages = Messages::new(found, request.function);
    let mut result = re::ActionResult::default();
    let mut seen = HashSet::new();
    for output in &request.outputs {
        let Some(node) = nodes.get(&*output.within_root) else {
            continue;
        };
        if !seen.insert((&output.declared, output.kind)) {
            continue;
        }
        let path = output.declared.clone();
        match node {
            Node::File(number) => {
                let file = &found.files[*number];
                result.output_files.push(re::OutputFile {
                    path,
                    digest: Some(file.digest.to_proto()),
                    is_executable: file.executable,
                    contents: Bytes::new(),
                    node_properties: file.properties.as_deref().cloned(),
                });
            }
            Node::Symlink(link) => symlink(&mut result, output.kind, path, link),
            Node::Directory(number) => {
                let directory = messages.describe(*number, request.format, store, &mut taken)?;
                result
                    .output_directories
                    .push(re::OutputDirectory { path, ..directory });
            }
        }
    }
    result.output_files.sort_by(|a, b| a.path.cmp(&b.path));
    result
        .output_directories
        .sort_by(|a, b| a.path.cmp(&b.path));
    sort_symlinks(&mut result);
    Ok(Collected {
        result,
        blobs: taken.blobs,
        pins: taken.pins,
        left_out: found.left_out.clone(),
    })
}

/// REAPI moved links from the two deprecated lists to `output_symlinks`; a client of either time finds them.
#[allow(deprecated)]
fn symlink(result: &mut re::ActionResult, kind: OutputKind, path: String, link: &Link) {
    let link = re::OutputSymlink {
        path,
        target: link.target.to_string(),
        node_properties: link.properties.as_deref().cloned(),
    };
    match kind {
        OutputKind::Any => {}
        OutputKind::File => result.output_file_symlinks.push(link.clone()),
        OutputKind::Directory => result.output_directory_symlinks.push(link.clone()),
    }
    if !result.output_symlinks.contains(&link) {
        result.output_symlinks.push(link);
    }
}

#[allow(deprecated)]
fn sort_symlinks(result: &mut re::ActionResult) {
    for links in [
        &mut result.output_symlinks,
        &mut result.output_file_symlinks,
        &mut result.output_directory_symlinks,
    ] {
        links.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

/// Directory messages, each serialized once, whatever it is part of.
struct Messages<'f> {
    found: &'f Found,
    function: DigestFunction,
    made: Vec<Option<(Digest, Bytes)>>,
}

impl<'f> Messages<'f> {
    fn new(found: &'f Found, function: DigestFunction) -> Self {
        Messages {
            found,
            function,
            made: vec![None; found.directories.len()],
        }
    }

    /// An OutputDirectory without its path; the messages that it names are stored.
    fn describe(
        &mut self,
        number: usize,
        format: Format,
        store: &Arc<LocalStore>,
        taken: &mut Taken,
    ) -> Result<re::OutputDirectory, OutputError> {
        let messages = self.topological(number);
        let mut output = re::OutputDirectory::default();
        if matches!(format, Format::DirectoryOnly | Format::TreeAndDirectory) {
            output.root_directory_digest = messages.first().map(|(digest, _)| digest.to_proto());
            keep(store, taken, &messages)?;
        }
        if matches!(format, Format::TreeOnly | Format::TreeAndDirectory) {
            let tree = tree(&messages);
            let digest = self.function.digest(&tree);
            output.tree_digest = Some(digest.to_proto());
            output.is_topologically_sorted = true;
            keep(store, taken, &[(digest, tree)])?;
        }
        Ok(output)
    }

    /// The distinct messages of the directory `root` and those below it, each before those that it names.
    fn topological(&mut self, root: usize) -> Vec<(Digest, Bytes)> {
        let found = self.found;
        let mut order: Vec<(Digest, Bytes)> = Vec::new();
        let mut seen = HashSet::new();
        // Children first, then all reversed: a directory that has several parents comes after the last of them.
        let mut path = vec![(root, 0)];
        while let Some((number, next)) = path.last_mut() {
            let entries = &found.directories[*number].entries;
            let child = entries[*next..]
                .iter()
                .enumerate()
                .find_map(|(skipped, (_, node))| match node {
                    Node::Directory(child) => Some((skipped + 1, *child)),
                    _ => None,
                });
            if let Some((step, child)) = child {
                *next += step;
                let done = self.made[child].as_ref();
                if done.is_none_or(|(digest, _)| !seen.contains(digest)) {
                    path.push((child, 0));
                }
                continue;
            }
            let number = *number;
            path.pop();
            let (digest, bytes) = self.message(number);
            if seen.insert(digest) {
                order.push((digest, bytes));
            }
        }
        order.reverse();
        order
    }

    /// One message; those of its subdirectories are there already.
    fn message(&mut self, number: usize) -> (Digest, Bytes) {
        if let Some(made) = &self.made[number] {
            return made.clone();
        }
        let directory = &self.found.directories[number];
        let mut message = re::Directory {
            node_properties: directory.properties.as_deref().cloned(),
            ..Default::default()
        };
        for (name, node) in &directory.entries {
            let name = name.to_string();
            match node {
                Node::File(number) => {
                    let file = &self.found.files[*number];
                    message.files.push(re::FileNode {
                        name,
                        digest: Some(file.digest.to_proto()),
                        is_executable: file.executable,
                        node_properties: file.properties.as_deref().cloned(),
                    });
                }
                Node::Directory(number) => message.directories.push(re::DirectoryNode {
                    name,
                    digest: self.made[*number].as_ref().map(|(d, _)| d.to_proto()),
                }),
                Node::Symlink(link) => message.symlinks.push(re::SymlinkNode {
                    name,
                    target: link.target.to_string(),
                    node_properties: link.properties.as_deref().cloned(),
                }),
            }
        }
        let bytes = Bytes::from(message.encode_to_vec());
        let made = (self.function.digest(&bytes), bytes);
        self.made[number] = Some(made.clone());
        made
    }
}

/// A Tree message out of messages that are serialized already: `root = 1`, `children = 2`.
fn tree(messages: &[(Digest, Bytes)]) -> Bytes {
    let size: usize = messages.iter().map(|(_, bytes)| bytes.len() + 11).sum();
    let mut out = Vec::with_capacity(size);
    for (index, (_, bytes)) in messages.iter().enumerate() {
        let field = if index == 0 { 1 } else { 2 };
        out.push(field << 3 | 2);
        put_varint(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
    out.into()
}

fn keep(
    store: &Arc<LocalStore>,
    taken: &mut Taken,
    messages: &[(Digest, Bytes)],
) -> Result<(), OutputError> {
    let missing = taken.expect(store, messages.iter().map(|(digest, _)| *digest));
    for (digest, bytes) in messages
        .iter()
        .filter(|(digest, _)| missing.contains(digest))
    {
        store.put_verified(*digest, bytes, false)?;
    }
    Ok(())
}
