//! What is refused of Directory messages, and with which words.

use super::*;
use proptest::prelude::*;

fn some_digest() -> Option<re::Digest> {
    Some(DigestFunction::Sha256.digest(b"x").to_proto())
}

fn file(name: &str) -> re::FileNode {
    re::FileNode {
        name: name.to_owned(),
        digest: some_digest(),
        ..Default::default()
    }
}

fn directory(name: &str) -> re::DirectoryNode {
    re::DirectoryNode {
        name: name.to_owned(),
        digest: some_digest(),
    }
}

fn symlink(name: &str, target: &str) -> re::SymlinkNode {
    re::SymlinkNode {
        name: name.to_owned(),
        target: target.to_owned(),
        node_properties: None,
    }
}

fn problem(bytes: &[u8]) -> String {
    let error = decode(DigestFunction::Sha256.digest(bytes), bytes).unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 600, "{text}");
    match error {
        TreeError::Invalid { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

fn problem_of(message: &re::Directory) -> String {
    problem(&message.encode_to_vec())
}

#[test]
fn bad_names_are_named() {
    let long = "x".repeat(256);
    for bad in ["", ".", "..", "a/b", "/", "a\0b", long.as_str()] {
        let shown = quote::name(bad);
        for message in [
            re::Directory {
                files: vec![file(bad)],
                ..Default::default()
            },
            re::Directory {
                directories: vec![directory(bad)],
                ..Default::default()
            },
            re::Directory {
                symlinks: vec![symlink(bad, "t")],
                ..Default::default()
            },
        ] {
            let problem = problem_of(&message);
            assert!(problem.contains(&shown), "{problem}");
        }
    }
}

#[test]
fn order_and_uniqueness_are_required() {
    let message = re::Directory {
        files: vec![file("b"), file("a")],
        ..Default::default()
    };
    assert!(problem_of(&message).contains(r#""a" comes after "b""#));
    let message = re::Directory {
        files: vec![file("a"), file("a")],
        ..Default::default()
    };
    assert!(problem_of(&message).contains(r#"two entries named "a""#));
    let files = || vec![file("a"), file("m"), file("z")];
    let message = re::Directory {
        files: files(),
        directories: vec![directory("b"), directory("z")],
        ..Default::default()
    };
    assert!(problem_of(&message).contains(r#"two entries named "z""#));
    let message = re::Directory {
        files: files(),
        symlinks: vec![symlink("b", "t"), symlink("m", "t")],
        ..Default::default()
    };
    assert!(problem_of(&message).contains(r#"two entries named "m""#));
    let message = re::Directory {
        directories: vec![directory("d")],
        symlinks: vec![symlink("d", "t")],
        ..Default::default()
    };
    assert!(problem_of(&message).contains(r#"two entries named "d""#));
}

#[test]
fn digests_targets_and_properties_are_checked() {
    let mut node = file("a");
    node.digest = None;
    let message = |node| re::Directory {
        files: vec![node],
        ..Default::default()
    };
    assert!(problem_of(&message(node)).contains(r#"file "a": no digest"#));
    let mut node = file("a");
    node.digest = Some(re::Digest {
        hash: "../../etc/passwd".into(),
        size_bytes: 1,
    });
    assert!(problem_of(&message(node)).contains("etc/passwd"));
    for target in ["", "a\0b", &"t".repeat(4096)] {
        let message = re::Directory {
            symlinks: vec![symlink("link", target)],
            ..Default::default()
        };
        assert!(problem_of(&message).contains(r#"symbolic link "link""#));
    }
    let with = |properties| {
        let mut node = file("a");
        node.node_properties = Some(properties);
        problem_of(&message(node))
    };
    assert!(
        with(re::NodeProperties {
            unix_mode: Some(0o10000),
            ..Default::default()
        })
        .contains("unix_mode")
    );
    assert!(
        with(re::NodeProperties {
            mtime: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: -1,
            }),
            ..Default::default()
        })
        .contains("mtime")
    );
}

#[test]
fn named_properties_are_counted() {
    let named = |count| re::NodeProperties {
        properties: vec![re::NodeProperty::default(); count],
        ..Default::default()
    };
    let of_file = |count| {
        let mut node = file("many");
        node.node_properties = Some(named(count));
        re::Directory {
            files: vec![node],
            ..Default::default()
        }
    };
    let of_link = |count| {
        let mut node = symlink("many", "t");
        node.node_properties = Some(named(count));
        re::Directory {
            symlinks: vec![node],
            ..Default::default()
        }
    };
    let of_itself = |count| re::Directory {
        node_properties: Some(named(count)),
        ..Default::default()
    };
    let fine = |message: re::Directory| {
        let bytes = message.encode_to_vec();
        decode(DigestFunction::Sha256.digest(&bytes), &bytes).unwrap()
    };
    let read = fine(of_file(MAX_NAMED));
    let properties = read.files[0].properties.as_ref().unwrap();
    assert_eq!(properties.named.len(), MAX_NAMED);
    fine(of_link(MAX_NAMED));
    fine(of_itself(MAX_NAMED));
    for many in [of_file(MAX_NAMED + 1), of_link(MAX_NAMED + 1)] {
        let problem = problem_of(&many);
        assert!(
            problem.contains(r#"more than 64 named properties of "many""#),
            "{problem}"
        );
    }
    assert!(problem_of(&of_itself(MAX_NAMED + 1)).contains("the directory itself"));
    // A field that is given in many parts is as long as all of them.
    let parts = of_itself(1).encode_to_vec().repeat(MAX_NAMED + 1);
    assert!(problem(&parts).contains("more than 64 named properties"));
    let many = re::Directory {
        files: (0..=MAX_NAMED_IN_ALL / MAX_NAMED)
            .map(|n| re::FileNode {
                node_properties: Some(named(MAX_NAMED)),
                ..file(&format!("{n:06}"))
            })
            .collect(),
        ..Default::default()
    };
    assert!(problem_of(&many).contains("named properties in all"));
}

#[test]
fn malformed_messages_are_refused() {
    let good = re::Directory {
        files: vec![file("a")],
        ..Default::default()
    }
    .encode_to_vec();
    for end in 1..good.len() {
        problem(&good[..end]);
    }
    let mut garbage = good.clone();
    garbage.extend_from_slice(b"\xff\xff\xff");
    problem(&garbage);
    problem(&[0x08, 0x01]); // files as a number
    problem(&[0x0b]); // a group
    let mut huge = vec![0x0a];
    wire::put_varint(&mut huge, u64::MAX);
    problem(&huge);
    // Two bytes a node: refused at the first one, not after gigabytes.
    problem(&[0x0a, 0x00].repeat(1 << 20));
}

#[test]
fn fields_of_later_versions_are_ignored() {
    let mut bytes = re::Directory {
        files: vec![file("a")],
        ..Default::default()
    }
    .encode_to_vec();
    bytes.extend_from_slice(&[0x78, 0x05]); // field 15, a number
    bytes.extend_from_slice(&[0x7a, 0x01, b'x']); // field 15, bytes
    let read = decode(DigestFunction::Sha256.digest(&bytes), &bytes).unwrap();
    assert_eq!(read.files.len(), 1);
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(DigestFunction::Sha256.digest(b""), &bytes);
    }

    #[test]
    fn mutated_messages_never_panic(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = re::Directory {
            files: vec![file("a"), file("b")],
            symlinks: vec![symlink("c", "t")],
            ..Default::default()
        }
        .encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(read) = decode(DigestFunction::Sha256.digest(b""), &bytes) {
            for file in &read.files {
                prop_assert!(check_name(&file.name).is_ok());
            }
        }
    }

    /// What is accepted holds the promises of [`Directory`], and everything that the
    /// generated decoder and an independent check accept is accepted here.
    #[test]
    fn agrees_with_a_naive_check(names in proptest::collection::vec("[a-c./]{0,2}", 0..5)) {
        let message = re::Directory {
            files: names.iter().map(|n| file(n)).collect(),
            ..Default::default()
        };
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        let fine = sorted == names
            && names.iter().all(|n| !n.is_empty() && n != "." && n != ".." && !n.contains('/'));
        let bytes = message.encode_to_vec();
        prop_assert_eq!(decode(DigestFunction::Sha256.digest(&bytes), &bytes).is_ok(), fine);
    }
}
