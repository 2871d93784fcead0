//! Workers that have nothing of a tree, with a CAS that is 20 ms away, there and back.
//!
//! A kernel without netem has no other way of making a line long than to carry its bytes: [`Line`] does that the
//! same for all that is compared.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxwright::cas::{Cas, LocalStore, RemoteCas, RemoteConfig, StoreConfig};
use boxwright::config::Listen;
use boxwright::inputs::fuse::FuseRoots;
use boxwright::inputs::{InputRoots, StageRequest};
use boxwright::reapi::Digest;
use boxwright::scheduler::embedded::ActionCache;
use boxwright::serve::{Server, ServerConfig};
use boxwright::tree::{TreeLimits, TreeStore, fetch};
use tokio_util::task::AbortOnDropHandle;

use crate::Gate;
use crate::ground::{Ground, OWNER};
use crate::line::Line;
use crate::touch::{every, median, ms, ratio, touch};
use crate::tree::{self, Made};

const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Of the tree; every tenth is read.
const FILES: usize = 2_000;
/// What commands of one kind have in common.
const SHAPES: [u64; 2] = [1, 2];

/// What commands have read before is on its way when they ask for it; and no command waits for contents before it starts.
pub(crate) async fn cold(ground: &Ground) -> Vec<Gate> {
    let far = Far::start(ground).await;
    let worker = |name: &str, learnt| Worker::new(&far, ground.path(name), learnt);
    let learning = worker("learning", None);
    learning.run(tree::make(ground, FILES, 0)).await;
    let learnt = learning.dir.join("input-profiles");
    // It writes down what it has learnt at the latest when it ends.
    drop(learning);
    let (mut ahead, mut plain, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=3 {
        for (name, times, learnt) in [
            ("plain", &mut plain, None),
            ("ahead", &mut ahead, Some(&learnt)),
        ] {
            let worker = worker(&format!("{name}-{n}"), learnt);
            let (started, took) = worker.run(tree::make(ground, FILES, n)).await;
            times.push(took);
            first.push(started);
        }
    }
    let (ahead, plain, first) = (median(ahead), median(plain), median(first));
    vec![
        Gate {
            name: "cold, 20 ms away, 200 files read: fetched ahead",
            figures: format!("{} ms, when asked for {} ms", ms(ahead), ms(plain)),
            ratio: ratio(ahead, plain),
            bound: 1.0 / 3.0,
        },
        Gate {
            name: "cold, 20 ms away: start of the command",
            figures: format!("{} ms, round trip {} ms", ms(first), ms(ROUND_TRIP)),
            ratio: ratio(first, ROUND_TRIP),
            bound: 0.5,
        },
    ]
}

/// The ground's store, served at the far end of a line.
struct Far {
    line: Line,
    _serving: AbortOnDropHandle<()>,
}

impl Far {
    async fn start(ground: &Ground) -> Far {
        let cache = ActionCache::open(&ground.path("ac"), 1000, ground.store.clone());
        let config = ServerConfig {
            listen: vec!["127.0.0.1:0".parse().expect("an address")],
            ..ServerConfig::default()
        };
        let server = Server::bind(config, ground.store.clone(), cache.expect("a cache"), None);
        let server = server.await.expect("a server");
        let at: SocketAddr = match &server.addresses()[0] {
            Listen::Tcp(at) => *at,
            other => panic!("{other}"),
        };
        let serving = tokio::spawn(async move {
            server.run(std::future::pending()).await.expect("service");
        });
        Far {
            line: Line::to(at, ROUND_TRIP / 2).await,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

/// A worker with an empty store.
struct Worker {
    dir: PathBuf,
    cas: Cas,
    roots: FuseRoots,
}

impl Worker {
    fn new(far: &Far, dir: PathBuf, learnt: Option<&PathBuf>) -> Worker {
        std::fs::create_dir(&dir).expect("a directory");
        if let Some(learnt) = learnt {
            std::fs::copy(learnt, dir.join("input-profiles")).expect("what was learnt");
        }
        let store = LocalStore::open(StoreConfig {
            root: dir.join("cas"),
            high_water: 4 << 30,
            low_water: 2 << 30,
            free_floor: 0,
        });
        let remote = RemoteCas::new(RemoteConfig {
            endpoint: format!("http://{}", far.line.near)
                .parse()
                .expect("an address"),
            credentials: Default::default(),
            instance: String::new(),
            retries: 0,
            retry_delay: Duration::from_millis(1),
            call_timeout: Duration::from_secs(60),
        });
        let cas = Cas::new(
            store.expect("a store"),
            Some(Arc::new(remote.expect("a client"))),
        );
        let roots = FuseRoots::new(cas.clone(), &dir.join("roots")).expect("roots on FUSE");
        Worker { dir, cas, roots }
    }

    /// An action that reads every tenth file of a tree, one after the other: the time until a program runs in its root, and the
    /// time of all of it. That of the Directory messages is not part of it.
    async fn run(&self, Made { root, files }: Made) -> (Duration, Duration) {
        let tree = self.tree(root).await;
        let request = StageRequest {
            name: "cold".to_owned(),
            tree,
            directories: vec!["out".to_owned()],
            outputs: vec!["out/result".to_owned()],
            owner: Some(OWNER),
            shapes: SHAPES.to_vec(),
            writable: false,
            watched: false,
            hold: None,
        };
        let begun = Instant::now();
        let shown = self.roots.stage(request).await.expect("a root");
        let path = shown.path().to_owned();
        let work = move || {
            let program = std::process::Command::new("/bin/true")
                .current_dir(&path)
                .status();
            assert!(program.expect("a program").success());
            let started = begun.elapsed();
            touch(&path, &every(&files, 10));
            started
        };
        let started = tokio::task::spawn_blocking(work).await.expect("the work");
        shown.remove().await.expect("a removal");
        (started, begun.elapsed())
    }

    async fn tree(&self, root: Digest) -> Arc<boxwright::tree::Tree> {
        let trees = TreeStore::new(64 << 20);
        let tree = fetch(&self.cas, &trees, root, TreeLimits::default()).await;
        tree.expect("a tree")
    }
}
