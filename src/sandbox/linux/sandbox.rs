//! The daemon's side of the full level: which launcher a command gets, what is handed to it, and what its end means.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use prost::Message;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::cgroup::{Cgroups, SlotGroup};
use super::disk;
use super::kind::{self, Kind};
use super::namespace::OwnNamespace;
use super::outside::Ids;
use super::places::Places;
use super::profile::Profiles;
use super::sys;
use super::template::TAME;
use crate::config::Owner;
use crate::sandbox::slot::launchers::Launchers;
use crate::sandbox::slot::request::sealed;
use crate::sandbox::slot::run::{self, Ran, Run};
use crate::sandbox::slot::seat::{Seat, SetUp};
use crate::sandbox::{
    CommandSpec, End, Inputs, Level, Limits, Outcome, RootShape, Sandbox, SandboxError, View,
};

/// After so many commands a launcher is replaced, whatever happened.
const COMMANDS: u32 = 10_000;

/// What an operator decides.
#[derive(Clone, Debug)]
pub struct FullConfig {
    /// The profiles that commands may ask for.
    pub profiles: Profiles,
    /// A root daemon's commands run as this uid and gid, or as one above if it is taken.
    pub first_uid: u32,
    /// The directory below which all input roots lie.
    pub roots: PathBuf,
    /// Where the daemon that is not root may mount all the same.
    pub namespace: Option<OwnNamespace>,
}

/// Runs commands, fully isolated.
pub struct FullSandbox {
    profiles: Profiles,
    ids: Ids,
    namespace: Option<OwnNamespace>,
    roots: PathBuf,
    cgroups: Cgroups,
    /// The lock is held for a whole run: a slot runs one command at a time.
    slots: Vec<Mutex<Slot>>,
}

struct Slot {
    seat: Seat,
    group: Option<SlotGroup>,
    /// What the launcher is, or will be, ready for.
    kind: Option<Kind>,
    /// Commands that the launcher has run.
    commands: u32,
}

impl FullSandbox {
    /// Takes the launchers into the current tokio runtime.
    pub fn new(launchers: Launchers, config: FullConfig) -> Result<Self, SandboxError> {
        let mut cgroups = Cgroups::open(launchers.slots());
        let mut groups = cgroups.take_slots().into_iter();
        let kind = launchers.kind;
        let slots = launchers.started.into_iter().enumerate();
        let slots = slots
            .map(|(slot, process)| {
                let seat = Seat::new(slot, kind.clone(), None, process)?;
                Ok(Mutex::new(Slot {
                    seat,
                    group: groups.next(),
                    kind: None,
                    commands: 0,
                }))
            })
            .collect::<Result<_, SandboxError>>()?;
        Ok(FullSandbox {
            profiles: config.profiles,
            ids: Ids::find(config.first_uid, config.namespace)?,
            namespace: config.namespace,
            roots: config.roots,
            cgroups,
            slots,
        })
    }

    /// Makes all launchers ready for commands of the default kind, so that a host that lacks something is found out before the
    /// first command. An error says what is lacking.
    pub async fn prepare(&self) -> Result<(), SandboxError> {
        for slot in &self.slots {
            let mut slot = slot.lock().await;
            self.make_ready(&mut slot, &View::default()).await?;
        }
        Ok(())
    }

    /// What limits this host can keep, in words for the log.
    pub fn limits_in_words(&self) -> &str {
        self.cgroups.describe()
    }

    /// The process id of a slot's launcher; `None` while the slot runs a command or has no launcher.
    pub fn launcher(&self, slot: usize) -> Option<u32> {
        self.slots.get(slot)?.try_lock().ok()?.seat.launcher()
    }

    /// A daemon that may mount hands roots over as mounts; another one names them.
    fn by_name(&self) -> bool {
        !rustix::process::geteuid().is_root() && self.namespace.is_none()
    }

    /// A launcher that is ready for commands of this kind.
    async fn make_ready(&self, slot: &mut Slot, view: &View) -> Result<(), SandboxError> {
        let kind = Kind::of(view);
        if slot.kind.as_ref() != Some(&kind) {
            let profile =
                self.profiles
                    .get(&kind.profile)
                    .ok_or_else(|| SandboxError::Isolate {
                        problem: format!("there is no sandbox profile {:?}", kind.profile),
                    })?;
            let roots = self.by_name().then_some(&*self.roots);
            let message = kind::set_up(&kind, profile, &self.ids.outside, roots);
            self.not_shown(&message.host_paths)?;
            let fail = |source| SandboxError::Setup {
                action: "tell a launcher what its commands see".into(),
                source,
            };
            let set_up = SetUp {
                message: sealed(&message.encode_to_vec()).map_err(fail)?,
            };
            slot.seat.set_up(Arc::new(set_up));
            slot.kind = Some(kind);
            slot.commands = 0;
        }
        if slot.commands >= COMMANDS {
            slot.commands = 0;
            slot.seat.retire();
        }
        slot.seat.ready().await
    }

    /// Refuses to show commands the directory in which the daemon keeps what belongs to others.
    fn not_shown(&self, host_paths: &[String]) -> Result<(), SandboxError> {
        let roots = std::fs::canonicalize(&self.roots).unwrap_or_else(|_| self.roots.clone());
        let shows =
            |path: &&String| std::fs::canonicalize(path).is_ok_and(|path| roots.starts_with(path));
        match host_paths.iter().find(shows) {
            None => Ok(()),
            Some(path) => Err(SandboxError::Isolate {
                problem: format!(
                    "commands are shown {path} of the host, and {} lies below it: choose another state directory",
                    roots.display()
                ),
            }),
        }
    }

    /// Without a cgroup for it, the limit of processes is one of the command's user, who is in the slot's user namespace alone.
    fn count_processes(&self, limits: &mut Limits) {
        let pids = Limits {
            pids: limits.pids,
            ..Limits::default()
        };
        if !self.cgroups.unenforced(&pids).is_empty() {
            limits.processes = limits.processes.into_iter().chain(limits.pids).min();
        }
    }

    /// A mount of the input root that belongs to nobody yet.
    fn mount_of(&self, root: &Path) -> Result<Option<OwnedFd>, SandboxError> {
        if self.by_name() {
            return Ok(None);
        }
        let fail = |source| SandboxError::Setup {
            action: format!("show the input root {}", root.display()),
            source,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, root, flags).map_err(|e| fail(e.into()))?;
        sys::seal_mounts(tree.as_fd(), TAME).map_err(fail)?;
        Ok(Some(tree))
    }
}

#[async_trait]
impl Sandbox for FullSandbox {
    fn level(&self) -> Level {
        Level::Full
    }

    fn owner(&self, _slot: usize) -> Option<Owner> {
        let root = rustix::process::geteuid().is_root();
        root.then_some(self.ids.outside.command)
    }

    fn unenforced(&self, limits: &Limits) -> Vec<&'static str> {
        // Where no cgroup counts them, processes are counted for the slot's user namespace.
        let others = Limits {
            pids: None,
            ..limits.clone()
        };
        self.cgroups.unenforced(&others)
    }

    async fn run(
        &self,
        slot: usize,
        mut spec: CommandSpec,
        cancel: CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        let Some(slot) = self.slots.get(slot) else {
            return Err(SandboxError::Launcher {
                slot,
                problem: format!("does not exist: there are {} slots", self.slots.len()),
            });
        };
        let mut slot = slot.lock().await;
        let slot = &mut *slot;
        self.make_ready(slot, &spec.view).await?;
        self.count_processes(&mut spec.limits);
        slot.commands += 1;
        let fail = |action: String| move |source| SandboxError::Setup { action, source };
        let places = match spec.view.root {
            RootShape::Host => None,
            RootShape::Input => {
                let what = format!("make the input root {} a root", spec.root.display());
                let (root, owner) = (spec.root.clone(), self.owner(0));
                // Not on a thread that may have to answer for a file system that the root lies on.
                let made = spawn_blocking(move || Places::make(&root, owner)).await;
                let made = made.map_err(std::io::Error::other).flatten();
                Some(made.map_err(fail(what))?)
            }
        };
        let root = self.mount_of(&spec.root)?;
        let broken = |e: super::cgroup::CgroupError| SandboxError::Isolate {
            problem: e.to_string(),
        };
        let begun = match &mut slot.group {
            Some(group) => Some(group.begin(&spec.limits).map_err(broken)?),
            None => None,
        };
        let watched = CancellationToken::new();
        let exceeded = watch(&spec, slot.group.as_ref(), watched.clone())
            .map_err(fail("watch what the command writes".into()))?;
        // Whatever becomes of the run, nobody watches what is over.
        let _over = watched.drop_guard();
        let uid = spec.view.user.uid;
        let run = Run {
            spec,
            cancel,
            root,
            // Asked for anew each time, as `begin` may have made the group anew.
            groups: slot.group.as_ref().map_or(&[][..], |group| group.join()),
            uid: Some(uid),
            owner: self.owner(slot.seat.slot()),
            exceeded,
        };
        let ran = run::run(&mut slot.seat, run).await;
        // Whatever became of it: what a dead launcher's command used has been used.
        let used = match (&mut slot.group, begun) {
            (Some(group), Some(begun)) => Some(group.end(begun).map_err(broken)?),
            _ => None,
        };
        if let Some(places) = places {
            let gone = spawn_blocking(move || drop(places)).await;
            gone.map_err(|e| fail("take away what was made for a root".into())(e.into()))?;
        }
        let Ran {
            mut outcome,
            forced: mut suspicious,
        } = ran.inspect_err(|_| slot.seat.retire())?;
        if let Some(used) = used {
            outcome.usage = used.complete(outcome.usage);
            // Who takes a command back does not ask how it would have ended.
            if let Some(end) = used
                .out_of_memory()
                .filter(|_| outcome.end != End::Cancelled)
            {
                outcome.end = end;
                suspicious = true;
            }
        }
        if suspicious {
            slot.seat.retire();
            slot.commands = 0;
        }
        Ok(outcome)
    }
}

/// Completes when the command has written more than it may.
fn watch(
    spec: &CommandSpec,
    group: Option<&SlotGroup>,
    over: CancellationToken,
) -> std::io::Result<run::Exceeded> {
    // What its inputs take on the disk is not known to the byte: each file is rounded up to a block.
    const BLOCK: u64 = 4096;
    let Inputs { bytes, nodes } = spec.inputs;
    let before = disk::Content {
        bytes: bytes.saturating_add(nodes.saturating_mul(BLOCK)),
        nodes,
    };
    let Some(bounds) = disk::Bounds::new(&spec.limits, before) else {
        return Ok(Box::pin(std::future::pending()));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, &spec.root, flags, Mode::empty())?;
    let lister = group.map(SlotGroup::lister);
    let processes = move || lister.as_ref().map_or_else(Vec::new, |list| list());
    Ok(Box::pin(async move {
        match disk::watch(dir, bounds, processes, over).await {
            Some(what) => what,
            None => std::future::pending().await,
        }
    }))
}
