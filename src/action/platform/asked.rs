//! The properties that this worker acts upon, read from text. A value that it cannot read is refused: what a
//! client meant by it is not for us to guess.
//!
//! | property | value | since |
//! |---|---|---|
//! | `network` | `on` or `off` | BuildBox |
//! | `unixUID`, `unixGID` | 0 to 65535 | BuildBox |
//! | `chrootRootDigest` | HASH/SIZE of a Directory | BuildBox |
//! | `root` | `host` or `input` | |
//! | `memory` | a size: `4G` | |
//! | `cpus` | `2` or `1.5` | |
//! | `pids` | a number | |
//! | `timeout` | a length of time: `10m` | |
//! | `sandbox-profile` | a name | |
//! | `boxwright-input-report` | `true`, `yes`, `on` or `1`, or the opposite | |
//! | `boxwright-writable-inputs` | `true`, `yes`, `on` or `1`, or the opposite | |

use std::time::Duration;

/// The property that asks for a report of inputs.
pub const INPUT_REPORT: &str = "boxwright-input-report";
/// The property that asks for leave to write beside all inputs.
const WRITABLE_INPUTS: &str = "boxwright-writable-inputs";

use crate::config::units;
use crate::reapi::{Digest, DigestFunction};
use crate::sandbox::RootShape;

/// User and group ids that an action may want to be: those that its user namespace surely maps.
const MOST_ID: u32 = 65_535;

/// What an action asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) network: Option<bool>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) chroot: Option<Digest>,
    pub(super) root: Option<RootShape>,
    pub(super) memory: Option<u64>,
    pub(super) cpu_milli: Option<u64>,
    pub(super) pids: Option<u64>,
    pub(super) timeout: Option<Duration>,
    pub(super) profile: Option<String>,
    pub(super) input_report: Option<bool>,
    pub(super) writable_inputs: Option<bool>,
}

impl Asked {
    /// Reads one property. `Ok(false)` if it is none of these; the error says what its value may be.
    pub(super) fn read(
        &mut self,
        name: &str,
        value: &str,
        function: DigestFunction,
    ) -> Result<bool, String> {
        match name {
            "network" => set(&mut self.network, on_off(value)?)?,
            "unixUID" => set(&mut self.uid, id(value)?)?,
            "unixGID" => set(&mut self.gid, id(value)?)?,
            "chrootRootDigest" => set(&mut self.chroot, digest(value, function)?)?,
            "root" => set(&mut self.root, root(value)?)?,
            "memory" => set(&mut self.memory, at_least_one(size(value)?)?)?,
            "cpus" => {
                let cpus = units::parse_cpus(value).map_err(|e| e.to_string())?;
                set(&mut self.cpu_milli, cpus)?;
            }
            "pids" => set(&mut self.pids, at_least_one(number(value)?)?)?,
            "timeout" => set(&mut self.timeout, time(value)?)?,
            "sandbox-profile" => set(&mut self.profile, value.to_owned())?,
            WRITABLE_INPUTS => set(&mut self.writable_inputs, yes_no(value)?)?,
            INPUT_REPORT => set(&mut self.input_report, yes_no(value)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// REAPI allows a property several times; one of ours has one value.
fn set<T: PartialEq>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place {
        Some(before) if *before != value => Err("it has another value as well".to_owned()),
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

fn on_off(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// What people write that set properties by hand, in whatever language.
fn yes_no(value: &str) -> Result<bool, String> {
    match value {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("it is true, yes, on or 1, or else false, no, off or 0".to_owned()),
    }
}

fn root(value: &str) -> Result<RootShape, String> {
    RootShape::named(value).ok_or_else(|| "it is host or input".to_owned())
}

fn number(value: &str) -> Result<u64, String> {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    plain
        .then(|| value.parse().ok())
        .flatten()
        .ok_or_else(|| "it is a whole number".to_owned())
}

fn id(value: &str) -> Result<u32, String> {
    let found = number(value).ok().and_then(|n| u32::try_from(n).ok());
    found
        .filter(|&id| id <= MOST_ID)
        .ok_or_else(|| format!("it is a whole number from 0 to {MOST_ID}"))
}

fn size(value: &str) -> Result<u64, String> {
    units::parse_size(value).map_err(|e| e.to_string())
}

fn at_least_one(number: u64) -> Result<u64, String> {
    (number > 0)
        .then_some(number)
        .ok_or_else(|| "nothing runs with none".to_owned())
}

fn time(value: &str) -> Result<Duration, String> {
    let length = units::parse_duration(value).map_err(|e| e.to_string())?;
    (!length.is_zero())
        .then_some(length)
        .ok_or_else(|| "nothing runs in no time".to_owned())
}

/// `HASH/SIZE`, as BuildBox's tools print and take digests.
fn digest(value: &str, function: DigestFunction) -> Result<Digest, String> {
    let refused = |why: &str| format!("it is HASH/SIZE of a Directory message: {why}");
    let (hash, size) = value.split_once('/').ok_or_else(|| refused("no slash"))?;
    let size = number(size).map_err(|why| refused(&why))?;
    let message = crate::reapi::proto::re::Digest {
        hash: hash.to_owned(),
        size_bytes: i64::try_from(size).map_err(|_| refused("the size is too large"))?,
    };
    Digest::from_proto(function, Some(&message)).map_err(|e| refused(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F: DigestFunction = DigestFunction::Sha256;

    #[test]
    fn values_are_read_strictly() {
        let digest = F.digest(b"x");
        let text = digest.to_proto().hash;
        for (name, value, good) in [
            ("network", "on".to_owned(), true),
            ("network", "true".to_owned(), false),
            ("unixUID", "0".to_owned(), true),
            ("unixUID", "65535".to_owned(), true),
            ("unixUID", "65536".to_owned(), false),
            ("unixGID", "-1".to_owned(), false),
            ("unixGID", "4294967296".to_owned(), false),
            ("unixGID", "root".to_owned(), false),
            ("memory", "4G".to_owned(), true),
            ("memory", "0".to_owned(), false),
            ("memory", "much".to_owned(), false),
            ("cpus", "1.5".to_owned(), true),
            ("cpus", "0".to_owned(), false),
            ("pids", "100".to_owned(), true),
            ("pids", "+1".to_owned(), false),
            ("timeout", "90s".to_owned(), true),
            ("timeout", "90".to_owned(), false),
            ("root", "input".to_owned(), true),
            ("root", "/".to_owned(), false),
            ("boxwright-input-report", "true".to_owned(), true),
            ("boxwright-input-report", "0".to_owned(), true),
            ("boxwright-input-report", "TRUE".to_owned(), false),
            ("boxwright-input-report", String::new(), false),
            ("boxwright-writable-inputs", "yes".to_owned(), true),
            ("boxwright-writable-inputs", "input".to_owned(), false),
            ("chrootRootDigest", format!("{text}/1"), true),
            ("chrootRootDigest", text.clone(), false),
            ("chrootRootDigest", "beef/1".to_owned(), false),
            ("chrootRootDigest", format!("{text}/-1"), false),
        ] {
            let read = Asked::default().read(name, &value, F);
            assert_eq!(read.is_ok(), good, "{name}={value}: {read:?}");
        }
        assert_eq!(Asked::default().read("UnixUID", "1", F), Ok(false));
    }

    #[test]
    fn one_value_each() {
        let mut asked = Asked::default();
        assert_eq!(asked.read("pids", "7", F), Ok(true));
        assert_eq!(asked.read("pids", "7", F), Ok(true));
        assert!(asked.read("pids", "8", F).is_err());
        assert_eq!(asked.pids, Some(7));
    }

    proptest! {
        #[test]
        fn no_value_panics(name in "network|unixUID|chrootRootDigest|root|memory|cpus|pids|timeout|boxwright-input-report|boxwright-writable-inputs", value in "\\PC{0,80}") {
            let _ = Asked::default().read(&name, &value, F);
        }
    }
}
