//! The measurements, each with its promises.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::inputs::InputRoots;
use boxwright::reapi::proto::re;
use prost::Message;

use crate::Gate;
use crate::ground::{self, Ground};
use crate::touch::{best, every, median, ms, ratio, timed, touch};
use crate::tree::{self, Made};

type Cell = for<'g> fn(&'g Ground) -> Pin<Box<dyn Future<Output = Vec<Gate>> + 'g>>;

/// All of them.
pub(crate) const ALL: &[(&str, Cell)] = &[
    ("warm", |ground| Box::pin(warm(ground))),
    ("small", |ground| Box::pin(small(ground))),
    ("first", |ground| Box::pin(first(ground))),
    ("hot", |ground| Box::pin(hot(ground))),
    ("big", |ground| Box::pin(big(ground))),
    ("cold", |ground| Box::pin(crate::cold::cold(ground))),
];

/// The median of the last actions of several with 90 % of their trees in common, `1/of` of the files touched.
async fn actions(
    ground: &Ground,
    roots: &Arc<dyn InputRoots>,
    files: usize,
    of: usize,
) -> Duration {
    let mut times = Vec::new();
    for generation in 0..5 {
        let Made { root, files } = tree::make(ground, files, generation);
        let tree = ground.tree(root).await;
        let touched = every(&files, of);
        times.push(ground::action(roots, &tree, move |root| touch(&root, &touched)).await);
    }
    median(times.split_off(2))
}

async fn warm(ground: &Ground) -> Vec<Gate> {
    let fuse = actions(ground, &ground.fuse("fuse"), 10_000, 10).await;
    let staged = actions(ground, &ground.staged(), 10_000, 10).await;
    vec![Gate {
        name: "warm action, 10 000 files, 10 % touched",
        figures: format!("{} ms, staged {} ms", ms(fuse), ms(staged)),
        ratio: ratio(fuse, staged),
        bound: 0.1,
    }]
}

async fn small(ground: &Ground) -> Vec<Gate> {
    let fuse = ground.fuse("fuse");
    let staged = ground.staged();
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..4 {
        times.0.push(actions(ground, &fuse, 100, 10).await);
        times.1.push(actions(ground, &staged, 100, 10).await);
    }
    let (fuse, staged) = (median(times.0), median(times.1));
    vec![Gate {
        name: "warm action, 100 files, 10 % touched",
        figures: format!("{} ms, staged {} ms", ms(fuse), ms(staged)),
        ratio: ratio(fuse, staged),
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
    let mut times = Vec::new();
    for roots in [ground.fuse("fuse"), ground.staged()] {
        let shown = ground::stage(&roots, &tree).await;
        let path = shown.path().to_owned();
        let files = shared.clone();
        let touched = tokio::task::spawn_blocking(move || {
            touch(&path, &files);
            best((0..7).map(|_| timed(|| touch(&path, &files))).collect())
        });
        times.push(touched.await.expect("the touching"));
        shown.remove().await.expect("a removal");
    }
    let each = |time: Duration| ms(time * 1000 / shared.len() as u32);
    vec![Gate {
        name: "hot touch of a shared file",
        figures: format!("{} us, real file {} us", each(times[0]), each(times[1])),
        ratio: ratio(times[0], times[1]),
        bound: 2.0,
    }]
}

/// A file of 256 MiB, read, mapped and executed.
async fn big(ground: &Ground) -> Vec<Gate> {
    let mut program = std::fs::read("/bin/true").expect("a program");
    // Bytes behind a program's end do it no harm.
    let pattern: Vec<u8> = (0..1 << 20).map(|n: usize| (n ^ (n >> 8)) as u8).collect();
    while program.len() < 256 << 20 {
        program.extend_from_slice(&pattern);
    }
    let digest = tree::put(ground, &program);
    ground
        .store
        .path(digest, true)
        .expect("a program")
        .expect("a program");
    drop(program);
    let files = |count: usize| {
        (0..count).map(|n| re::FileNode {
            name: format!("f{n}"),
            digest: Some(tree::put(ground, format!("{n}").as_bytes()).to_proto()),
            ..Default::default()
        })
    };
    let mut tools = re::Directory {
        files: files(10).collect(),
        ..Default::default()
    };
    tools.files.push(re::FileNode {
        name: "tool".into(),
        digest: Some(digest.to_proto()),
        is_executable: true,
        ..Default::default()
    });
    let tools = tree::put(ground, &tools.encode_to_vec());
    let root = re::Directory {
        directories: vec![tree::directory_node("tools", tools)],
        ..Default::default()
    };
    let tree = ground.tree(tree::put(ground, &root.encode_to_vec())).await;
    let ways: [Way; 3] = [
        ("a file of 256 MiB, read", |path| read(path)),
        ("a file of 256 MiB, mapped", |path| map(path)),
        ("a program of 256 MiB, run", |path| {
            let status = std::process::Command::new(path).status();
            assert!(status.expect("a program starts").success());
        }),
    ];
    let (fuse, staged) = (ground.fuse("fuse"), ground.staged());
    let (shown, real) = (
        ground::stage(&fuse, &tree).await,
        ground::stage(&staged, &tree).await,
    );
    let (path, other) = (
        shown.path().join("tools/tool"),
        real.path().join("tools/tool"),
    );
    let gates = tokio::task::spawn_blocking(move || {
        let measure = |(name, way): Way| {
            let mut times = (Vec::new(), Vec::new());
            for _ in 0..9 {
                times.0.push(timed(|| way(&path)));
                times.1.push(timed(|| way(&other)));
            }
            let (shown, real) = (best(times.0), best(times.1));
            Gate {
                name,
                figures: format!("{} ms, real file {} ms", ms(shown), ms(real)),
                ratio: ratio(shown, real),
                bound: 1.0 / 0.9,
            }
        };
        ways.map(measure)
    });
    let gates = gates.await.expect("the reading");
    shown.remove().await.expect("a removal");
    real.remove().await.expect("a removal");
    gates.into()
}

/// Something to do with a file.
type Way = (&'static str, fn(&std::path::Path));

fn read(path: &std::path::Path) {
    use std::io::Read;
    let mut file = std::fs::File::open(path).expect("a file");
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).expect("bytes") > 0 {}
}

/// Touches every page through a mapping, in a program that does just that.
fn map(path: &std::path::Path) {
    let status = std::process::Command::new("python3")
        .args(["-c", "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); sum(m[::4096])"])
        .arg(path)
        .status();
    assert!(status.expect("python3").success());
}
