//! What an action leaves in the place of its outputs, collected by a whole action at this level: nothing of the host's
//! comes into the store, and nobody waits. `outputs_hostile` has every case of the collector itself.

use std::time::Duration;

use boxwright::action::Ending;
use boxwright::reapi::proto::re;

use super::action::{Bench, F};
use super::attempt::Lab;
use super::world::HOSTS;

/// A link is reported as a link; whatever has no place among outputs is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Becomes {
    Link,
    Refusal,
}

const KINDS: [(&str, Becomes); 9] = [
    ("out.symlink_file", Becomes::Link),
    ("out.symlink_dir", Becomes::Link),
    ("out.symlink_magic", Becomes::Link),
    ("out.symlink_parent", Becomes::Refusal),
    ("out.fifo", Becomes::Refusal),
    ("out.socket", Becomes::Refusal),
    ("out.sparse", Becomes::Refusal),
    ("out.deep", Becomes::Refusal),
    ("out.nonutf8", Becomes::Refusal),
];

pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    if !lab.place.is_ours() {
        return Vec::new();
    }
    let bench = Bench::with(lab.sandbox.clone(), |settings| {
        settings.grace = Duration::ZERO
    });
    let probe = std::fs::read(lab.world.probe()).unwrap();
    let digest = F.digest(&probe);
    bench.store.put(digest, &probe, true).unwrap();
    let root = bench.put_message(&re::Directory {
        files: vec![re::FileNode {
            name: "probe".into(),
            digest: Some(digest.to_proto()),
            is_executable: true,
            ..Default::default()
        }],
        ..Default::default()
    });
    let host = lab.world.fill("{host}").unwrap();
    let mut surprises = Vec::new();
    for (name, becomes) in KINDS {
        let command = re::Command {
            arguments: ["./probe", name, &host].map(str::to_owned).to_vec(),
            output_paths: ["output", "parent/secret"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let run = tokio::time::timeout(Duration::from_secs(20), bench.run(command, root));
        let Ok(finished) = run.await else {
            surprises.push(format!("{name}: collecting it does not end"));
            continue;
        };
        println!("{:?} {name}: {:?}", lab.place, finished.ending);
        let result = finished.result.unwrap_or_default();
        let said = String::from_utf8_lossy(&result.stdout_raw);
        let refused = matches!(
            finished.ending,
            Ending::BadOutput(_) | Ending::LimitExceeded(_)
        );
        let sound = said.starts_with("ALLOWED")
            && result.output_files.is_empty()
            && result.output_directories.is_empty()
            && refused == (becomes == Becomes::Refusal)
            && result.output_symlinks.len() == usize::from(becomes == Becomes::Link);
        if !sound {
            surprises.push(format!("{name}: {said:?}, {:?}", finished.ending));
        }
    }
    if bench.store.missing(&[F.digest(HOSTS)]).is_empty() {
        surprises.push("a file of the host came into the store".into());
    }
    surprises
}
