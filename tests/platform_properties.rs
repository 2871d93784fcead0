//! What actions ask for by platform properties, all the way to the sandbox: what it is told, what it is shown, and what
//! is refused before anything runs.

#[path = "common/action.rs"]
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use boxwright::action::{Ending, Finished, Runner, RunnerParts, Settings, Strategies, Strategy};
use boxwright::cas::{Cas, LocalStore, StoreConfig};
use boxwright::config::{NetworkPolicy, Owner};
use boxwright::inputs::staged::Staged;
use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use boxwright::sandbox::{
    Captured, CommandSpec, End, Identity, Level, Limits, Outcome, RootShape, Sandbox, SandboxError,
    Sandboxes, Usage, View,
};
use boxwright::tree::{Properties, TreeBuilder, TreeStore};
use common::{F, action, lease, settings, sh};
use prost::Message;
use tokio_util::sync::CancellationToken;

/// What the sandbox was asked to run.
#[derive(Debug)]
struct Seen {
    level: Level,
    view: View,
    limits: Limits,
    timeout: Option<std::time::Duration>,
    /// Every file of the input root, sorted.
    files: Vec<PathBuf>,
}

/// Runs nothing and remembers what it was to run.
struct Recorder {
    level: Level,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => found.push(entry.path().strip_prefix(below).unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

#[async_trait]
impl Sandbox for Recorder {
    fn level(&self) -> Level {
        self.level
    }

    fn owner(&self, _: usize) -> Option<Owner> {
        None
    }

    fn unenforced(&self, _: &Limits) -> Vec<&'static str> {
        Vec::new()
    }

    async fn run(
        &self,
        _: usize,
        spec: CommandSpec,
        _: CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        self.seen.lock().unwrap().push(Seen {
            level: self.level,
            files: files(&spec.root),
            view: spec.view,
            limits: spec.limits,
            timeout: spec.timeout,
        });
        let now = SystemTime::now();
        Ok(Outcome {
            end: End::Exited(0),
            usage: Usage::default(),
            started: now,
            finished: now,
            stdout: Captured::Memory(Default::default()),
            stdout_dropped: 0,
            stderr: Captured::Memory(Default::default()),
            stderr_dropped: 0,
        })
    }
}

struct Worker {
    store: Arc<LocalStore>,
    runner: Runner,
    seen: Arc<Mutex<Vec<Seen>>>,
    _dir: tempfile::TempDir,
}

impl Worker {
    fn new(levels: &[Level], change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 1 << 30,
            low_water: 1 << 29,
            free_floor: 0,
        })
        .unwrap();
        let cas = Cas::new(store.clone(), None);
        let mut settings = Settings {
            strategies: Strategies::at(levels),
            ..settings(store.scratch().to_owned())
        };
        change(&mut settings);
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let sandbox = |level: Level| -> Option<Arc<dyn Sandbox>> {
            let seen = seen.clone();
            levels
                .contains(&level)
                .then(|| Arc::new(Recorder { level, seen }) as _)
        };
        let runner = Runner::new(RunnerParts {
            trees: Arc::new(TreeStore::new(1 << 20)),
            inputs: Arc::new(Staged::new(cas.clone(), dir.path().join("stage")).unwrap()),
            sandboxes: Sandboxes {
                full: sandbox(Level::Full),
                process: sandbox(Level::Process),
            },
            cas,
            settings,
            worker_name: "recorder".into(),
            live: None,
            slots: 1,
        });
        Worker {
            store,
            runner,
            seen,
            _dir: dir,
        }
    }

    fn put(&self, data: &[u8]) -> Digest {
        let digest = F.digest(data);
        self.store.put(digest, data, false).unwrap();
        digest
    }

    /// A tree of files, stored; directories may say something of themselves.
    fn tree(&self, files: &[&str], says: &[(&str, &str)]) -> Digest {
        let mut builder = TreeBuilder::new(F);
        for path in files {
            let content = self.put(path.as_bytes());
            builder.file(path, content, false, None).unwrap();
        }
        for (path, value) in says {
            let properties = Properties {
                named: vec![("SubtreeReadOnly".into(), (*value).into())],
                ..Default::default()
            };
            builder.directory_properties(path, properties).unwrap();
        }
        let (root, messages) = builder.finish();
        for (digest, bytes) in messages {
            self.store.put(digest, &bytes, false).unwrap();
        }
        root
    }

    async fn run(&self, root: Digest, properties: &[(&str, &str)]) -> Finished {
        let command = self.put(&sh("true").encode_to_vec());
        let properties = properties
            .iter()
            .map(|(name, value)| re::platform::Property {
                name: (*name).into(),
                value: (*value).into(),
            });
        let action = re::Action {
            platform: Some(re::Platform {
                properties: properties.collect(),
            }),
            ..action(command, root)
        };
        self.run_action(action).await
    }

    async fn run_action(&self, action: re::Action) -> Finished {
        let cancel = CancellationToken::new();
        let finished = self.runner.run(&lease(&action), 0, &cancel, &|_| {}).await;
        self.runner.settle().await;
        finished
    }

    /// Runs an action that must succeed; what the sandbox saw of it.
    async fn seen(&self, root: Digest, properties: &[(&str, &str)]) -> Seen {
        let finished = self.run(root, properties).await;
        assert_eq!(finished.ending, Ending::Exited(0), "{properties:?}");
        self.seen.lock().unwrap().pop().unwrap()
    }

    /// Runs an action that must be refused before anything runs; what it is told.
    async fn refused(&self, root: Digest, properties: &[(&str, &str)]) -> String {
        let finished = self.run(root, properties).await;
        assert!(self.seen.lock().unwrap().is_empty());
        match finished.ending {
            Ending::Unsupported(why) | Ending::BadRequest(why) => why,
            other => panic!("{properties:?}: {other:?}"),
        }
    }
}

fn allow_network(settings: &mut Settings) {
    settings.strategies.base.network = NetworkPolicy::Allowed;
    settings.strategies.base.limits.memory = Some(8 << 30);
}

#[tokio::test]
async fn what_an_action_asks_for_reaches_the_sandbox() {
    let worker = Worker::new(&Level::ALL, allow_network);
    let root = worker.tree(&["a"], &[]);
    let plain = worker.seen(root, &[]).await;
    assert_eq!((plain.level, &plain.view), (Level::Full, &View::default()));
    assert_eq!(plain.limits.memory, Some(8 << 30));

    let seen = worker
        .seen(
            root,
            &[
                ("OSFamily", "linux"),
                ("cpus", "1.5"),
                ("memory", "2G"),
                ("network", "on"),
                ("pids", "50"),
                ("root", "input"),
                ("timeout", "90s"),
                ("unixGID", "1001"),
                ("unixUID", "0"),
            ],
        )
        .await;
    assert_eq!(seen.level, Level::Full);
    let user = Identity { uid: 0, gid: 1001 };
    let root = RootShape::Input;
    assert_eq!(
        seen.view,
        View {
            root,
            network: true,
            user,
            ..View::default()
        }
    );
    assert_eq!(seen.limits.memory, Some(2 << 30));
    assert_eq!(seen.limits.cpu_milli, Some(1500));
    assert_eq!(seen.limits.pids, Some(50));
    assert_eq!(seen.timeout, Some(std::time::Duration::from_secs(90)));
}

#[tokio::test]
async fn a_chroot_is_what_the_input_root_is_merged_into() {
    let worker = Worker::new(&[Level::Full], |_| {});
    let chroot = worker.tree(&["usr/bin/cc", "usr/include/std.h"], &[]);
    let root = worker.tree(&["src/a.c", "usr/include/mine.h"], &[]);
    let seen = worker
        .seen(root, &[("chrootRootDigest", &chroot.to_string())])
        .await;
    assert_eq!(seen.view.root, RootShape::Input);
    let files = [
        "src/a.c",
        "usr/bin/cc",
        "usr/include/mine.h",
        "usr/include/std.h",
    ];
    assert_eq!(seen.files, files.map(PathBuf::from));

    let collides = worker.tree(&["usr/bin"], &[]);
    let why = worker
        .refused(collides, &[("chrootRootDigest", &chroot.to_string())])
        .await;
    assert!(why.contains("usr/bin") && why.contains("collide"), "{why}");

    let nowhere = F.digest(b"no such directory");
    let missing = worker
        .run(root, &[("chrootRootDigest", &nowhere.to_string())])
        .await;
    let Ending::MissingInputs(missing) = missing.ending else {
        panic!("{missing:?}")
    };
    assert_eq!(missing[0].digest, nowhere);
    assert!(
        missing[0].what.contains("chrootRootDigest"),
        "{}",
        missing[0].what
    );
}

#[tokio::test]
async fn all_that_is_missing_of_a_chroot_is_named_with_all_else() {
    let worker = Worker::new(&[Level::Full], |_| {});
    let absent = |name: &str| F.digest(name.as_bytes());
    let tree = |files: &[&str], directory: Option<&str>| {
        let directories = { directory.into_iter() }.map(|name| re::DirectoryNode {
            name: name.into(),
            digest: Some(absent(name).to_proto()),
        });
        let files = files.iter().map(|name| re::FileNode {
            name: (*name).into(),
            digest: Some(absent(name).to_proto()),
            ..Default::default()
        });
        let message = re::Directory {
            files: files.collect(),
            directories: directories.collect(),
            ..Default::default()
        };
        worker.put(&message.encode_to_vec())
    };
    let here = worker.put(&sh("true").encode_to_vec());
    let whole = worker.tree(&["there"], &[]);
    // Which directories of the two trees are missing, and whether the Command is: of both trees a file is, one of them in both.
    for (root, chroot, command, more) in [
        (None, Some("bin"), here, vec!["bin"]),
        (Some("src"), None, here, vec!["src"]),
        (Some("src"), Some("bin"), here, vec!["bin", "src"]),
        (None, None, absent("command"), vec!["command"]),
        (None, Some("bin"), absent("command"), vec!["bin", "command"]),
    ] {
        let chroot = tree(&["both", "libx"], chroot);
        let asks = |chroot: Digest| re::Action {
            platform: Some(re::Platform {
                properties: vec![re::platform::Property {
                    name: "chrootRootDigest".into(),
                    value: chroot.to_string(),
                }],
            }),
            ..action(command, tree(&["both", "foo"], root))
        };
        let all: Vec<&str> = more.into_iter().chain(["both", "foo", "libx"]).collect();
        let finished = worker.run_action(asks(chroot)).await;
        let Ending::MissingInputs(missing) = finished.ending else {
            panic!("{finished:?}")
        };
        let mut digests: Vec<Digest> = missing.iter().map(|blob| blob.digest).collect();
        let mut expected: Vec<Digest> = all.iter().map(|name| absent(name)).collect();
        digests.sort();
        expected.sort();
        assert_eq!(digests, expected, "{all:?} and not {missing:?}");
        let of_chroot = format!("input file libx of chrootRootDigest {chroot}");
        let told = |what: &str| missing.iter().any(|blob| blob.what == what);
        assert!(told(&of_chroot) && told("input file foo"), "{missing:?}");

        // One that has all of its own adds nothing.
        let finished = worker.run_action(asks(whole)).await;
        let Ending::MissingInputs(missing) = finished.ending else {
            panic!("{finished:?}")
        };
        assert!(
            !missing.iter().any(|blob| blob.what.contains("chroot")),
            "{missing:?}"
        );
    }
}

#[tokio::test]
async fn a_chroot_that_only_the_command_names_is_looked_at_too() {
    let worker = Worker::new(&[Level::Full], |_| {});
    let (lost, gone) = (F.digest(b"lost"), F.digest(b"gone"));
    #[allow(deprecated)]
    let command = re::Command {
        platform: Some(re::Platform {
            properties: vec![re::platform::Property {
                name: "chrootRootDigest".into(),
                value: lost.to_string(),
            }],
        }),
        ..sh("true")
    };
    let command = worker.put(&command.encode_to_vec());
    let finished = worker.run_action(action(command, gone)).await;
    let Ending::MissingInputs(missing) = finished.ending else {
        panic!("{finished:?}")
    };
    let mut digests: Vec<Digest> = missing.iter().map(|blob| blob.digest).collect();
    digests.sort();
    let mut expected = [lost, gone];
    expected.sort();
    assert_eq!(digests, expected);
}

#[tokio::test]
async fn parts_of_the_input_root_stay_read_only_or_the_action_is_refused() {
    let says = [("", "true"), ("tmp", "false"), ("buildstream/lab", "false")];
    let both = Worker::new(&[Level::Process, Level::Full], |_| {});
    let root = both.tree(&["buildstream/lab/a"], &says);
    let seen = both.seen(root, &[]).await;
    assert_eq!(
        seen.level,
        Level::Full,
        "the preferred level cannot give it"
    );
    assert_eq!(seen.view.read_only, [PathBuf::new()]);
    assert_eq!(
        seen.view.writable,
        ["buildstream/lab", "tmp"].map(PathBuf::from)
    );

    let process = Worker::new(&[Level::Process], |_| {});
    let root = process.tree(&["a"], &says);
    let why = process.refused(root, &[]).await;
    assert!(why.contains("SubtreeReadOnly"), "{why}");

    let ignores = Worker::new(&[Level::Process], |settings| {
        settings.ignored_properties.push("SubtreeReadOnly".into());
    });
    let root = ignores.tree(&["a"], &says);
    assert!(ignores.seen(root, &[]).await.view.read_only.is_empty());
}

#[tokio::test]
async fn a_level_that_cannot_give_it_is_never_used() {
    let worker = Worker::new(&[Level::Process], |settings| {
        settings.strategies.base.levels = Level::ALL.to_vec();
    });
    let root = worker.tree(&["a"], &[]);
    assert_eq!(worker.seen(root, &[]).await.level, Level::Process);
    for property in [
        ("unixUID", "1000"),
        ("network", "off"),
        ("memory", "1G"),
        ("root", "input"),
    ] {
        let why = worker.refused(root, &[property]).await;
        assert!(
            why.contains(property.0) && why.contains("level process"),
            "{why}"
        );
    }
}

#[tokio::test]
async fn each_platform_has_its_strategy() {
    let worker = Worker::new(&Level::ALL, |settings| {
        settings.strategies.required = true;
        settings.strategies.declared = vec![
            Strategy {
                matches: vec![("pool".into(), vec!["trusted".into()])],
                ..Strategy::at(&[Level::Process, Level::Full])
            },
            Strategy {
                matches: vec![("pool".into(), vec!["open".into()])],
                profile: "strict".into(),
                profiles: vec!["debug".into()],
                ..Strategy::at(&[Level::Full])
            },
        ];
    });
    let root = worker.tree(&["a"], &[]);
    assert_eq!(
        worker.seen(root, &[("pool", "trusted")]).await.level,
        Level::Process
    );
    let open = worker.seen(root, &[("pool", "open")]).await;
    assert_eq!((open.level, &*open.view.profile), (Level::Full, "strict"));
    let debug = [("pool", "open"), ("sandbox-profile", "debug")];
    assert_eq!(&*worker.seen(root, &debug).await.view.profile, "debug");
    let other = [("pool", "open"), ("sandbox-profile", "network")];
    assert!(worker.refused(root, &other).await.contains("strict, debug"));
    let why = worker.refused(root, &[("pool", "other")]).await;
    assert!(
        why.contains("pool=other") && why.contains("strategy"),
        "{why}"
    );
}

#[tokio::test]
async fn the_result_says_how_the_action_was_isolated() {
    let worker = Worker::new(&[Level::Full], |_| {});
    let root = worker.tree(&["a"], &[]);
    let result = worker.run(root, &[]).await.result.unwrap();
    let metadata = result.execution_metadata.unwrap().auxiliary_metadata;
    let told = metadata
        .iter()
        .find_map(boxwright::reapi::any::unpack::<prost_types::Struct>)
        .unwrap()
        .unwrap();
    let Some(prost_types::value::Kind::StringValue(level)) = &told.fields["sandbox"].kind else {
        panic!("{told:?}")
    };
    assert_eq!(level, "full");
}
