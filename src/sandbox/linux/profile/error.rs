//! What can be wrong with a profile. Every message names the file, and the line where there is one.

use std::fmt;
use std::path::PathBuf;

use super::seccomp::CompileError;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's path, or `built-in` and its name.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why there are no profiles.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The operator's directory or a file in it cannot be read.
    #[error("sandbox profiles: cannot read {}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file's name is no profile's name.
    #[error(
        "sandbox profiles: {}: a profile's name is made of a-z, 0-9 and -; rename the file",
        path.display()
    )]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML, a key is missing, or a value is of another type.
    #[error("{at}: {why}")]
    Syntax {
        /// Where.
        at: Place,
        /// What the parser said.
        why: String,
    },
    /// A key that means nothing.
    #[error("{at}: unknown key `{key}`{}", hint(suggestion))]
    UnknownKey {
        /// Where.
        at: Place,
        /// The key.
        key: String,
        /// The key that was probably meant.
        suggestion: Option<String>,
    },
    /// A system call, constant, error, group or profile that there is not.
    #[error("{at}: there is no {what} {name:?}{}", hint(suggestion))]
    UnknownName {
        /// Where.
        at: Place,
        /// What it should have been the name of.
        what: &'static str,
        /// The name.
        name: String,
        /// The name that was probably meant.
        suggestion: Option<String>,
    },
    /// A value that cannot be.
    #[error("{at}: `{key}`: {why}")]
    Value {
        /// Where.
        at: Place,
        /// Whose value.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A profile that extends no other has to say everything.
    #[error(
        "{file}: `{key}` is not set, and no profile that this one extends sets it; set it, or write extends = \"default\""
    )]
    Missing {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
    },
    /// A profile extends itself.
    #[error("{file}: the profile extends itself: {chain}")]
    Loop {
        /// The file.
        file: String,
        /// The names, with arrows between them.
        chain: String,
    },
    /// A policy that does not fit into a program.
    #[error("{file}: {source}")]
    Compile {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: CompileError,
    },
    /// There are no tables of system calls for this machine.
    #[error(
        "sandbox profiles: no system-call filters for {0}; there are some for x86_64 and aarch64"
    )]
    Machine(&'static str),
}

fn hint(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

/// The name that somebody probably meant.
pub(super) fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    // The distance costs the product of both lengths: what is longer than any name is no slip of one.
    if name.len() > 64 {
        return None;
    }
    names
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}
