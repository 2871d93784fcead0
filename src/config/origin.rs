//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// It follows from another key.
    From(&'static str),
    /// A line of a configuration file.
    File {
        /// The file, as it was named.
        path: Arc<PathBuf>,
        /// The line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of this key.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::From(key) => write!(f, "from {key}"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(variable) => write!(f, "environment {variable}"),
            Origin::Flag(key) => write!(f, "flag --{key}"),
        }
    }
}

/// Why a configuration was refused. Every message begins with the place and names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        why: String,
    },
    /// The text is not TOML.
    #[error("{origin}: not TOML: {why}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser said.
        why: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key:?}{}", suggest(.suggestion))]
    Unknown {
        /// Where.
        origin: Origin,
        /// What was written.
        key: String,
        /// What was probably meant.
        suggestion: Option<&'static str>,
    },
    /// A key of the other program.
    #[error(
        "{origin}: {key} is a setting of `boxwright {of}`; `boxwright {program}` has none of this name"
    )]
    Elsewhere {
        /// Where.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// Whose it is.
        of: &'static str,
        /// Who was started.
        program: &'static str,
    },
    /// A value of the wrong type, out of range or malformed.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// Something that must be set is not.
    #[error("{key} is not set: {why}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to do.
        why: &'static str,
    },
}

fn suggest(suggestion: &Option<&'static str>) -> String {
    match suggestion {
        Some(known) => format!("; did you mean {known:?}?"),
        None => "; --print-config lists all keys".to_owned(),
    }
}
