//! A compiler that includes 2 000 headers: the tree of a new action each time, against files that stay.

use std::path::{Path, PathBuf};
use std::process::Command;

use boxwright::reapi::proto::re;
use prost::Message;

use crate::Gate;
use crate::ground::{self, Ground};
use crate::touch::{median, ms, ratio, timed};
use crate::tree;

const DIRECTORIES: usize = 20;
const HEADERS: usize = 100;
const ROUNDS: usize = 9;

pub(crate) async fn compile(ground: &Ground) -> Vec<Gate> {
    let tree = ground.tree(source(ground)).await;
    let (fuse, staged) = (ground.fuse("fuse"), ground.staged());
    let real = ground::stage(&staged, &tree).await;
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let action = ground::action(&fuse, &tree, |root| build(&root)).await;
        let root: PathBuf = real.path().to_owned();
        let built = tokio::task::spawn_blocking(move || timed(|| build(&root)));
        let built = built.await.expect("a compilation");
        // The first finds everything cold.
        if round > 0 {
            ours.push(action);
            native.push(built);
        }
    }
    real.remove().await.expect("a removal");
    let (ours, native) = (median(ours), median(native));
    vec![Gate {
        name: "g++ with 2 000 headers, with setup and teardown",
        figures: format!("{} ms, real files {} ms", ms(ours), ms(native)),
        ratio: ratio(ours, native),
        bound: 1.0 / 0.95,
    }]
}

fn build(root: &Path) {
    let status = Command::new("g++")
        .args(["-c", "main.cc", "-Iinclude", "-o", "out/result"])
        .current_dir(root)
        .status();
    assert!(status.expect("g++").success());
}

fn source(ground: &Ground) -> boxwright::reapi::Digest {
    let file = |name: String, data: &str| re::FileNode {
        name,
        digest: Some(tree::put(ground, data.as_bytes()).to_proto()),
        ..Default::default()
    };
    let mut include = re::Directory::default();
    let mut main = String::new();
    for part in 0..DIRECTORIES {
        let mut directory = re::Directory::default();
        for header in 0..HEADERS {
            let name = format!("h{header:02}.h");
            let id = part * HEADERS + header;
            let text = format!(
                "#pragma once\n// {}\nnamespace part{part} {{\nstruct S{id} {{ int a, b; int sum() const {{ return a + b + {id}; }} }};\n\
                 inline int f{id}(int n) {{ return S{id}{{n, {id}}}.sum(); }}\n}}\n",
                "what it is for ".repeat(40)
            );
            main += &format!("#include \"p{part:02}/{name}\"\n");
            directory.files.push(file(name, &text));
        }
        let digest = tree::put(ground, &directory.encode_to_vec());
        let name = format!("p{part:02}");
        include
            .directories
            .push(tree::directory_node(&name, digest));
    }
    main += "int main() { return part0::f0(1); }\n";
    let root = re::Directory {
        files: vec![file("main.cc".to_owned(), &main)],
        directories: vec![tree::directory_node(
            "include",
            tree::put(ground, &include.encode_to_vec()),
        )],
        ..Default::default()
    };
    tree::put(ground, &root.encode_to_vec())
}
