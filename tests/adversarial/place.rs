//! Where attempts are made: a level is a sandbox, as a worker would have it.

use std::sync::Arc;

use boxwright::sandbox::linux::profile::Profiles;
use boxwright::sandbox::linux::{FullConfig, FullSandbox};
use boxwright::sandbox::process::ProcessSandbox;
use boxwright::sandbox::{Launchers, Level, Sandbox};

use super::unconfined::Unconfined;
use super::world::{World, is_root};

/// The columns of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// No sandbox, as an ordinary user.
    OutsideUser,
    /// No sandbox, as root.
    OutsideRoot,
    /// Level `process` of a root daemon.
    Process,
    /// Bubblewrap, with the arguments that buildbox-run gives it, started by root.
    Bubblewrap,
    /// Level `full` of a root daemon.
    FullRoot,
    /// Level `full` of a daemon that is an ordinary user with a range of subordinate ids.
    FullRootless,
}

impl Place {
    /// Whether this is one where every attempt has to succeed.
    pub(crate) fn is_outside(self) -> bool {
        matches!(self, Place::OutsideUser | Place::OutsideRoot)
    }

    /// Whether this is a sandbox of ours, with limits and a time.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Place::Process | Place::FullRoot | Place::FullRootless)
    }

    pub(crate) fn is_full(self) -> bool {
        matches!(self, Place::FullRoot | Place::FullRootless)
    }
}

/// Says why there is none.
pub(crate) fn tell_absent(place: Place) {
    match place {
        Place::Bubblewrap if is_root() => crate::skipped::program("bwrap"),
        _ => crate::skipped::here(format!("there is no {place:?} for this user")),
    }
}

/// Two slots; `None` where this machine or this user cannot have it.
pub(crate) fn sandbox(place: Place, world: &World) -> Option<Arc<dyn Sandbox>> {
    match place {
        Place::OutsideUser => Some(Arc::new(Unconfined::user(world.probe()))),
        Place::OutsideRoot => is_root().then(|| Arc::new(Unconfined::root(world.probe())) as _),
        Place::Bubblewrap => is_root()
            .then(Unconfined::bubblewrap)?
            .map(|it| Arc::new(it) as _),
        Place::Process => is_root().then(|| {
            let launchers = Launchers::start_from(world.launcher(), Level::Process, 2).unwrap();
            Arc::new(ProcessSandbox::new(launchers, world.unused_ids()).unwrap()) as _
        }),
        Place::FullRoot if !is_root() => None,
        Place::FullRoot | Place::FullRootless => {
            let launchers = Launchers::start_from(world.launcher(), Level::Full, 2).unwrap();
            let config = FullConfig {
                profiles: Profiles::load(None).unwrap(),
                first_uid: world.unused_ids(),
                roots: world.scratch(),
                namespace: None,
            };
            Some(Arc::new(FullSandbox::new(launchers, config).unwrap()))
        }
    }
}
