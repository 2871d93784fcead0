//! Synthetic input trees: same seed, same tree.

use std::collections::BTreeMap;

use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use bytes::Bytes;
use prost::Message;

use crate::client::{Source, digest, key_digest};
use crate::layout;

/// What the trees of a run look like.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) files: u64,
    /// The size of each file; none: sizes as source code has them (median 4 KiB, mean 9.5 KB).
    pub(crate) file_size: Option<u64>,
    /// The part of the files that all trees have in common.
    pub(crate) share: f64,
    pub(crate) seed: u64,
}

impl Spec {
    /// The size of file `j`.
    pub(crate) fn size(&self, j: u64) -> u64 {
        if let Some(size) = self.file_size {
            return size;
        }
        let random = layout::mix(self.seed ^ layout::mix(j ^ 0x0073_697a_6500));
        let (u, v) = (unit(random), unit(layout::mix(random)));
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        ((4096.0 * (1.3 * normal).exp()) as u64).clamp(1, 4 << 20)
    }

    fn differs(&self, j: u64) -> bool {
        (j as f64) < ((1.0 - self.share) * self.files as f64).round()
    }

    /// The contents of file `j` of tree number `tree`.
    pub(crate) fn key(&self, tree: u64, j: u64) -> u64 {
        let tree = if self.differs(j) { tree + 1 } else { 0 };
        layout::mix(self.seed ^ layout::mix(tree ^ layout::mix(j)))
    }
}

/// A number between 0 and 1 out of a random word.
fn unit(word: u64) -> f64 {
    ((word >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[derive(Default)]
struct Folder {
    files: BTreeMap<String, (Digest, bool)>,
    folders: BTreeMap<String, Folder>,
}

impl Folder {
    fn emit(&self, blobs: &mut Vec<(Digest, Source)>) -> Digest {
        let message = re::Directory {
            files: self
                .files
                .iter()
                .map(|(name, (digest, executable))| re::FileNode {
                    name: name.clone(),
                    digest: Some(digest.to_proto()),
                    is_executable: *executable,
                    ..Default::default()
                })
                .collect(),
            directories: self
                .folders
                .iter()
                .map(|(name, folder)| re::DirectoryNode {
                    name: name.clone(),
                    digest: Some(folder.emit(blobs).to_proto()),
                })
                .collect(),
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let digest = digest(&bytes);
        blobs.push((digest, Source::Bytes(bytes)));
        digest
    }
}

/// The root of tree number `tree`, with the executable `helper` in it, and its blobs.
pub(crate) fn build(
    spec: &Spec,
    tree: u64,
    helper: &(Digest, Bytes),
) -> (Digest, Vec<(Digest, Source)>) {
    let mut root = Folder::default();
    let mut blobs = vec![(helper.0, Source::Bytes(helper.1.clone()))];
    root.files.insert("helper".to_owned(), (helper.0, true));
    for j in 0..spec.files {
        let key = spec.key(tree, j);
        let digest = key_digest(key, spec.size(j));
        blobs.push((digest, Source::Key(key)));
        let mut folder = &mut root;
        for name in layout::folders_of(j, spec.files) {
            folder = folder.folders.entry(name).or_default();
        }
        folder.files.insert(layout::file_name(j), (digest, false));
    }
    let digest = root.emit(&mut blobs);
    (digest, blobs)
}
