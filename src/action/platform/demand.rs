//! What an action gets: its strategy, narrowed by what it asks for, at the levels that can give it.

use std::sync::Arc;
use std::time::Duration;

use super::asked::Asked;
use super::strategy::Strategy;
use crate::config::NetworkPolicy;
use crate::config::units::{cpus, duration, size};
use crate::reapi::Digest;
use crate::sandbox::{Identity, Level, Limits, Named, RootShape, View};

/// What an action gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// The levels that may be used and can give all of it, the preferred one first; never empty.
    pub(crate) levels: Vec<Level>,
    /// What it sees.
    pub(crate) view: View,
    /// What it is limited to.
    pub(crate) limits: Limits,
    /// Those of the limits that it asked for itself: one that cannot be kept is refused.
    pub(crate) limits_asked: Limits,
    /// The longest that it may run: beyond, an Action's timeout is refused.
    pub(crate) timeout_cap: Option<Duration>,
    /// How long it wants to run at most.
    pub(crate) timeout_asked: Option<Duration>,
    /// A tree to merge the input root into.
    pub(crate) chroot: Option<Digest>,
    /// Whether it is to be reported what it does with its inputs; `None` if it does not say.
    pub(crate) input_report: Option<bool>,
    /// Whether it may write beside all of its inputs.
    pub(crate) writable_inputs: bool,
}

impl Demand {
    /// Joins strategy and wishes; `there` are the levels that this worker has. The error says what cannot be had.
    pub(super) fn new(
        strategy: &Strategy,
        asked: Asked,
        there: &[Level],
    ) -> Result<Demand, String> {
        let root = root(strategy, &asked)?;
        let levels = levels(strategy, &asked, root, there)?;
        // In a root of its own nobody but the owner of all that is in it is known; BuildBox does the same.
        let defaults = match root {
            RootShape::Host => Identity::default(),
            RootShape::Input => Identity { uid: 0, gid: 0 },
        };
        let limits = Limits {
            memory: within("memory", asked.memory, strategy.limits.memory, size)?,
            cpu_milli: within("cpus", asked.cpu_milli, strategy.limits.cpu_milli, cpus)?,
            pids: within("pids", asked.pids, strategy.limits.pids, |n| n.to_string())?,
            ..strategy.limits.clone()
        };
        let most = |length: Duration| duration(length);
        within("timeout", asked.timeout, strategy.timeout, most)?;
        Ok(Demand {
            levels,
            limits,
            limits_asked: Limits {
                memory: asked.memory,
                cpu_milli: asked.cpu_milli,
                pids: asked.pids,
                ..Limits::default()
            },
            view: View {
                root,
                network: network(strategy, &asked)?,
                user: Identity {
                    uid: asked.uid.unwrap_or(defaults.uid),
                    gid: asked.gid.unwrap_or(defaults.gid),
                },
                profile: profile(strategy, asked.profile)?,
                ..View::default()
            },
            timeout_cap: strategy.timeout,
            timeout_asked: asked.timeout,
            chroot: asked.chroot,
            input_report: asked.input_report,
            // Who makes a root of its inputs changes what is in it.
            writable_inputs: asked.writable_inputs == Some(true) || root == RootShape::Input,
        })
    }

    /// Gives up the levels that cannot keep a part of the input root read-only.
    pub(crate) fn without_plain_levels(&mut self) -> Result<(), String> {
        let plain = Named(&self.levels).to_string();
        self.levels.retain(|&level| level == Level::Full);
        match self.levels.is_empty() {
            true => Err(format!(
                "node property SubtreeReadOnly=true of the input root: {plain} cannot keep a directory read-only, and \
                 this worker gives the action no other; --ignore-property SubtreeReadOnly runs such actions all the same"
            )),
            false => Ok(()),
        }
    }
}

/// An action may always ask to see less of the host, never for more than its strategy shows.
fn root(strategy: &Strategy, asked: &Asked) -> Result<RootShape, String> {
    let wanted = match (asked.root, asked.chroot) {
        (Some(RootShape::Host), Some(_)) => {
            return Err(refused(
                "root",
                "host",
                "chrootRootDigest asks for a root of its own",
            ));
        }
        (_, Some(_)) => RootShape::Input,
        (Some(root), None) => root,
        (None, None) => strategy.root,
    };
    match (strategy.root, wanted) {
        (RootShape::Input, RootShape::Host) => Err(refused(
            "root",
            "host",
            "this worker does not show the host's files to such actions (root = \"input\")",
        )),
        _ => Ok(wanted),
    }
}

fn network(strategy: &Strategy, asked: &Asked) -> Result<bool, String> {
    match (strategy.network, asked.network) {
        (NetworkPolicy::Off, Some(true)) => Err(refused(
            "network",
            "on",
            "this worker gives such actions no network; --network allowed gives it to those that ask",
        )),
        (NetworkPolicy::Off | NetworkPolicy::Allowed, None) => Ok(false),
        (NetworkPolicy::On, None) => Ok(true),
        (_, Some(asked)) => Ok(asked),
    }
}

fn profile(strategy: &Strategy, asked: Option<String>) -> Result<Arc<str>, String> {
    let Some(asked) = asked else {
        return Ok(strategy.profile.clone());
    };
    let mut allowed = std::iter::once(&strategy.profile).chain(&strategy.profiles);
    if let Some(profile) = allowed.clone().find(|profile| ***profile == *asked) {
        return Ok(profile.clone());
    }
    let first = allowed.next().map_or("", |profile| &**profile);
    let names = allowed.fold(first.to_owned(), |text, profile| {
        format!("{text}, {profile}")
    });
    let why = format!("this worker allows such actions {names}; --allow-profile allows more");
    Err(refused("sandbox-profile", &super::shorten(&asked), &why))
}

fn within<T: Copy + PartialOrd>(
    name: &str,
    asked: Option<T>,
    most: Option<T>,
    text: impl Fn(T) -> String,
) -> Result<Option<T>, String> {
    match (asked, most) {
        (Some(asked), Some(most)) if asked > most => {
            let why = format!("this worker gives such actions at most {}", text(most));
            Err(refused(name, &text(asked), &why))
        }
        (asked, most) => Ok(asked.or(most)),
    }
}

/// The strategy's levels, without those that are not there and those that cannot give what is wanted.
fn levels(
    strategy: &Strategy,
    asked: &Asked,
    root: RootShape,
    there: &[Level],
) -> Result<Vec<Level>, String> {
    let usable: Vec<Level> = (strategy.levels.iter().copied())
        .filter(|level| there.contains(level))
        .collect();
    if usable.is_empty() {
        return Err(format!(
            "this worker runs actions of this platform at {} only, and this host cannot give it; \
             `boxwright doctor` says why",
            Named(&strategy.levels)
        ));
    }
    let able: Vec<Level> = (usable.iter().copied())
        .filter(|&level| beyond(level, asked, root).is_none())
        .collect();
    match usable.first().and_then(|&level| beyond(level, asked, root)) {
        Some(what) if able.is_empty() => Err(format!(
            "platform property {what}: {} cannot give it, and this worker gives the action no other",
            Named(&usable)
        )),
        _ => Ok(able),
    }
}

/// The first thing that is beyond a level.
fn beyond(level: Level, asked: &Asked, root: RootShape) -> Option<String> {
    if level == Level::Full {
        return None;
    }
    let shown = |name: &str, value: String| Some(format!("{name}={}", super::shorten(&value)));
    let number = |name: &str, value: Option<u64>| value.and_then(|n| shown(name, n.to_string()));
    None.or_else(|| (asked.network == Some(false)).then(|| "network=off".to_owned()))
        .or_else(|| number("unixUID", asked.uid.map(u64::from)))
        .or_else(|| number("unixGID", asked.gid.map(u64::from)))
        .or_else(|| {
            asked
                .chroot
                .and_then(|d| shown("chrootRootDigest", d.to_string()))
        })
        .or_else(|| (root == RootShape::Input).then(|| "root=input".to_owned()))
        .or_else(|| asked.memory.and_then(|n| shown("memory", size(n))))
        .or_else(|| asked.cpu_milli.and_then(|n| shown("cpus", cpus(n))))
        .or_else(|| number("pids", asked.pids))
        .or_else(|| {
            asked
                .profile
                .clone()
                .and_then(|p| shown("sandbox-profile", p))
        })
}

fn refused(name: &str, value: &str, why: &str) -> String {
    format!("platform property {name}={value}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strategy() -> Strategy {
        Strategy {
            network: NetworkPolicy::Allowed,
            profiles: vec!["debug".into()],
            limits: Limits {
                memory: Some(4 << 30),
                pids: Some(100),
                open_files: Some(1024),
                ..Limits::default()
            },
            timeout: Some(Duration::from_secs(600)),
            ..Strategy::at(&[Level::Full, Level::Process])
        }
    }

    fn ask(change: impl FnOnce(&mut Asked)) -> Result<Demand, String> {
        let mut asked = Asked::default();
        change(&mut asked);
        Demand::new(&strategy(), asked, &Level::ALL)
    }

    #[test]
    fn who_asks_for_nothing_gets_the_strategy() {
        let demand = ask(|_| {}).unwrap();
        assert_eq!(demand.levels, [Level::Full, Level::Process]);
        assert_eq!(demand.view, View::default());
        assert_eq!(demand.limits, strategy().limits);
        assert_eq!(demand.timeout_cap, strategy().timeout);
    }

    #[test]
    fn an_action_may_ask_for_less_and_never_for_more() {
        let demand = ask(|asked| {
            asked.memory = Some(1 << 30);
            asked.cpu_milli = Some(1500);
            asked.timeout = Some(Duration::from_secs(60));
        })
        .unwrap();
        assert_eq!(demand.limits.memory, Some(1 << 30));
        assert_eq!(demand.limits.cpu_milli, Some(1500));
        assert_eq!(demand.limits.open_files, Some(1024));
        assert_eq!(demand.timeout_asked, Some(Duration::from_secs(60)));
        let refused = ask(|asked| asked.memory = Some(5 << 30)).unwrap_err();
        assert!(
            refused.contains("memory=5GiB") && refused.contains("4GiB"),
            "{refused}"
        );
        assert!(ask(|asked| asked.pids = Some(101)).is_err());
        assert!(ask(|asked| asked.timeout = Some(Duration::from_secs(601))).is_err());
    }

    /// A property as it is told, and what asks for it.
    type Wish = (&'static str, fn(&mut Asked));

    #[test]
    fn what_a_level_cannot_give_is_not_asked_of_it() {
        let of_full: [Wish; 9] = [
            ("network=off", |a| a.network = Some(false)),
            ("unixUID=0", |a| a.uid = Some(0)),
            ("unixGID=7", |a| a.gid = Some(7)),
            ("root=input", |a| a.root = Some(RootShape::Input)),
            ("memory=1GiB", |a| a.memory = Some(1 << 30)),
            ("cpus=0.5", |a| a.cpu_milli = Some(500)),
            ("pids=9", |a| a.pids = Some(9)),
            ("sandbox-profile=debug", |a| {
                a.profile = Some("debug".into())
            }),
            ("chrootRootDigest=", |a| {
                a.chroot = Some(crate::reapi::DigestFunction::Sha256.digest(b"x"));
            }),
        ];
        for (name, change) in of_full {
            assert_eq!(ask(change).unwrap().levels, [Level::Full], "{name}");
            let mut asked = Asked::default();
            change(&mut asked);
            let refused = Demand::new(&strategy(), asked, &[Level::Process]).unwrap_err();
            assert!(
                refused.contains(name) && refused.contains("level process"),
                "{refused}"
            );
        }
        let on = ask(|asked| asked.network = Some(true)).unwrap();
        assert_eq!(on.levels, [Level::Full, Level::Process]);
        assert!(on.view.network);
    }

    #[test]
    fn a_level_that_is_not_there_is_said_to_be_missing() {
        let strategy = Strategy::at(&[Level::Full]);
        let refused = Demand::new(&strategy, Asked::default(), &[Level::Process]).unwrap_err();
        assert!(
            refused.contains("level full") && refused.contains("doctor"),
            "{refused}"
        );
    }

    #[test]
    fn the_operator_decides_on_network_root_and_profiles() {
        let refuse = |strategy: Strategy, asked: Asked, word: &str| {
            let refused = Demand::new(&strategy, asked, &Level::ALL).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        };
        let asked = Asked::default();
        let off = Strategy::at(&[Level::Full]);
        let on = Some(true);
        refuse(
            off.clone(),
            Asked {
                network: on,
                ..asked.clone()
            },
            "network=on",
        );
        let always = Strategy {
            network: NetworkPolicy::On,
            ..off.clone()
        };
        assert!(
            Demand::new(&always, asked.clone(), &Level::ALL)
                .unwrap()
                .view
                .network
        );
        let input = Strategy {
            root: RootShape::Input,
            ..off.clone()
        };
        let host = Some(RootShape::Host);
        refuse(
            input.clone(),
            Asked {
                root: host,
                ..asked.clone()
            },
            "root=host",
        );
        let root = Demand::new(&input, asked.clone(), &Level::ALL)
            .unwrap()
            .view
            .root;
        assert_eq!(root, RootShape::Input);
        let profile = Some("debug".to_owned());
        refuse(
            off.clone(),
            Asked {
                profile,
                ..asked.clone()
            },
            "--allow-profile",
        );
        let profile = Some(off.profile.to_string());
        assert!(Demand::new(&off, Asked { profile, ..asked }, &Level::ALL).is_ok());
    }
}
