//! Where a server listens: `IP:PORT` or `unix:/PATH`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::Endpoint;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP; port 0 takes any free one.
    Tcp(SocketAddr),
    /// A unix socket at this absolute path.
    Unix(PathBuf),
}

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an address to listen on: {why}; write IP:PORT (127.0.0.1:8980, [::]:8980) or unix:/PATH"
)]
pub struct ListenError {
    text: String,
    why: String,
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let bad = |why: String| ListenError {
            text: text.chars().take(200).collect(),
            why,
        };
        if text.starts_with("unix:") {
            return match text.parse() {
                Ok(Endpoint::Unix(path)) => Ok(Listen::Unix(path)),
                Ok(_) => Err(bad("it is not a path".into())),
                Err(error) => Err(bad(error.why)),
            };
        }
        text.parse()
            .map(Listen::Tcp)
            .map_err(|_| bad("IP address and port cannot be read".into()))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["127.0.0.1:8980", "[::]:0", "unix:/run/boxwright.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "8980", "localhost:8980", "unix:x", "http://127.0.0.1:1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
