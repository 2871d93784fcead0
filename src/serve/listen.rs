//! Addresses to listen at, and the connections that come in there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::ServeError;
use super::connection::{Connection, Wire};

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

/// A socket that listens.
pub(super) struct Listener {
    /// Where; never port 0.
    pub(super) address: Listen,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// The socket's file, which goes when the server goes.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(super) async fn bind(address: &Listen) -> Result<Self, ServeError> {
        let failed = |why: String| ServeError::Listen {
            address: address.to_string(),
            why,
        };
        match address {
            Listen::Tcp(wanted) => {
                let socket = TcpListener::bind(wanted).await.map_err(|error| {
                    failed(match error.kind() {
                        io::ErrorKind::AddrInUse => format!(
                            "{error}; another server runs there: stop it, or choose another port (0 lets the system choose)"
                        ),
                        _ => error.to_string(),
                    })
                })?;
                let bound = socket
                    .local_addr()
                    .map_err(|error| failed(error.to_string()))?;
                Ok(Listener {
                    address: Listen::Tcp(bound),
                    socket: Socket::Tcp(socket),
                })
            }
            Listen::Unix(path) => {
                make_way(path).await.map_err(failed)?;
                let socket = UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
                Ok(Listener {
                    address: address.clone(),
                    socket: Socket::Unix {
                        listener: socket,
                        _file: SocketFile(path.clone()),
                    },
                })
            }
        }
    }

    /// The connections that come in, as many at a time as there are permits. Each has as long as the `greeting` may take to
    /// show that it speaks HTTP/2.
    pub(super) fn accept(
        self,
        permits: Arc<Semaphore>,
        greeting: Duration,
    ) -> impl Stream<Item = io::Result<Connection>> {
        unfold(
            (self.socket, permits),
            move |(socket, permits)| async move {
                let permit = permits.clone().acquire_owned().await.ok()?;
                let stream = match &socket {
                    Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                        // Its delays come in 40 ms steps; a socket without the option is merely slower.
                        let _ = stream.set_nodelay(true);
                        Wire::Tcp(stream)
                    }),
                    Socket::Unix { listener, .. } => listener
                        .accept()
                        .await
                        .map(|(stream, _)| Wire::Unix(stream)),
                };
                if stream.is_err() {
                    // Out of file descriptors, most likely: it would fail again at once.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let connection = stream.map(|wire| Connection::new(wire, permit, greeting));
                Some((connection, (socket, permits)))
            },
        )
    }
}

/// Removes the socket of a server that is gone; one that answers stays.
async fn make_way(path: &Path) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(about) if !about.file_type().is_socket() => {
            Err("there is a file of this name that is not a socket; remove it".to_owned())
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => Err("another server runs there; stop it or choose another path".to_owned()),
            Err(_) => std::fs::remove_file(path).map_err(|error| error.to_string()),
        },
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
