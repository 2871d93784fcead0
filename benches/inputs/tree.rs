//! Trees of a size: `toolchain` 70 %, `src` 20 %, `own` 10 % of the files, twenty to a directory, eight directories to
//! another, some 4 KiB each.

use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};
use prost::Message;

use crate::ground::Ground;

const PER_DIRECTORY: usize = 20;
const FAN_OUT: usize = 8;

pub(crate) struct Made {
    pub(crate) root: Digest,
    /// Every file's path.
    pub(crate) files: Vec<String>,
}

/// A tree of `files` files; those of `own` differ with `generation`.
pub(crate) fn make(ground: &Ground, files: usize, generation: usize) -> Made {
    let mut paths = Vec::with_capacity(files);
    let (toolchain, src) = (files * 7 / 10, files * 2 / 10);
    let parts = [
        ("own", files - toolchain - src, generation),
        ("src", src, usize::MAX),
        ("toolchain", toolchain, usize::MAX),
    ];
    let directories = parts.map(|(name, count, generation)| {
        let mut maker = Maker {
            ground,
            label: format!("{name} {generation}"),
            next: 0,
            paths: &mut paths,
        };
        let digest = maker.directory(name, count);
        directory_node(name, digest)
    });
    let root = put(
        ground,
        &re::Directory {
            directories: directories.into(),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    Made { root, files: paths }
}

struct Maker<'g> {
    ground: &'g Ground,
    label: String,
    next: usize,
    paths: &'g mut Vec<String>,
}

impl Maker<'_> {
    /// A directory with so many files below it.
    fn directory(&mut self, path: &str, files: usize) -> Digest {
        let own = files.min(PER_DIRECTORY);
        let mut directory = re::Directory::default();
        for n in 0..own {
            let name = format!("f{n:02}.h");
            self.paths.push(format!("{path}/{name}"));
            self.next += 1;
            // 2 to 6 KiB, none like another.
            let size = 2048 + (self.next * 37) % 4096;
            let mut data = format!("{} {}\n", self.label, self.next).into_bytes();
            data.resize(size, b'x');
            directory.files.push(re::FileNode {
                name,
                digest: Some(put(self.ground, &data).to_proto()),
                ..Default::default()
            });
        }
        let rest = files - own;
        let children = rest.div_ceil(PER_DIRECTORY).min(FAN_OUT);
        for n in 0..children {
            let share = rest / children + usize::from(n < rest % children);
            let name = format!("d{n}");
            let digest = self.directory(&format!("{path}/{name}"), share);
            directory.directories.push(directory_node(&name, digest));
        }
        put(self.ground, &directory.encode_to_vec())
    }
}

pub(crate) fn directory_node(name: &str, digest: Digest) -> re::DirectoryNode {
    re::DirectoryNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
    }
}

pub(crate) fn put(ground: &Ground, data: &[u8]) -> Digest {
    let digest = DigestFunction::Sha256.digest(data);
    ground
        .store
        .put(digest, data, false)
        .expect("a blob is stored");
    if let Some(peer) = &ground.peer {
        peer.take(digest, &file(ground, digest));
    }
    digest
}

fn file(ground: &Ground, digest: Digest) -> std::path::PathBuf {
    let path = ground.store.path(digest, false).expect("a blob's file");
    path.expect("a blob's file")
}

/// Every path of a tree of files, with the file that holds the content.
pub(crate) fn named(ground: &Ground, root: Digest) -> Vec<(String, std::path::PathBuf)> {
    let mut named = Vec::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, digest)) = stack.pop() {
        let data = ground.store.read(digest, 1 << 20).expect("a directory");
        let directory = re::Directory::decode(data.expect("a directory")).expect("a directory");
        let blob = |digest: &Option<re::Digest>| {
            Digest::from_proto(DigestFunction::Sha256, digest.as_ref()).expect("a digest")
        };
        for child in &directory.files {
            named.push((
                format!("{path}{}", child.name),
                file(ground, blob(&child.digest)),
            ));
        }
        for child in &directory.directories {
            stack.push((format!("{path}{}/", child.name), blob(&child.digest)));
        }
    }
    named
}
