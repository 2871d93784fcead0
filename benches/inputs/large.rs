//! A file of 256 MiB, read, mapped and executed.

use boxwright::reapi::proto::re;
use prost::Message;

use crate::Gate;
use crate::ground::{self, Ground};
use crate::touch::{median, ms, ratio, timed};
use crate::tree;

pub(crate) async fn big(ground: &Ground) -> Vec<Gate> {
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
            for _ in 0..15 {
                times.0.push(timed(|| way(&path)));
                times.1.push(timed(|| way(&other)));
            }
            let (shown, real) = (median(times.0), median(times.1));
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
