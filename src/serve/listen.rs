//! Addresses to listen at.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen at: `HOST:PORT` with a numeric host, or `unix:/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Plain text over TCP. Port 0 lets the system choose.
    Tcp(SocketAddr),
    /// Plain text over a unix socket.
    Unix(PathBuf),
}

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address to listen at: {why}; write 127.0.0.1:8980 or unix:/PATH")]
pub struct ListenError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let bad = |why: &str| ListenError {
            text: text.chars().take(200).collect(),
            why: why.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(bad("the socket's path is not absolute"));
            }
            if path.len() > 107 {
                return Err(bad(
                    "the socket's path is longer than the 107 bytes that the system takes",
                ));
            }
            return Ok(Listen::Unix(path.into()));
        }
        let authority = ["http://", "grpc://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let authority = match authority.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => authority.to_owned(),
        };
        authority
            .parse()
            .map(Listen::Tcp)
            .map_err(|_| bad("host and port cannot be read; the host must be a numeric address"))
    }
}

/// As a client writes it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "http://{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in [
            "http://127.0.0.1:8980",
            "http://[::1]:0",
            "unix:/run/b.sock",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        assert_eq!(
            "localhost:1".parse::<Listen>().unwrap().to_string(),
            "http://127.0.0.1:1"
        );
    }

    #[test]
    fn bad_addresses_are_refused() {
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", "8980", "example.org:80", "unix:relative", long.as_str()] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
