//! `[[strategy]]`: what the actions of one platform get, after Bazel's spawn strategies that are scoped by execution platform.
//!
//! ```toml
//! [[strategy]]
//! match = { pool = "trusted", ISA = ["x86-64", "x86-32"] }
//! levels = ["full", "process"]
//! network = "allowed"
//! memory = "16G"
//! ```
//!
//! An action is of the platform if it asks for every key of `match` with one of the values given. The first table that matches counts; what
//! it does not say is as the settings of the whole have it.

use std::time::Duration;

use super::keys::{Fallback, Key};
use super::origin::ConfigError;
use super::settings::{Layer, Settings};
use super::units::Amount;
use super::value::{Kind, Value};
use crate::sandbox::{Level, RootShape};

/// Who gets the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkPolicy {
    /// Nobody; actions that ask are refused.
    Off,
    /// Those that ask.
    Allowed,
    /// All that do not ask to be without.
    On,
}

impl NetworkPolicy {
    fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(NetworkPolicy::Off),
            "allowed" => Some(NetworkPolicy::Allowed),
            "on" => Some(NetworkPolicy::On),
            _ => None,
        }
    }
}

/// What the actions of one platform get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrategyConfig {
    /// Which actions these are: each key with its values; empty for all.
    pub matches: Vec<(String, Vec<String>)>,
    /// The isolation levels that may be used, the preferred one first; never empty.
    pub levels: Vec<Level>,
    /// Where the input root is.
    pub root: RootShape,
    /// Who gets the host's network.
    pub network: NetworkPolicy,
    /// The profile of those that ask for none.
    pub profile: String,
    /// Further profiles that they may ask for.
    pub profiles: Vec<String>,
    /// Memory; a share is of the host's.
    pub memory: Amount,
    /// Thousandths of processors.
    pub cpu_milli: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes written; a share is of the state directory's file system.
    pub disk: Amount,
    /// Files and directories made.
    pub disk_nodes: u64,
    /// The longest timeout, where it is not `max-timeout`.
    pub timeout: Option<Duration>,
}

const fn key(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key {
        name,
        kind,
        default: Fallback::Unset,
        only: None,
        group: "Strategies",
        help,
    }
}

/// What a table may say.
pub static STRATEGY_KEYS: &[Key] = &[
    key(
        "match",
        Kind::Pairs,
        "The properties that an action must ask for",
    ),
    key("levels", Kind::Words(&["full", "process"]), "As sandbox"),
    key("root", Kind::Choice(&["host", "input"]), "As root"),
    key(
        "network",
        Kind::Choice(&["off", "allowed", "on"]),
        "As network",
    ),
    key("profile", Kind::Text(64), "As sandbox-profile"),
    key("allow-profiles", Kind::Names, "As allow-profile"),
    key("memory", Kind::Amount, "As limit-memory"),
    key("cpus", Kind::Cpus, "As limit-cpus"),
    key("pids", Kind::Number(1, 1 << 22), "As limit-pids"),
    key("disk", Kind::Amount, "As limit-disk"),
    key(
        "disk-nodes",
        Kind::Number(1, u64::MAX),
        "As limit-disk-nodes",
    ),
    key(
        "timeout",
        Kind::Time {
            least: Duration::from_secs(1),
            none: false,
            bare: None,
        },
        "As max-timeout",
    ),
];

impl StrategyConfig {
    /// What holds for actions that no table matches.
    pub(super) fn base(settings: &Settings) -> Result<Self, ConfigError> {
        let unset = |key| ConfigError::Missing {
            key,
            why: "it has no default here",
        };
        let base = StrategyConfig {
            matches: Vec::new(),
            levels: levels(&settings.names("sandbox")),
            root: RootShape::named(&settings.text("root")).ok_or(unset("root"))?,
            network: NetworkPolicy::named(&settings.text("network")).ok_or(unset("network"))?,
            profile: settings.text("sandbox-profile"),
            profiles: settings.names("allow-profile"),
            memory: settings
                .amount("limit-memory")
                .ok_or(unset("limit-memory"))?,
            cpu_milli: settings.cpus("limit-cpus"),
            pids: settings.number("limit-pids").ok_or(unset("limit-pids"))?,
            disk: settings.amount("limit-disk").ok_or(unset("limit-disk"))?,
            disk_nodes: (settings.number("limit-disk-nodes")).ok_or(unset("limit-disk-nodes"))?,
            timeout: None,
        };
        base.check(|key, why| {
            settings.refuse(
                match key {
                    "profile" => "sandbox-profile",
                    "allow-profiles" => "allow-profile",
                    "memory" => "limit-memory",
                    "disk" => "limit-disk",
                    other => other,
                },
                why,
            )
        })?;
        Ok(base)
    }

    /// What one table says, and the rest as in `base`.
    pub(super) fn of(table: &Layer, base: &Self, settings: &Settings) -> Result<Self, ConfigError> {
        let mut strategy = StrategyConfig {
            matches: Vec::new(),
            ..base.clone()
        };
        for (key, entry) in table {
            match (*key, &entry.value) {
                ("match", Value::Pairs(pairs)) => strategy.matches = grouped(pairs),
                ("levels", Value::Names(names)) => strategy.levels = levels(names),
                ("root", Value::Text(word)) => {
                    strategy.root = RootShape::named(word).unwrap_or(strategy.root);
                }
                ("network", Value::Text(word)) => {
                    strategy.network = NetworkPolicy::named(word).unwrap_or(strategy.network);
                }
                ("profile", Value::Text(name)) => strategy.profile.clone_from(name),
                ("allow-profiles", Value::Names(names)) => strategy.profiles.clone_from(names),
                ("memory", Value::Amount(amount)) => strategy.memory = *amount,
                ("cpus", Value::Cpus(milli)) => strategy.cpu_milli = Some(*milli),
                ("pids", Value::Number(number)) => strategy.pids = *number,
                ("disk", Value::Amount(amount)) => strategy.disk = *amount,
                ("disk-nodes", Value::Number(number)) => strategy.disk_nodes = *number,
                ("timeout", Value::Time(length)) => strategy.timeout = *length,
                _ => {}
            }
        }
        let refuse = |key: &'static str, why: String| match table.get(key) {
            Some(entry) => ConfigError::Value {
                origin: entry.origin.clone(),
                key,
                why,
            },
            None => settings.refuse("strategy", format!("{key}: {why}")),
        };
        strategy.check(refuse)?;
        match (strategy.timeout, settings.time("max-timeout")) {
            (Some(timeout), Some(max)) if timeout > max => Err(refuse(
                "timeout",
                "it is longer than max-timeout, which holds for all".to_owned(),
            )),
            _ => Ok(strategy),
        }
    }

    fn check(
        &self,
        refuse: impl Fn(&'static str, String) -> ConfigError,
    ) -> Result<(), ConfigError> {
        if !is_profile(&self.profile) {
            return Err(refuse("profile", not_profile(&self.profile)));
        }
        if let Some(name) = self.profiles.iter().find(|name| !is_profile(name)) {
            return Err(refuse("allow-profiles", not_profile(name)));
        }
        if self.root == RootShape::Input && !self.levels.contains(&Level::Full) {
            let why = "level process cannot give an action the input root as its root".to_owned();
            return Err(refuse("root", why));
        }
        for (key, amount) in [("memory", self.memory), ("disk", self.disk)] {
            if amount.of(1 << 60) == 0 {
                return Err(refuse(key, "nothing runs with none".to_owned()));
            }
        }
        Ok(())
    }
}

/// What the tables say, in their order.
pub(super) fn declared(
    settings: &Settings,
    base: &StrategyConfig,
) -> Result<Vec<StrategyConfig>, ConfigError> {
    let mut strategies: Vec<StrategyConfig> = Vec::new();
    for (at, table) in settings.strategies().iter().enumerate() {
        if let Some(all) = strategies.iter().position(|s| s.matches.is_empty()) {
            let why = format!(
                "table {} is never used, for table {} before it has no match and so is for all actions",
                at + 1,
                all + 1
            );
            return Err(settings.refuse("strategy", why));
        }
        strategies.push(StrategyConfig::of(table, base, settings)?);
    }
    if strategies.is_empty() && settings.flag("require-platform") {
        let why = "there is no [[strategy]], so that every action would be refused";
        return Err(settings.refuse("require-platform", why));
    }
    Ok(strategies)
}

fn levels(names: &[String]) -> Vec<Level> {
    names.iter().filter_map(|name| Level::named(name)).collect()
}

/// Keys with all their values.
fn grouped(pairs: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let mut grouped: Vec<(String, Vec<String>)> = Vec::new();
    for (key, value) in pairs {
        match grouped.iter_mut().find(|(known, _)| known == key) {
            Some((_, values)) => values.push(value.clone()),
            None => grouped.push((key.clone(), vec![value.clone()])),
        }
    }
    grouped
}

/// Names of profiles are names of files.
fn is_profile(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.bytes().all(plain)
}

fn not_profile(name: &str) -> String {
    format!(
        "{:?} is not the name of a profile: letters, digits, -, _ and . make one",
        super::value::shorten(name)
    )
}
