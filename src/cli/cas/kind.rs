//! What a blob probably is. Messages carry no type: a blob is taken for one if it decodes, encodes
//! back to the same bytes and has what that message cannot be without.

use std::fmt;

use prost::Message;

use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};
use crate::tree;

/// A guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Empty,
    Action,
    Command,
    Directory,
    Tree,
    Elf,
    Text,
    Binary,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Empty => "empty",
            Kind::Action => "Action",
            Kind::Command => "Command",
            Kind::Directory => "Directory",
            Kind::Tree => "Tree",
            Kind::Elf => "ELF binary",
            Kind::Text => "text",
            Kind::Binary => "binary",
        })
    }
}

/// Larger blobs are not guessed at: decoded, a message of empty entries takes some hundred times its size.
pub(super) const GUESSED: u64 = 1 << 20;

/// Guesses what the blob is, which is at most [`GUESSED`] bytes.
pub(super) fn guess(digest: Digest, data: &[u8]) -> Kind {
    let function = digest.function();
    if data.is_empty() {
        Kind::Empty
    } else if is_action(function, data) {
        Kind::Action
    } else if tree::decode(digest, data).is_ok() && same::<re::Directory>(data).is_some() {
        Kind::Directory
    } else if is_tree(function, data) {
        Kind::Tree
    } else if same::<re::Command>(data).is_some_and(|command| {
        !command.arguments.is_empty()
            && !command.arguments[0].is_empty()
            && command
                .arguments
                .iter()
                .all(|argument| !argument.contains('\0'))
    }) {
        Kind::Command
    } else if data.starts_with(b"\x7fELF") {
        Kind::Elf
    } else if std::str::from_utf8(data).is_ok_and(|text| !text.contains('\0')) {
        Kind::Text
    } else {
        Kind::Binary
    }
}

fn same<M: Message + Default>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    (message.encode_to_vec() == data).then_some(message)
}

fn is_action(function: DigestFunction, data: &[u8]) -> bool {
    same::<re::Action>(data).is_some_and(|action| {
        [action.command_digest, action.input_root_digest]
            .iter()
            .all(|digest| Digest::from_proto(function, digest.as_ref()).is_ok())
    })
}

fn is_tree(function: DigestFunction, data: &[u8]) -> bool {
    let is_directory = |directory: &re::Directory| {
        let bytes = directory.encode_to_vec();
        tree::decode(function.digest(&bytes), &bytes).is_ok()
    };
    same::<re::Tree>(data).is_some_and(|tree| {
        tree.root.as_ref().is_some_and(is_directory) && tree.children.iter().all(is_directory)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let function = DigestFunction::Sha256;
        let digest = Some(function.digest(b"x").to_proto());
        let directory = re::Directory {
            files: vec![re::FileNode {
                name: "f".into(),
                digest: digest.clone(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let action = re::Action {
            command_digest: digest.clone(),
            input_root_digest: digest,
            ..Default::default()
        };
        let command = re::Command {
            arguments: vec!["sh".into(), "-c".into()],
            ..Default::default()
        };
        let tree = re::Tree {
            root: Some(directory.clone()),
            children: vec![directory.clone()],
        };
        for (data, kind) in [
            (action.encode_to_vec(), Kind::Action),
            (command.encode_to_vec(), Kind::Command),
            (directory.encode_to_vec(), Kind::Directory),
            (tree.encode_to_vec(), Kind::Tree),
            (b"\x7fELF\x02".to_vec(), Kind::Elf),
            (b"int main() {}\n".to_vec(), Kind::Text),
            (vec![0xff, 0, 1], Kind::Binary),
            (Vec::new(), Kind::Empty),
        ] {
            assert_eq!(guess(function.digest(&data), &data), kind);
        }
    }
}
