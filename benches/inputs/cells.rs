//! The measurements, each with its promises.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::inputs::InputRoots;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use prost::Message;

use crate::ground::{self, Ground};
use crate::raw::Raw;
use crate::touch::{every, median, ms, ratio, timed, touch};
use crate::tree::{self, Made};
use crate::{Gate, compile, large, memory, outputs};

type Cell = for<'g> fn(&'g Ground) -> Pin<Box<dyn Future<Output = Vec<Gate>> + 'g>>;

/// All of them.
pub(crate) const ALL: &[(&str, Cell)] = &[
    ("warm", |ground| Box::pin(warm(ground))),
    ("small", |ground| Box::pin(small(ground))),
    ("first", |ground| Box::pin(first(ground))),
    ("hot", |ground| Box::pin(hot(ground))),
    ("walk", |ground| Box::pin(walk(ground))),
    ("big", |ground| Box::pin(large::big(ground))),
    ("compile", |ground| Box::pin(compile::compile(ground))),
    ("outputs", |ground| Box::pin(outputs::outputs(ground))),
    ("memory", |ground| Box::pin(memory::memory(ground))),
    ("cold", |ground| Box::pin(crate::cold::cold(ground))),
];

/// A way of showing a tree to an action.
enum Way {
    Roots(Arc<dyn InputRoots>),
    Peer,
}

impl Way {
    /// The time of an action that touches these files: setup, work and teardown.
    async fn action(&self, ground: &Ground, root: Digest, touched: &[String]) -> Duration {
        let touched = touched.to_vec();
        // What the last one left to be done is not this one's.
        tokio::time::sleep(Duration::from_millis(5)).await;
        ground.settle();
        match (self, &ground.peer) {
            (Way::Roots(roots), _) => {
                let tree = ground.tree(root).await;
                ground::action(roots, &tree, move |root| touch(&root, &touched)).await
            }
            (Way::Peer, Some(peer)) => peer.action(root, |root| touch(root, &touched)),
            (Way::Peer, None) => Duration::ZERO,
        }
    }
}

/// For each way the median of the last actions of several with 90 % of their trees in common, a tenth of the files touched. The
/// ways take turns.
async fn actions(ground: &Ground, ways: &[Way], files: usize, generations: usize) -> Vec<Duration> {
    let mut times = vec![Vec::new(); ways.len()];
    for generation in 0..generations {
        let Made { root, files } = tree::make(ground, files, generation);
        let touched = every(&files, 10);
        for (way, times) in ways.iter().zip(&mut times) {
            times.push(way.action(ground, root, &touched).await);
        }
    }
    times
        .into_iter()
        .map(|mut t| median(t.split_off(2)))
        .collect()
}

async fn warm(ground: &Ground) -> Vec<Gate> {
    let mut ways = vec![
        Way::Roots(ground.fuse("fuse")),
        Way::Roots(ground.staged()),
        Way::Roots(ground.cached()),
    ];
    ways.extend(ground.peer.as_ref().map(|_| Way::Peer));
    let times = actions(ground, &ways, 10_000, 7).await;
    let (fuse, staged, cached) = (times[0], times[1], times[2]);
    let mut gates = vec![
        Gate {
            name: "warm action, 10 000 files, 10 % touched",
            figures: format!("{} ms, staged {} ms", ms(fuse), ms(staged)),
            ratio: ratio(fuse, staged),
            bound: 0.1,
        },
        Gate {
            name: "the same staged, recurring directories kept",
            figures: format!("{} ms, staged {} ms", ms(cached), ms(staged)),
            ratio: ratio(cached, staged),
            bound: 0.25,
        },
    ];
    match times.get(3) {
        None => println!("SKIPPED: the same against buildbox-fuse, which is not here"),
        Some(peer) => gates.push(Gate {
            name: "the same against buildbox-fuse",
            figures: format!("{} ms, buildbox-fuse {} ms", ms(fuse), ms(*peer)),
            ratio: ratio(fuse, *peer),
            bound: 0.2,
        }),
    }
    gates
}

async fn small(ground: &Ground) -> Vec<Gate> {
    let ways = [Way::Roots(ground.fuse("fuse")), Way::Roots(ground.staged())];
    let times = actions(ground, &ways, 100, 60).await;
    vec![Gate {
        name: "warm action, 100 files, 10 % touched",
        figures: format!("{} ms, staged {} ms", ms(times[0]), ms(times[1])),
        ratio: ratio(times[0], times[1]),
        bound: 0.5,
    }]
}

/// From the order to show a tree that was never seen to the first program of it that runs.
async fn first(ground: &Ground) -> Vec<Gate> {
    let Made { root, .. } = tree::make(ground, 100_000, 0);
    let program = std::fs::read("/bin/true").expect("a program");
    let mut message: re::Directory = {
        let data = ground
            .store
            .read(root, 1 << 20)
            .expect("a root")
            .expect("a root");
        Message::decode(data).expect("a directory")
    };
    message.files.push(re::FileNode {
        name: "true".into(),
        digest: Some(tree::put(ground, &program).to_proto()),
        is_executable: true,
        ..Default::default()
    });
    let root = tree::put(ground, &message.encode_to_vec());
    let tree = ground.tree(root).await;
    let run = |root: std::path::PathBuf| {
        let status = std::process::Command::new(root.join("true")).status();
        assert!(status.expect("a program starts").success());
    };
    let mut times = Vec::new();
    for roots in [ground.fuse("fuse"), ground.staged()] {
        let begun = Instant::now();
        let shown = ground::stage(&roots, &tree).await;
        run(shown.path().to_owned());
        times.push(begun.elapsed());
        shown.remove().await.expect("a removal");
    }
    vec![Gate {
        name: "first program of 100 000 files",
        figures: format!("{} ms, staged {} ms", ms(times[0]), ms(times[1])),
        ratio: ratio(times[0], times[1]),
        bound: 0.05,
    }]
}

/// The second touch of files that an earlier action has touched.
async fn hot(ground: &Ground) -> Vec<Gate> {
    let Made { root, files } = tree::make(ground, 10_000, 0);
    let tree = ground.tree(root).await;
    let shared: Vec<String> = { files.into_iter() }
        .filter(|path| path.starts_with("toolchain/"))
        .collect();
    let (fuse, staged) = (ground.fuse("fuse"), ground.staged());
    let (shown, real) = (
        ground::stage(&fuse, &tree).await,
        ground::stage(&staged, &tree).await,
    );
    let paths = [shown.path().to_owned(), real.path().to_owned()];
    let files = shared.clone();
    let touched = tokio::task::spawn_blocking(move || {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..12 {
            for (path, times) in paths.iter().zip(&mut times) {
                times.push(timed(|| touch(path, &files)));
            }
        }
        // The first was not hot.
        times.map(|mut times| median(times.split_off(1)))
    });
    let times = touched.await.expect("the touching");
    shown.remove().await.expect("a removal");
    real.remove().await.expect("a removal");
    let each = |time: Duration| ms(time * 1000 / shared.len() as u32);
    vec![Gate {
        name: "hot touch of a shared file",
        figures: format!("{} us, real file {} us", each(times[0]), each(times[1])),
        ratio: ratio(times[0], times[1]),
        bound: 2.0,
    }]
}

/// The first touch of every file of a tree that the kernel knows nothing of, by one program and by two at a time.
async fn walk(ground: &Ground) -> Vec<Gate> {
    let Made { root, files } = tree::make(ground, 10_000, 0);
    let tree = ground.tree(root).await;
    let named = tree::named(ground, root);
    let mut gates = Vec::new();
    for (name, clients) in [
        ("cold walk, one program", 1),
        ("cold walk, two programs", 2),
    ] {
        let mut times = (Vec::new(), Vec::new());
        for round in 0..5 {
            let fuse = ground.fuse(&format!("fuse-{clients}-{round}"));
            let shown = ground::stage(&fuse, &tree).await;
            let mut raw = Raw::new();
            for (path, file) in &named {
                raw.add(path, file.clone());
            }
            let mounted = raw.mount(&ground.path("raw"));
            let (path, least) = (shown.path().to_owned(), ground.path("raw"));
            let files = files.clone();
            let walked = tokio::task::spawn_blocking(move || {
                let both = |path: &std::path::Path| timed(|| walk_by(path, &files, clients));
                // Who goes first finds the processors as the last round left them.
                match round % 2 {
                    0 => (both(&path), both(&least)),
                    _ => {
                        let least = both(&least);
                        (both(&path), least)
                    }
                }
            });
            let (ours, least) = walked.await.expect("a walk");
            times.0.push(ours);
            times.1.push(least);
            drop(mounted);
            shown.remove().await.expect("a removal");
        }
        let (ours, least) = (median(times.0), median(times.1));
        gates.push(Gate {
            name,
            figures: format!("{} ms, the least server {} ms", ms(ours), ms(least)),
            ratio: ratio(ours, least),
            bound: 2.0,
        });
    }
    gates
}

fn walk_by(root: &std::path::Path, files: &[String], clients: usize) {
    std::thread::scope(|scope| {
        for part in files.chunks(files.len().div_ceil(clients)) {
            scope.spawn(move || touch(root, part));
        }
    });
}
