//! Whatever an action does to its inputs, the store keeps them as they were.

use std::os::unix::fs::MetadataExt;

use boxwright::reapi::proto::re;

use super::action::{Bench, F};
use super::attempt::Lab;
use super::place::Place;

const INPUT: &[u8] = b"what the digest says, and nothing else";

/// Every attempt is made by a whole action, whose inputs are staged as a worker stages them.
pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    // Without a sandbox only a root of the daemon's own user shows that an attempt is a real one.
    if lab.place == Place::OutsideUser {
        return Vec::new();
    }
    let bench = Bench::with(lab.sandbox.clone(), |settings| {
        settings.grace = std::time::Duration::ZERO
    });
    let probe = std::fs::read(lab.world.probe()).unwrap();
    let mut surprises = Vec::new();
    for name in [
        "cas.write_input",
        "cas.truncate",
        "cas.chmod",
        "cas.mmap_shared",
    ] {
        let root = bench.put_message(&re::Directory {
            files: [("input", INPUT, false), ("probe", &probe, true)]
                .map(|(name, data, is_executable)| {
                    let digest = F.digest(data);
                    bench.store.put(digest, data, is_executable).unwrap();
                    re::FileNode {
                        name: name.into(),
                        digest: Some(digest.to_proto()),
                        is_executable,
                        ..Default::default()
                    }
                })
                .to_vec(),
            ..Default::default()
        });
        let command = re::Command {
            arguments: ["./probe", name, "input"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let finished = bench.run(command, root).await;
        let said = finished
            .result
            .as_ref()
            .map(|result| String::from_utf8_lossy(&result.stdout_raw).into_owned())
            .unwrap_or_default();
        println!("{:?} {name}: {}", lab.place, said.trim());
        let sound = if lab.place.is_outside() {
            said.starts_with("ALLOWED")
        } else {
            said.starts_with("ALLOWED") || said.starts_with("DENIED")
        };
        if !sound {
            surprises.push(format!("{name}: {said:?} {:?}", finished.ending));
        }
        for executable in [false, true] {
            let Some(path) = bench.store.path(F.digest(INPUT), executable).unwrap() else {
                continue;
            };
            let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
            if std::fs::read(&path).unwrap() != INPUT || mode & 0o222 != 0 {
                surprises.push(format!(
                    "{name}: the store's copy is not what it was, mode {mode:o}"
                ));
            }
        }
    }
    surprises
}
