//! Where the texts of profiles and groups come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::{Place, ProfileError, closest};

/// A file is never larger than this; larger ones are refused unread.
const MAX_FILE: u64 = 1 << 20;

/// One text.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// What messages call it.
    pub(super) file: String,
    pub(super) text: Cow<'static, str>,
}

impl Source {
    /// The line on which this part of the text begins.
    pub(super) fn at(&self, span: Range<usize>) -> Place {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        Place {
            file: self.file.clone(),
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        }
    }

    /// Reads the text as TOML.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ProfileError> {
        toml::from_str(&self.text).map_err(|error| {
            let at = self.at(error.span().unwrap_or_default());
            match unknown_key(error.message()) {
                Some((key, suggestion)) => ProfileError::UnknownKey {
                    at,
                    key,
                    suggestion,
                },
                None => ProfileError::Syntax {
                    at,
                    why: error.message().trim_end().to_owned(),
                },
            }
        })
    }
}

/// The key, and what it probably should be, out of serde's message: "unknown field `x`, expected one of `y`, `z`".
fn unknown_key(message: &str) -> Option<(String, Option<String>)> {
    let mut quoted = message.strip_prefix("unknown field `")?.split('`');
    let key = quoted.next()?;
    let known = quoted.skip(1).step_by(2);
    Some((key.to_owned(), closest(key, known)))
}

/// All texts, by the name of what they describe.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub(super) profiles: BTreeMap<String, Source>,
    pub(super) groups: BTreeMap<String, Source>,
}

macro_rules! built_in {
    ($($list:ident: $folder:literal: $($name:literal)*;)*) => {
        Sources { $($list: [$((
            $name.to_owned(),
            Source {
                file: concat!("built-in ", $folder, $name, ".toml").to_owned(),
                text: Cow::Borrowed(include_str!(concat!(
                    env!("CARGO_MANIFEST_DIR"), "/sandbox-profiles/linux/", $folder, $name, ".toml"
                ))),
            },
        )),*].into_iter().collect()),* }
    };
}

impl Sources {
    /// The texts that are compiled in.
    pub(super) fn built_in() -> Sources {
        built_in! {
            profiles: "": "default" "strict" "network" "debug" "compat32";
            groups: "seccomp/":
                "kernel-admin" "mount" "namespace" "keyring" "tracing" "io-uring" "handle" "clock" "observe"
                "machine" "scheduling" "socket" "terminal" "device" "personality" "i386"
                "allow-files" "allow-processes" "allow-memory" "allow-waiting" "allow-sockets" "allow-system";
        }
    }

    /// Takes the texts of an operator's directory, before those of the same names that are there already.
    pub(super) fn add(&mut self, directory: &Path) -> Result<(), ProfileError> {
        add_files(&mut self.profiles, directory)?;
        let groups = directory.join("seccomp");
        if groups.is_dir() {
            add_files(&mut self.groups, &groups)?;
        }
        Ok(())
    }
}

fn add_files(list: &mut BTreeMap<String, Source>, directory: &Path) -> Result<(), ProfileError> {
    let unreadable = |path: &Path, source| ProfileError::Read {
        path: path.to_owned(),
        source,
    };
    let entries = std::fs::read_dir(directory).map_err(|e| unreadable(directory, e))?;
    for entry in entries {
        let path = entry.map_err(|e| unreadable(directory, e))?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| is_name(name)) else {
            return Err(ProfileError::Name { path });
        };
        let text = read(&path).map_err(|e| unreadable(&path, e))?;
        let source = Source {
            file: path.display().to_string(),
            text: Cow::Owned(text),
        };
        list.insert(name.to_owned(), source);
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(allowed)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!(
            "it is larger than {MAX_FILE} bytes"
        )));
    }
    Ok(text)
}
