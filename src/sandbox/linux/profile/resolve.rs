//! From texts to profiles: what a profile leaves out is taken from the one it extends, then all is checked and compiled.

use std::collections::BTreeMap;

use rustix::process::{Resource, Rlimit};
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::error::{ProfileError, closest};
use super::hostpath::HostPath;
use super::read::{ProfileText, TmpfsLimitsText, TmpfsText, host_paths};
use super::seccomp::{self, Arch, Policy, Rule};
use super::sources::{Source, Sources};
use super::{Profile, Tmpfs, TmpfsLimits, rules};

/// A profile's file and its text.
type Link<'a> = (&'a Source, &'a ProfileText);

/// Every profile of these sources. Groups that none uses are checked as well.
pub(super) fn all(sources: &Sources, machine: Arch) -> Result<Vec<Profile>, ProfileError> {
    let read = |(name, source): (&String, &Source)| Ok((name.clone(), rules::group(source)?));
    let groups: BTreeMap<String, Vec<Rule>> =
        sources.groups.iter().map(read).collect::<Result<_, _>>()?;
    let read = |(name, source): (&String, &Source)| Ok((name.clone(), source.parse()?));
    let texts: BTreeMap<String, ProfileText> = sources
        .profiles
        .iter()
        .map(read)
        .collect::<Result<_, _>>()?;
    let house = House {
        sources,
        groups,
        texts,
        machine,
    };
    house.texts.keys().map(|name| house.profile(name)).collect()
}

struct House<'a> {
    sources: &'a Sources,
    groups: BTreeMap<String, Vec<Rule>>,
    texts: BTreeMap<String, ProfileText>,
    machine: Arch,
}

impl House<'_> {
    fn profile(&self, name: &str) -> Result<Profile, ProfileError> {
        let chain = self.chain(name)?;
        let (source, text) = chain[0];
        let flag = |key, get: fn(&ProfileText) -> Option<bool>| {
            let found = chain.iter().find_map(|(_, text)| get(text));
            found.ok_or_else(|| missing(source, key))
        };
        let (policy, groups) = self.policy(&chain)?;
        let program = seccomp::compile(&policy, self.machine);
        let program = program.map_err(|error| ProfileError::Compile {
            file: source.file.clone(),
            source: error,
        })?;
        Ok(Profile {
            name: name.into(),
            description: text.description.clone(),
            hash: hash(chain.iter().map(|(source, _)| *source).chain(groups)),
            filter: seccomp::bytes(&program),
            policy,
            landlock: flag("landlock", |text| text.landlock)?,
            scope_abstract_sockets: flag("scope-abstract-sockets", |t| t.scope_abstract_sockets)?,
            pts: flag("pts", |text| text.pts)?,
            tmpfs: Tmpfs {
                tmp: tmpfs(&chain, "tmpfs.tmp", |text| text.tmp.as_ref())?,
                var_tmp: tmpfs(&chain, "tmpfs.var-tmp", |text| text.var_tmp.as_ref())?,
                dev_shm: tmpfs(&chain, "tmpfs.dev-shm", |text| text.dev_shm.as_ref())?,
            },
            rlimits: rlimits(&chain)?,
            host_paths: shown(&chain)?,
        })
    }

    /// The profile, the one it extends, and so on.
    fn chain<'a>(&'a self, name: &'a str) -> Result<Vec<Link<'a>>, ProfileError> {
        let mut names: Vec<&str> = vec![name];
        let mut chain: Vec<Link<'a>> = Vec::new();
        loop {
            let name = names[names.len() - 1];
            let (source, text) = (&self.sources.profiles[name], &self.texts[name]);
            chain.push((source, text));
            let Some(base) = &text.extends else {
                return Ok(chain);
            };
            let (base, span) = (base.get_ref().as_str(), base.span());
            if !self.texts.contains_key(base) {
                return Err(ProfileError::UnknownName {
                    at: source.at(span),
                    what: "profile",
                    name: base.to_owned(),
                    suggestion: closest(base, self.texts.keys().map(String::as_str)),
                });
            }
            let again = names.contains(&base);
            names.push(base);
            if again {
                return Err(ProfileError::Loop {
                    file: source.file.clone(),
                    chain: names.join(" -> "),
                });
            }
        }
    }

    /// What is said of system calls, and the texts of the groups that say it.
    fn policy(&self, chain: &[Link<'_>]) -> Result<(Policy, Vec<&Source>), ProfileError> {
        let first = chain[0].0;
        let mut rules = Vec::new();
        for (source, text) in chain {
            for rule in &text.seccomp.rule {
                rules.push(rules::read(source, rule)?);
            }
        }
        let (source, groups) = set(chain, |text| text.seccomp.groups.as_ref())
            .ok_or_else(|| missing(first, "seccomp.groups"))?;
        let mut used = Vec::new();
        for name in groups {
            let Some(group) = self.groups.get(name.get_ref()) else {
                return Err(ProfileError::UnknownName {
                    at: source.at(name.span()),
                    what: "group of system calls",
                    name: name.get_ref().clone(),
                    suggestion: closest(name.get_ref(), self.groups.keys().map(String::as_str)),
                });
            };
            rules.extend(group.iter().cloned());
            used.push(&self.sources.groups[name.get_ref()]);
        }
        let (source, default) = set(chain, |text| text.seccomp.default.as_ref())
            .ok_or_else(|| missing(first, "seccomp.default"))?;
        let policy = Policy {
            default: rules::action(source, default)?,
            compat: match set(chain, |text| text.seccomp.compat.as_ref()) {
                Some((source, name)) => compat(source, name)?,
                None => None,
            },
            rules,
        };
        Ok((policy, used))
    }
}

/// The first that says something, and what it says.
fn set<'a, T>(
    chain: &[Link<'a>],
    get: impl Fn(&'a ProfileText) -> Option<&'a T>,
) -> Option<(&'a Source, &'a T)> {
    let mut said = chain
        .iter()
        .filter_map(|&(source, text)| Some((source, get(text)?)));
    said.next()
}

fn missing(source: &Source, key: &'static str) -> ProfileError {
    ProfileError::Missing {
        file: source.file.clone(),
        key,
    }
}

fn compat(source: &Source, name: &Spanned<String>) -> Result<Option<Arch>, ProfileError> {
    match name.get_ref().as_str() {
        "none" => Ok(None),
        "i386" => Ok(Some(Arch::I386)),
        other => Err(ProfileError::UnknownName {
            at: source.at(name.span()),
            what: "second kind of system calls (none or i386)",
            name: other.to_owned(),
            suggestion: closest(other, ["none", "i386"].into_iter()),
        }),
    }
}

fn tmpfs(
    chain: &[Link<'_>],
    key: &'static str,
    get: fn(&TmpfsText) -> Option<&TmpfsLimitsText>,
) -> Result<TmpfsLimits, ProfileError> {
    match set(chain, |text| get(&text.tmpfs)) {
        Some((source, text)) => text.read(source),
        None => Err(missing(chain[0].0, key)),
    }
}

/// Every limit that one of the chain sets; the nearest counts.
fn rlimits(chain: &[Link<'_>]) -> Result<Vec<(Resource, Rlimit)>, ProfileError> {
    let mut limits: Vec<(Resource, Rlimit)> = Vec::new();
    for (source, text) in chain {
        for (resource, limit) in text.rlimits(source)? {
            if limits.iter().all(|(known, _)| *known != resource) {
                limits.push((resource, limit));
            }
        }
    }
    Ok(limits)
}

/// The nearest list, and what the profiles before it add.
fn shown(chain: &[Link<'_>]) -> Result<Vec<HostPath>, ProfileError> {
    let mut shown = Vec::new();
    for (source, text) in chain {
        shown.extend(host_paths(source, &text.host_paths_add)?);
        if let Some(list) = &text.host_paths {
            let mut all = host_paths(source, list)?;
            shown.retain(|path| !all.contains(path));
            all.extend(shown);
            return Ok(all);
        }
    }
    Err(missing(chain[0].0, "host-paths"))
}

/// Over the length and the bytes of each text, in order.
fn hash<'a>(sources: impl Iterator<Item = &'a Source>) -> String {
    let mut hash = Sha256::new();
    for source in sources {
        hash.update((source.text.len() as u64).to_le_bytes());
        hash.update(source.text.as_bytes());
    }
    hex::encode(hash.finalize())
}
