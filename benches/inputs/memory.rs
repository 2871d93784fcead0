//! What the kernel keeps for trees that nobody uses any more: bounded, however many there were.

use boxwright::reapi::proto::re;
use prost::Message;

use crate::Gate;
use crate::ground::{self, Ground};
use crate::tree;

const FILES: usize = 100_000;
const PER_DIRECTORY: usize = 1_000;
const TREES: usize = 5;
/// Names of idle trees that may be kept, as src/inputs/fuse/views.rs has it.
const KEPT: usize = 200_000;

pub(crate) async fn memory(ground: &Ground) -> Vec<Gate> {
    let roots = ground.fuse("fuse");
    let before = inodes();
    let mut peak = 0;
    for number in 0..TREES {
        let tree = ground.tree(make(ground, number)).await;
        let shown = ground::stage(&roots, &tree).await;
        let path = shown.path().to_owned();
        let looked = tokio::task::spawn_blocking(move || {
            for n in 0..FILES {
                let name = format!("d{:03}/f{:03}", n / PER_DIRECTORY, n % PER_DIRECTORY);
                rustix::fs::stat(path.join(name)).expect("an input");
            }
        });
        looked.await.expect("a walk");
        peak = peak.max(inodes().saturating_sub(before));
        shown.remove().await.expect("a removal");
    }
    let left = inodes().saturating_sub(before);
    assert!(peak >= FILES, "the kernel counted {peak} inodes only");
    vec![Gate {
        name: "inodes in the kernel after 500 000 looked-up files",
        figures: format!("{left}, {KEPT} are kept on purpose, at most {peak} while an action ran"),
        ratio: left as f64 / KEPT as f64,
        bound: 1.1,
    }]
}

/// FUSE inodes that the kernel has in memory, on the whole machine.
fn inodes() -> usize {
    let table = std::fs::read_to_string("/proc/slabinfo").expect("/proc/slabinfo");
    let line = table.lines().find(|line| line.starts_with("fuse_inode "));
    let field = line.and_then(|line| line.split_whitespace().nth(1));
    field
        .and_then(|count| count.parse().ok())
        .expect("a count of FUSE inodes")
}

/// A tree of files that are one blob but, by their times, no two the same file.
fn make(ground: &Ground, number: usize) -> boxwright::reapi::Digest {
    let blob = tree::put(ground, b"the content of all").to_proto();
    let mut root = re::Directory::default();
    for part in 0..FILES / PER_DIRECTORY {
        let files = (0..PER_DIRECTORY).map(|n| re::FileNode {
            name: format!("f{n:03}"),
            digest: Some(blob.clone()),
            node_properties: Some(re::NodeProperties {
                mtime: Some(prost_types::Timestamp {
                    seconds: (1 + number * FILES + part * PER_DIRECTORY + n) as i64,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        });
        let directory = re::Directory {
            files: files.collect(),
            ..Default::default()
        };
        let digest = tree::put(ground, &directory.encode_to_vec());
        let name = format!("d{part:03}");
        root.directories.push(tree::directory_node(&name, digest));
    }
    tree::put(ground, &root.encode_to_vec())
}
