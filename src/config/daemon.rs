//! The typed, validated configuration of the two daemons.

use std::path::PathBuf;
use std::time::Duration;

use super::origin::ConfigError;
use super::settings::Settings;
use super::strategy::{self, StrategyConfig};
use super::units::Amount;
use super::{Credentials, Endpoint, Listen};
use crate::sandbox::Level;

/// How input roots are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputStrategy {
    /// On a file system if that works, else staged.
    Auto,
    /// On a file system.
    Fuse,
    /// Links, clones or copies in a directory per action.
    Staged,
}

impl InputStrategy {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            InputStrategy::Auto => "auto",
            InputStrategy::Fuse => "fuse",
            InputStrategy::Staged => "staged",
        }
    }
}

/// Bounds of the local CAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Eviction starts above.
    pub high: Amount,
    /// Eviction ends at.
    pub low: Amount,
    /// Stays free on the file system.
    pub floor: Amount,
}

/// Bounds of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionLimits {
    /// For actions that name no timeout.
    pub default_timeout: Option<Duration>,
    /// The longest timeout granted.
    pub max_timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Bytes kept of each output stream.
    pub keep_output: u64,
    /// Bytes of an output stream that travel in the result.
    pub inline_output: u64,
    /// Files, directories and links in an input tree.
    pub input_nodes: u64,
    /// Bytes in an input tree.
    pub input_bytes: u64,
    /// Files, directories and links in the outputs.
    pub output_nodes: u64,
    /// Bytes in the outputs.
    pub output_bytes: u64,
    /// RLIMIT_NOFILE.
    pub open_files: Option<u64>,
    /// RLIMIT_FSIZE, in bytes.
    pub file_size: Option<u64>,
    /// RLIMIT_NPROC.
    pub processes: Option<u64>,
}

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or levels by module.
    pub filter: String,
    /// JSON instead of text.
    pub json: bool,
}

/// What both daemons need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// The worker's name.
    pub name: String,
    /// The properties on offer, sorted.
    pub platform: Vec<(String, String)>,
    /// The properties to ignore.
    pub ignored_properties: Vec<String>,
    /// How many actions run at a time.
    pub slots: usize,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// What actions get that none of `strategies` is for.
    pub base: StrategyConfig,
    /// What actions of some platforms get; the first that matches counts.
    pub strategies: Vec<StrategyConfig>,
    /// Whether actions that none of `strategies` is for are refused.
    pub require_platform: bool,
    /// Profiles that go before the built-in ones.
    pub profiles: Option<PathBuf>,
    /// How input roots are shown.
    pub inputs: InputStrategy,
    /// Whether what actions do with their inputs is reported without being asked for.
    pub input_report: bool,
    /// The uid and gid of slot 0.
    pub first_uid: u32,
    /// Bounds of an action.
    pub limits: ActionLimits,
    /// Bounds of the local CAS.
    pub quota: Quota,
    /// Logs.
    pub log: LogConfig,
}

/// How patient to be with remotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often a failed call is tried again.
    pub retries: u32,
    /// The first pause between tries.
    pub delay: Duration,
    /// The deadline of a call.
    pub timeout: Duration,
}

/// `boxwright worker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The scheduler.
    pub bots: Endpoint,
    /// The CAS.
    pub cas: Endpoint,
    /// Where live output goes.
    pub logstream: Option<Endpoint>,
    /// What all of them are shown.
    pub credentials: Credentials,
    /// The instance name.
    pub instance: String,
    /// How patient to be with remotes.
    pub patience: Patience,
    /// Among workers that fit, a scheduler that looks at it prefers the smallest.
    pub priority: i32,
    /// Drain after so many actions.
    pub stop_after: Option<u64>,
    /// What both daemons need.
    pub host: HostConfig,
}

/// `boxwright standalone`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandaloneConfig {
    /// Where to serve.
    pub listen: Listen,
    /// What both daemons need.
    pub host: HostConfig,
}

impl WorkerConfig {
    /// Validates the whole.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let remote = |key: &'static str| {
            settings.url(key).ok_or(ConfigError::Missing {
                key,
                why: "give its address, or --remote for scheduler and CAS at one address",
            })
        };
        let instance = settings.text("instance");
        check_instance(settings, &instance)?;
        Ok(WorkerConfig {
            bots: remote("bots-remote")?,
            cas: remote("cas-remote")?,
            logstream: settings.url("logstream-remote"),
            credentials: credentials(settings)?,
            instance,
            patience: Patience {
                retries: number(settings, "retry-limit")?,
                delay: time(settings, "retry-delay")?,
                timeout: time(settings, "request-timeout")?,
            },
            priority: number(settings, "priority")?,
            stop_after: settings.number("stop-after").filter(|&actions| actions > 0),
            host: HostConfig::new(settings)?,
        })
    }
}

impl StandaloneConfig {
    /// Validates the whole.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        Ok(StandaloneConfig {
            listen: settings.listen("listen").ok_or(unset("listen"))?,
            host: HostConfig::new(settings)?,
        })
    }
}

impl HostConfig {
    fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let name = settings.text("name");
        if name.is_empty() {
            return Err(settings.refuse("name", "it is empty; give the worker a name"));
        }
        let base = StrategyConfig::base(settings)?;
        let config = HostConfig {
            name,
            platform: platform(settings)?,
            ignored_properties: settings.names("ignore-property"),
            slots: number(settings, "concurrent-jobs")?,
            state_dir: settings.path("state-dir").ok_or(unset("state-dir"))?,
            strategies: strategy::declared(settings, &base)?,
            base,
            require_platform: settings.flag("require-platform"),
            profiles: settings.path("sandbox-profiles"),
            inputs: match &*settings.text("inputs") {
                "fuse" => InputStrategy::Fuse,
                "staged" => InputStrategy::Staged,
                _ => InputStrategy::Auto,
            },
            input_report: settings.flag("input-report"),
            first_uid: number(settings, "first-uid")?,
            limits: limits(settings)?,
            quota: quota(settings)?,
            log: LogConfig {
                filter: settings.text("log-level"),
                json: settings.text("log-format") == "json",
            },
        };
        Ok(config)
    }

    /// Every level that some action may use, the strongest first.
    pub fn levels(&self) -> Vec<Level> {
        let used = |level: &Level| self.all_strategies().any(|s| s.levels.contains(level));
        Level::ALL.into_iter().filter(used).collect()
    }

    /// Every profile that some action may have, each once.
    pub fn profile_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .all_strategies()
            .flat_map(|s| s.profiles.iter().chain([&s.profile]))
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn all_strategies(&self) -> impl Iterator<Item = &StrategyConfig> {
        let base = (!self.require_platform).then_some(&self.base);
        self.strategies.iter().chain(base)
    }
}

fn credentials(settings: &Settings) -> Result<Credentials, ConfigError> {
    let identity = match (settings.path("tls-cert"), settings.path("tls-key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(settings.refuse("tls-cert", "it needs --tls-key as well")),
        (None, Some(_)) => return Err(settings.refuse("tls-key", "it needs --tls-cert as well")),
    };
    Ok(Credentials {
        ca: settings.path("tls-ca"),
        identity,
        token: settings.path("token-file"),
    })
}

fn unset(key: &'static str) -> ConfigError {
    ConfigError::Missing {
        key,
        why: "it has no default here",
    }
}

fn number<T: TryFrom<u64>>(settings: &Settings, key: &'static str) -> Result<T, ConfigError> {
    let number = settings.number(key).ok_or(unset(key))?;
    T::try_from(number).map_err(|_| settings.refuse(key, format!("{number} is too large")))
}

fn size(settings: &Settings, key: &'static str) -> Result<u64, ConfigError> {
    settings.size(key).ok_or(unset(key))
}

fn time(settings: &Settings, key: &'static str) -> Result<Duration, ConfigError> {
    settings.time(key).ok_or(unset(key))
}

fn limits(settings: &Settings) -> Result<ActionLimits, ConfigError> {
    let limits = ActionLimits {
        default_timeout: settings.time("default-timeout"),
        max_timeout: settings.time("max-timeout"),
        kill_grace: time(settings, "kill-grace")?,
        keep_output: size(settings, "keep-output")?,
        inline_output: size(settings, "inline-output")?,
        input_nodes: number(settings, "max-input-nodes")?,
        input_bytes: size(settings, "max-input-bytes")?,
        output_nodes: number(settings, "max-output-nodes")?,
        output_bytes: size(settings, "max-output-bytes")?,
        open_files: settings.number("limit-open-files"),
        file_size: settings.size("limit-file-size"),
        processes: settings.number("limit-processes"),
    };
    let beyond = match (limits.default_timeout, limits.max_timeout) {
        (Some(default), Some(max)) => default > max,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    if beyond {
        return Err(settings.refuse(
            "default-timeout",
            format!(
                "it is longer than max-timeout ({})",
                shown(settings, "max-timeout")
            ),
        ));
    }
    // Results travel in gRPC messages, which peers limit to 4 MiB.
    if limits.inline_output > 1 << 20 {
        return Err(settings.refuse(
            "inline-output",
            "more than 1M does not travel in one message",
        ));
    }
    Ok(limits)
}

fn quota(settings: &Settings) -> Result<Quota, ConfigError> {
    let amount = |key| settings.amount(key).ok_or(unset(key));
    let quota = Quota {
        high: amount("cas-quota-high")?,
        low: amount("cas-quota-low")?,
        floor: amount("cas-free-floor")?,
    };
    let wrong = match (quota.low, quota.high) {
        (Amount::Bytes(low), Amount::Bytes(high)) => low >= high,
        (Amount::Percent(low), Amount::Percent(high)) => low >= high,
        // Comparable only on the file system itself, when the store is opened.
        _ => false,
    };
    if wrong {
        let high = shown(settings, "cas-quota-high");
        return Err(settings.refuse(
            "cas-quota-low",
            format!("{} is not below cas-quota-high ({high})", quota.low),
        ));
    }
    if quota.high.of(1 << 60) == 0 {
        return Err(settings.refuse("cas-quota-high", "it leaves no room for any blob"));
    }
    if quota.floor == Amount::Percent(100) {
        return Err(settings.refuse("cas-free-floor", "it leaves no room for any blob"));
    }
    Ok(quota)
}

fn platform(settings: &Settings) -> Result<Vec<(String, String)>, ConfigError> {
    let pairs = settings.pairs("platform");
    for (at, pair) in pairs.iter().enumerate() {
        if pairs[..at].contains(pair) {
            let why = format!("{}={} is given twice", pair.0, pair.1);
            return Err(settings.refuse("platform", why));
        }
    }
    // The platform lexicon of REAPI: "Multiple values are not allowed and an exact match is required."
    if pairs.iter().filter(|(key, _)| key == "OSFamily").count() > 1 {
        return Err(settings.refuse("platform", "OSFamily takes one value only"));
    }
    Ok(pairs)
}

/// A resource name is `{instance_name}/blobs/...`: these words would end the instance name.
fn check_instance(settings: &Settings, instance: &str) -> Result<(), ConfigError> {
    const RESERVED: [&str; 8] = [
        "blobs",
        "uploads",
        "actions",
        "actionResults",
        "operations",
        "capabilities",
        "compressed-blobs",
        "",
    ];
    if instance.is_empty() {
        return Ok(());
    }
    // BuildGrid's name for a session that takes the work of all instances. Each lease then belongs to another instance,
    // whose CAS holds its blobs.
    if instance == "*" {
        return Err(settings.refuse(
            "instance",
            "\"*\" (the work of all instances, as buildbox-worker has it with --runner-use-job-instance) is not supported, \
             for blobs are fetched from one instance; start one worker for each instance, each with its name and a --state-dir",
        ));
    }
    match instance
        .split('/')
        .find(|segment| RESERVED.contains(segment))
    {
        Some("") => Err(settings.refuse("instance", "it has an empty segment between slashes")),
        Some(word) => Err(settings.refuse(
            "instance",
            format!("{word:?} may not be a segment of it, for resource names could not be read"),
        )),
        None => Ok(()),
    }
}

/// A value and where it came from, for messages about another.
fn shown(settings: &Settings, key: &'static str) -> String {
    match settings.get(key) {
        Some(entry) => format!("{}, {}", entry.value, entry.origin),
        None => "not set".to_owned(),
    }
}

#[cfg(test)]
mod tests;
