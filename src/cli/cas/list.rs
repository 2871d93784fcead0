//! `boxwright cas tree`.

use std::io::Write;

use clap::Args;

use super::super::Done;
use super::super::blobs;
use super::super::exit::{Exit, Failure};
use super::super::materialise::{self, Directories};
use super::kind::{self, Kind};
use super::{Where, well};
use crate::cas::BlobSource;
use crate::config::units::rough_size;
use crate::reapi::Digest;
use crate::tree::{self, TreeLimits};

/// List what is in a directory tree, with modes, sizes and digests
#[derive(Debug, Args)]
pub(super) struct List {
    /// The root Directory (or a Tree message), as HASH/SIZE
    digest: Digest,
    /// Leave out the digests of files
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    cas: Where,
}

impl List {
    pub(super) async fn run(self) -> Done {
        self.cas
            .with(async |cas| {
                let (root, directories) = directories(&*cas, self.digest).await?;
                let mut out = std::io::BufWriter::new(std::io::stdout().lock());
                print(&mut out, root, &directories, self.short)
                    .and_then(|()| out.flush())
                    .map_err(|e| {
                        Failure::new(Exit::Io, format!("cannot write to standard output: {e}"))
                    })?;
                well()
            })
            .await
    }
}

/// The directories of a tree whose root, or whose Tree message, this is.
pub(in crate::cli) async fn directories(
    cas: &dyn BlobSource,
    digest: Digest,
) -> Result<(Digest, Directories), Failure> {
    let limit = TreeLimits::default().message;
    let message = blobs::read(cas, digest, limit, "a Directory or Tree").await?;
    if tree::decode(digest, &message).is_ok() {
        return Ok((digest, materialise::fetch(cas, digest).await?));
    }
    // To guess is to decode, which a large message is not: it is a Tree or nothing that is wanted here.
    if digest.size() > kind::GUESSED {
        return materialise::of_tree(digest, &message);
    }
    match kind::guess(digest, &message) {
        Kind::Tree => materialise::of_tree(digest, &message),
        other => {
            let text =
                format!("{digest} is neither a Directory nor a Tree; it seems to be: {other}");
            Err(Failure::new(Exit::Data, text))
        }
    }
}

enum Line<'a> {
    Directory(String, Digest),
    File(String, &'a crate::tree::File),
    Link(String, &'a str),
}

/// Depth first, by name. What is printed is bounded as what is written is.
fn print(
    out: &mut impl Write,
    root: Digest,
    all: &Directories,
    short: bool,
) -> std::io::Result<()> {
    let limits = TreeLimits::default();
    let (mut files, mut bytes, mut nodes) = (0u64, 0u64, 0u64);
    let mut stack = vec![Line::Directory(String::new(), root)];
    while let Some(line) = stack.pop() {
        nodes += 1;
        if nodes > limits.nodes {
            writeln!(
                out,
                "... and more: the listing ends after {} entries",
                limits.nodes
            )?;
            return Ok(());
        }
        match line {
            Line::File(path, file) => {
                files += 1;
                bytes = bytes.saturating_add(file.digest.size());
                let mode = if file.executable {
                    "-rwxr-xr-x"
                } else {
                    "-rw-r--r--"
                };
                let digest = if short {
                    String::new()
                } else {
                    format!("  {}", file.digest)
                };
                writeln!(
                    out,
                    "{mode} {:>12}  {}{digest}",
                    file.digest.size(),
                    shown(&path)
                )?;
            }
            Line::Link(path, target) => {
                writeln!(
                    out,
                    "lrwxrwxrwx {:>12}  {} -> {}",
                    "-",
                    shown(&path),
                    shown(target)
                )?;
            }
            Line::Directory(path, digest) => {
                if !path.is_empty() {
                    let digest = if short {
                        String::new()
                    } else {
                        format!("  {digest}")
                    };
                    writeln!(out, "drwxr-xr-x {:>12}  {}/{digest}", "-", shown(&path))?;
                }
                if path.split('/').count() > limits.depth as usize {
                    writeln!(
                        out,
                        "... and more: deeper than {} directories",
                        limits.depth
                    )?;
                    continue;
                }
                let Some(directory) = all.get(&digest) else {
                    continue;
                };
                let below = |name: &str| match path.as_str() {
                    "" => name.to_owned(),
                    path => format!("{path}/{name}"),
                };
                let mut lines: Vec<(&str, Line<'_>)> = Vec::new();
                lines.extend(
                    directory
                        .files
                        .iter()
                        .map(|f| (&*f.name, Line::File(below(&f.name), f))),
                );
                lines.extend(
                    directory
                        .directories
                        .iter()
                        .map(|d| (&*d.name, Line::Directory(below(&d.name), d.digest))),
                );
                lines.extend(
                    directory
                        .symlinks
                        .iter()
                        .map(|l| (&*l.name, Line::Link(below(&l.name), &l.target))),
                );
                lines.sort_by(|a, b| b.0.cmp(a.0));
                stack.extend(lines.into_iter().map(|(_, line)| line));
            }
        }
    }
    writeln!(out, "{files} files, {} in all", rough_size(bytes))
}

/// Names come from whoever made the tree.
fn shown(name: &str) -> String {
    name.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reapi::DigestFunction;
    use crate::tree::{Directory, File, Subdirectory, Symlink};

    #[test]
    fn a_listing_is_sorted_and_harmless() {
        let digest = |text: &str| DigestFunction::Sha256.digest(text.as_bytes());
        let leaf = Directory {
            files: vec![File {
                name: "tool".into(),
                digest: digest("#!/bin/sh"),
                executable: true,
                properties: None,
            }],
            ..Directory::default()
        };
        let root = Directory {
            files: vec![File {
                name: "z\x1b[31m".into(),
                digest: digest("z"),
                executable: false,
                properties: None,
            }],
            directories: vec![Subdirectory {
                name: "bin".into(),
                digest: digest("leaf"),
            }],
            symlinks: vec![Symlink {
                name: "link".into(),
                target: "bin/tool".into(),
                properties: None,
            }],
            properties: None,
        };
        let all = [
            (digest("leaf"), Arc::new(leaf)),
            (digest("root"), Arc::new(root)),
        ]
        .into_iter()
        .collect();
        let mut text = Vec::new();
        print(&mut text, digest("root"), &all, false).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
    }
}
