//! 1 000 outputs of 64 KiB and one of 256 MiB, from the action's root into the store.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use boxwright::inputs::Beneath;
use boxwright::outputs::{self, CollectRequest, OutputKind, OutputLimits, OutputPath};
use boxwright::reapi::DigestFunction;
use boxwright::reapi::proto::re;

use crate::Gate;
use crate::ground::{self, Ground};
use crate::touch::{median, ms, ratio, timed};
use crate::tree;

const SMALL: usize = 1_000;
const SMALL_SIZE: usize = 64 << 10;
const LARGE_SIZE: usize = 256 << 20;

pub(crate) async fn outputs(ground: &Ground) -> Vec<Gate> {
    let tree = ground.tree(tree::put(ground, b"")).await;
    let roots = ground.fuse("fuse");
    let (mut collected, mut hashed) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let shown = ground::stage(&roots, &tree).await;
        let overlay = shown.path().to_owned();
        let out = overlay.join("out");
        let beneath = shown.beneath().expect("an overlay");
        let store = ground.store.clone();
        let work = tokio::task::spawn_blocking(move || {
            let large = write(&out, round);
            let inode = { beneath.upper.join("out/large").metadata() }
                .expect("the output of 256 MiB")
                .ino();
            let hash = timed(|| {
                for n in 0..SMALL {
                    hash(&out.join(format!("f{n}")));
                }
                hash(&out.join("large"));
            });
            let mut found = None;
            let request = request(beneath, overlay);
            let collect = timed(|| found = Some(outputs::collect(&store, &request)));
            let found = found.expect("a collection").expect("outputs");
            assert_eq!(found.result.output_directories.len(), 1);
            // It is the very file that the action wrote: nothing was copied.
            let digest = DigestFunction::Sha256.digest(&large);
            let kept = store.path(digest, false).expect("a blob").expect("a blob");
            assert_eq!(kept.metadata().expect("a blob").ino(), inode);
            (collect, hash)
        });
        let (collect, hash) = work.await.expect("the work of an action");
        collected.push(collect);
        hashed.push(hash);
        shown.remove().await.expect("a removal");
        ground.settle();
    }
    let (collected, hashed) = (median(collected), median(hashed));
    vec![Gate {
        name: "1 000 outputs of 64 KiB and one of 256 MiB",
        figures: format!(
            "{} ms, reading and hashing alone {} ms",
            ms(collected),
            ms(hashed)
        ),
        ratio: ratio(collected, hashed),
        bound: 1.0 / 0.8,
    }]
}

/// Reads a file and hashes it: what nobody can do without.
fn hash(path: &Path) {
    use std::io::Read;
    let mut file = std::fs::File::open(path).expect("an output");
    let mut hasher = DigestFunction::Sha256.hasher();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).expect("an output reads") {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    std::hint::black_box(hasher.finish());
}

/// Writes the outputs of a round, none like another, and gives back the large one.
fn write(out: &Path, round: usize) -> Vec<u8> {
    let mut large: Vec<u8> = (0..LARGE_SIZE).map(|n| (n ^ (n >> 8)) as u8).collect();
    large[..8].copy_from_slice(&round.to_ne_bytes());
    std::fs::write(out.join("large"), &large).expect("an output");
    let mut small = large[..SMALL_SIZE].to_vec();
    for n in 0..SMALL {
        small[8..16].copy_from_slice(&n.to_ne_bytes());
        std::fs::write(out.join(format!("f{n}")), &small).expect("an output");
    }
    large
}

fn request(beneath: Beneath, overlay: PathBuf) -> CollectRequest {
    CollectRequest {
        root: beneath.upper,
        beneath: Some(beneath.tree),
        overlay: Some(overlay),
        outputs: vec![OutputPath {
            declared: "out".to_owned(),
            within_root: "out".to_owned(),
            kind: OutputKind::Any,
        }],
        format: re::command::OutputDirectoryFormat::default(),
        node_properties: Vec::new(),
        function: DigestFunction::Sha256,
        limits: OutputLimits::default(),
        cancel: tokio_util::sync::CancellationToken::new(),
    }
}
