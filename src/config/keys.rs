//! Every setting there is: its name, what it takes, its default and what it means. The command
//! line, the environment, the configuration file, `--help` and `--print-config` all read this table.

use std::time::Duration;

use super::value::Kind;

/// Who reads a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `boxwright worker`.
    Worker,
    /// `boxwright standalone`.
    Standalone,
}

impl Program {
    /// The subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Program::Worker => "worker",
            Program::Standalone => "standalone",
        }
    }
}

/// What holds when nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Nothing.
    Unset,
    /// This text.
    Is(&'static str),
    /// What another key holds.
    From(&'static str),
    /// Found out on this host, as the text describes.
    Host(&'static str),
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// As in the file, and behind `--`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds otherwise.
    pub default: Fallback,
    /// The one program that reads it, or `None` for both.
    pub only: Option<Program>,
    /// The heading under which `--help` lists it.
    pub group: &'static str,
    /// What it means.
    pub help: &'static str,
}

impl Key {
    /// Whether the program reads it.
    pub fn is_for(&self, program: Program) -> bool {
        self.only.is_none_or(|only| only == program)
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("BOXWRIGHT_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Whether flags and environment variables can give it.
    pub fn is_flag(&self) -> bool {
        self.kind != Kind::Strategies
    }

    /// Whether it may be given several times.
    pub fn is_list(&self) -> bool {
        matches!(self.kind, Kind::Pairs | Kind::Names)
    }
}

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The name that somebody probably meant.
pub fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs the product of both lengths: what is longer than any key is no slip of one.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_lowercase().replace('_', "-");
    names
        .map(|known| (strsim::jaro_winkler(&name, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

const fn time(least: u64, none: bool, bare: Option<&'static str>) -> Kind {
    Kind::Time {
        least: Duration::from_millis(least),
        none,
        bare,
    }
}

macro_rules! keys {
    ($($group:literal { $($name:literal $(for $only:ident)? : $kind:expr, $default:expr, $help:literal;)* })*) => {
        /// The table, in the order in which things are shown.
        pub static KEYS: &[Key] = &[$($(Key {
            name: $name,
            kind: $kind,
            default: $default,
            only: keys!(@only $($only)?),
            group: $group,
            help: $help,
        },)*)*];
    };
    (@only) => { None };
    (@only $only:ident) => { Some(Program::$only) };
}

use self::Fallback::{From, Host, Is, Unset};

keys! {
    "Remotes" {
        "remote" for Worker: Kind::Url, Unset,
            "The scheduler and the CAS, if both are at one address: http://HOST:PORT, https://HOST:PORT or unix:/PATH";
        "bots-remote" for Worker: Kind::Url, From("remote"),
            "The scheduler's Bots service (Remote Workers API, as BuildGrid serves it)";
        "cas-remote" for Worker: Kind::Url, From("remote"),
            "The CAS that holds inputs and takes outputs";
        "logstream-remote" for Worker: Kind::Url, Unset,
            "Where the scheduler's LogStream write names lead, for output while it is written";
        "tls-ca" for Worker: Kind::File, Unset,
            "A PEM file with certificates that https:// remotes are verified against, beside those that this machine trusts";
        "tls-cert" for Worker: Kind::File, Unset,
            "A PEM file with the certificate that is shown to https:// remotes";
        "tls-key" for Worker: Kind::File, Unset,
            "A PEM file with the private key of --tls-cert";
        "token-file" for Worker: Kind::File, Unset,
            "A file with a token that all remotes are sent with each call (authorization: Bearer ...); read again when it changes";
        "instance" for Worker: Kind::Text(256), Is(""),
            "The instance name at all remotes";
        "retry-limit" for Worker: Kind::Number(0, 100), Is("4"),
            "How often a failed call is tried again";
        "retry-delay" for Worker: time(1, false, Some("ms")), Is("1s"),
            "The first pause between tries, which doubles; a bare number is milliseconds, as for buildbox-worker";
        "request-timeout" for Worker: time(1000, false, Some("s")), Is("60s"),
            "The deadline of one call, and of a transfer that does not move; a bare number is seconds, as for buildbox-worker";
    }
    "Service" {
        "listen" for Standalone: Kind::Listen, Is("127.0.0.1:8980"),
            "Where to serve: IP:PORT or unix:/PATH. Whoever can connect can run commands here";
    }
    "Worker" {
        "name": Kind::Text(128), Host("the host's name"),
            "The worker's name in results; bot ids begin with it";
        "platform": Kind::Pairs, Host("OSFamily=linux and ISA of this host, each unless given"),
            "A platform property that actions may ask for; repeat it for more, also for several values of one key. Given here, those of the file do not count";
        "ignore-property": Kind::Names, Is(""),
            "A platform property that actions may carry and that is ignored; repeat it for more. Others that are not offered are refused";
        "concurrent-jobs": Kind::Number(1, 1024), Host("the number of processors"),
            "How many actions run at a time";
        "priority" for Worker: Kind::Number(0, i32::MAX as u64), Is("0"),
            "Among idle workers that fit, schedulers that look at it (BuildGrid's sampling assigner) prefer the one with the smallest number";
        "stop-after" for Worker: Kind::Number(0, u64::MAX), Is("0"),
            "Drain and exit after so many actions; 0 never does";
        "state-dir": Kind::Directory, Host("/var/lib/boxwright for root, else $XDG_STATE_HOME/boxwright"),
            "Where the local CAS and scratch files are; one daemon at a time";
    }
    "Sandbox" {
        "sandbox": Kind::Words(&["full", "process"]), Is("full"),
            "What may stand between an action and this host, the preferred one first (full,process). full: namespaces, a root of its own, a filter of system calls, Landlock, limits. process: a process of its own session and (for a root daemon) its own user; it sees the host's files, network and processes. A level that is not named is never used; a worker that can give none of them does not start, and says what the kernel lacks";
        "root": Kind::Choice(&["host", "input"]), Is("host"),
            "What the root of an action at level full is. host: the host's tools, read-only, with the input root at its working place. input: the input root itself, and nothing of the host; actions may ask for it with the property root=input";
        "network": Kind::Choice(&["off", "allowed", "on"]), Is("off"),
            "Who gets this host's network; others have a loopback interface of their own. off: nobody, actions that ask for it are refused. allowed: those that ask with the property network=on. on: all. Level process cannot take it away";
        "sandbox-profile": Kind::Text(64), Is("default"),
            "The profile of actions at level full that ask for none: which system calls and files they may use";
        "allow-profile": Kind::Names, Is(""),
            "A further profile, which actions may ask for with the property sandbox-profile; repeat it for more";
        "sandbox-profiles": Kind::Directory, Unset,
            "Profiles of your own, NAME.toml each; they go before the built-in ones";
        "require-platform": Kind::Bool, Is("false"),
            "Refuse actions that match no [[strategy]] of the configuration file";
        "inputs": Kind::Choice(&["auto", "fuse", "staged"]), Is("auto"),
            "How input trees are shown. fuse: at once, files are fetched when they are read; needs /dev/fuse, and root or a user namespace. staged: hard links, clones or copies in a directory per action. auto: fuse where it works, else staged";
        "input-report": Kind::Bool, Is("false"),
            "Report of every action which of its inputs it read, never read, and looked up in vain, as a server log of its result; it runs slower then. Without, only actions with the property boxwright-input-report=true are reported of. Needs inputs that are shown as fuse";
        "first-uid": Kind::Number(1, 0x7fff_0000), Is("1879048192"),
            "Slot N of a root daemon runs as uid and gid FIRST-UID+N, and as many ids above those are for killing what runs; or above if another boxwright of this host has those. No other software may use them";
        "default-timeout": time(1000, true, None), Is("4h"),
            "For actions that name no timeout";
        "max-timeout": time(1000, true, None), Is("24h"),
            "Actions that ask for a longer timeout are refused";
        "kill-grace": time(0, false, None), Is("1s"),
            "Between SIGTERM and SIGKILL, when an action times out or is cancelled";
    }
    "Limits" {
        "keep-output": Kind::Size, Is("64M"),
            "How much of each of stdout and stderr is kept, half from its beginning and half from its end; an action that writes more fails";
        "inline-output": Kind::Size, Is("16K"),
            "Up to this size stdout and stderr travel in the result itself, larger ones as blobs";
        "max-input-nodes": Kind::Number(1, u64::MAX), Is("10000000"),
            "Files, directories and links in one input tree";
        "max-input-bytes": Kind::Size, Is("1T"),
            "Bytes of files in one input tree";
        "max-output-nodes": Kind::Number(1, u64::MAX), Is("1000000"),
            "Files, directories and links in the outputs of one action";
        "max-output-bytes": Kind::Size, Is("256G"),
            "Bytes of files in the outputs of one action";
        "limit-open-files": Kind::Number(16, 1 << 30), Unset,
            "Open files of one process of an action (RLIMIT_NOFILE)";
        "limit-file-size": Kind::Size, Unset,
            "Size of a file that an action writes (RLIMIT_FSIZE)";
        "limit-processes": Kind::Number(1, 1 << 22), Unset,
            "Processes of an action's user (RLIMIT_NPROC)";
    }
    "Limits of an action at level full" {
        "limit-memory": Kind::Amount, Is("80%"),
            "Memory of all its processes together, files in memory included; a share is of this host's memory. Less may be asked for with the property memory";
        "limit-cpus": Kind::Cpus, Unset,
            "Processors' worth of time (2, 1.5). Less may be asked for with the property cpus";
        "limit-pids": Kind::Number(1, 1 << 22), Is("10000"),
            "Processes and threads. Less may be asked for with the property pids";
        "limit-disk": Kind::Amount, Is("50%"),
            "Bytes that it writes below its root; a share is of the state directory's file system";
        "limit-disk-nodes": Kind::Number(1, u64::MAX), Is("5000000"),
            "Files and directories that it makes below its root";
    }
    "Local CAS" {
        "cas-quota-high": Kind::Amount, Is("50G"),
            "Old blobs are removed when the CAS grows beyond this size or share of the file system";
        "cas-quota-low": Kind::Amount, Host("nine tenths of cas-quota-high"),
            "... until it is down to this";
        "cas-free-floor": Kind::Amount, Is("5%"),
            "What stays free on the file system whatever the quotas say";
    }
    "Logs" {
        "log-level": Kind::LogFilter, Is("info"),
            "error, warn, info, debug or trace; levels by module are written info,boxwright::cas=debug";
        "log-format": Kind::Choice(&["text", "json"]), Is("text"),
            "text, or json with one object a line; always to stderr. Under journald text has priorities instead of times";
    }
    // Tables, which must come last in a file.
    "Strategies" {
        "strategy": Kind::Strategies, Unset,
            "What actions of some platform get instead of the above; the first table that matches counts";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len(), "names are unique");
        for key in KEYS {
            match key.default {
                Is("") => assert!(key.is_list() || matches!(key.kind, Kind::Text(_))),
                Is(text) => {
                    key.kind
                        .read(text)
                        .unwrap_or_else(|e| panic!("{}: {e}", key.name));
                }
                From(other) => assert!(find(other).is_some()),
                Unset | Host(_) => {}
            }
        }
        assert_eq!(
            KEYS.last().unwrap().kind,
            Kind::Strategies,
            "tables are printed last"
        );
    }

    #[test]
    fn slips_are_recognised() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(closest("concurrent_jobs", names()), Some("concurrent-jobs"));
        assert_eq!(closest("concurent-jobs", names()), Some("concurrent-jobs"));
        assert_eq!(closest("Platfrom", names()), Some("platform"));
        assert_eq!(closest("zzz", names()), None);
    }
}
