//! A profile's file, key by key. What a file leaves out comes from the profile that it extends.

use std::collections::BTreeMap;

use rustix::process::{Resource, Rlimit};
use serde::Deserialize;
use toml::{Spanned, Value};

use super::TmpfsLimits;
use super::error::{ProfileError, closest};
use super::hostpath::HostPath;
use super::rules::RuleText;
use super::sources::Source;
use crate::config::units;

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProfileText {
    pub(super) description: String,
    pub(super) extends: Option<Spanned<String>>,
    pub(super) landlock: Option<bool>,
    pub(super) scope_abstract_sockets: Option<bool>,
    pub(super) pts: Option<bool>,
    pub(super) host_paths: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) host_paths_add: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) tmpfs: TmpfsText,
    #[serde(default)]
    rlimits: BTreeMap<Spanned<String>, Spanned<Value>>,
    #[serde(default)]
    pub(super) seccomp: SeccompText,
}

/// `[tmpfs]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct TmpfsText {
    pub(super) tmp: Option<TmpfsLimitsText>,
    pub(super) var_tmp: Option<TmpfsLimitsText>,
    pub(super) dev_shm: Option<TmpfsLimitsText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TmpfsLimitsText {
    size: Spanned<String>,
    inodes: Spanned<u64>,
}

/// `[seccomp]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeccompText {
    pub(super) default: Option<Spanned<String>>,
    pub(super) groups: Option<Vec<Spanned<String>>>,
    pub(super) compat: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) rule: Vec<RuleText>,
}

impl TmpfsLimitsText {
    pub(super) fn read(&self, source: &Source) -> Result<TmpfsLimits, ProfileError> {
        let wrong = |key: &str, span, why: String| ProfileError::Value {
            at: source.at(span),
            key: key.to_owned(),
            why,
        };
        let size = units::parse_size(self.size.get_ref());
        let size = size.map_err(|e| wrong("size", self.size.span(), e.to_string()))?;
        let inodes = *self.inodes.get_ref();
        // To tmpfs, 0 is no limit.
        if size == 0 {
            return Err(wrong(
                "size",
                self.size.span(),
                "it has to be at least 1".into(),
            ));
        }
        if inodes == 0 {
            return Err(wrong(
                "inodes",
                self.inodes.span(),
                "it has to be at least 1".into(),
            ));
        }
        Ok(TmpfsLimits { size, inodes })
    }
}

/// Checks patterns.
pub(super) fn host_paths(
    source: &Source,
    list: &[Spanned<String>],
) -> Result<Vec<HostPath>, ProfileError> {
    let read = |text: &Spanned<String>| {
        HostPath::parse(text.get_ref()).map_err(|why| ProfileError::Value {
            at: source.at(text.span()),
            key: "host-paths".to_owned(),
            why,
        })
    };
    list.iter().map(read).collect()
}

const RESOURCES: &[(&str, Resource)] = &[
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

impl ProfileText {
    /// `[rlimits]`, in the order of the names.
    pub(super) fn rlimits(&self, source: &Source) -> Result<Vec<(Resource, Rlimit)>, ProfileError> {
        let mut limits = Vec::new();
        for (name, value) in &self.rlimits {
            let known = RESOURCES.iter().find(|(known, _)| known == name.get_ref());
            let Some((_, resource)) = known else {
                return Err(ProfileError::UnknownKey {
                    at: source.at(name.span()),
                    key: name.get_ref().clone(),
                    suggestion: closest(name.get_ref(), RESOURCES.iter().map(|(known, _)| *known)),
                });
            };
            let limit = limit(value.get_ref()).map_err(|why| ProfileError::Value {
                at: source.at(value.span()),
                key: name.get_ref().clone(),
                why,
            })?;
            limits.push((*resource, limit));
        }
        Ok(limits)
    }
}

/// `0`, `"8MiB"`, `"unlimited"`, or `{ soft = ..., hard = ... }`.
fn limit(value: &Value) -> Result<Rlimit, String> {
    let Value::Table(table) = value else {
        let both = amount(value)?;
        return Ok(Rlimit {
            current: both,
            maximum: both,
        });
    };
    if let Some(other) = table.keys().find(|key| *key != "soft" && *key != "hard") {
        return Err(format!("{other:?} is neither soft nor hard"));
    }
    let side = |name: &str| amount(table.get(name).ok_or(format!("{name} is missing"))?);
    let (current, maximum) = (side("soft")?, side("hard")?);
    match current.unwrap_or(u64::MAX) <= maximum.unwrap_or(u64::MAX) {
        true => Ok(Rlimit { current, maximum }),
        false => Err("soft is above hard".into()),
    }
}

fn amount(value: &Value) -> Result<Option<u64>, String> {
    match value {
        Value::String(text) if text == "unlimited" => Ok(None),
        Value::String(text) => units::parse_size(text).map(Some).map_err(|e| e.to_string()),
        Value::Integer(number) => match u64::try_from(*number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err("it is below 0; write \"unlimited\" for no limit".into()),
        },
        other => Err(format!(
            "expected a number, a size or \"unlimited\", found {}",
            other.type_str()
        )),
    }
}
