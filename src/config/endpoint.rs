//! Where a service is: `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH` (also `grpc://`, `grpcs://`, as Bazel users
//! write; without a port 80, with TLS 443), and the one way of connecting to it.

use std::error::Error;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Uri;

use super::credentials::{Credentials, Token};
use super::line::Line;

/// A service's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Plain text over TCP.
    Http(String),
    /// TLS over TCP, verified against the system's roots.
    Https(String),
    /// Plain text over a unix socket.
    Unix(PathBuf),
}

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is not written as addresses are.
    #[error(
        "{text:?} is not an address: {why}; write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
    )]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// TLS cannot be set up for it on this machine.
    #[error(
        "cannot set up TLS for {address}: {why}; install ca-certificates, or name certificates with --tls-ca"
    )]
    Tls {
        /// The address.
        address: String,
        /// What the TLS library said.
        why: String,
    },
    /// A file that was named for it cannot be used.
    #[error("cannot use the {what} in {}: {why}", path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A token would travel in plain text.
    #[error(
        "a token is not sent to {address}, as anybody on the way could read it; use https:// there, or leave out --token-file"
    )]
    Exposed {
        /// The address.
        address: String,
    },
    /// The transport refuses it.
    #[error("cannot connect to {address}: {why}")]
    Transport {
        /// The address.
        address: String,
        /// What the transport said.
        why: String,
    },
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = |why: &str| EndpointError::Malformed {
            text: redacted(&text.chars().take(200).collect::<String>()),
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
            return Ok(Endpoint::Unix(path.into()));
        }
        let (scheme, authority) = text
            .split_once("://")
            .ok_or_else(|| bad("it has no scheme"))?;
        let (endpoint, port): (fn(String) -> Self, u16) = match scheme {
            "http" | "grpc" => (Endpoint::Http, 80),
            "https" | "grpcs" => (Endpoint::Https, 443),
            // Anything else may hold what is nobody's business.
            _ if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                return Err(bad(&format!(
                    "its scheme {scheme:?} is not known, only http, https, grpc, grpcs and unix are"
                )));
            }
            _ => return Err(bad("it has no scheme")),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        // They would travel in the `:authority` of every call, and end up in logs.
        if authority.contains('@') {
            return Err(bad("a user name or password has no place in it"));
        }
        let uri: Uri = format!("http://{authority}")
            .parse()
            .map_err(|_| bad("host and port cannot be read"))?;
        if authority.is_empty()
            || uri.host().is_none_or(str::is_empty)
            || uri.path() != "/"
            || authority.contains('/')
        {
            return Err(bad("it has more or less than a host and a port"));
        }
        let alone = uri.host() == Some(authority);
        if !alone && uri.port_u16().is_none_or(|port| port == 0) {
            return Err(bad("its port is not a number from 1 to 65535"));
        }
        if !uri.host().is_some_and(is_host) {
            return Err(bad(
                "its host is neither a host name nor an IP address (IPv6 in brackets)",
            ));
        }
        Ok(endpoint(match alone {
            true => format!("{authority}:{port}"),
            false => authority.to_owned(),
        }))
    }
}

/// Whether it is an IP address as URIs have it, or a name that DNS can hold.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // RFC 1123: a name's last label is not a number, so what ends in one is meant as an address.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    name.len() <= 253 && name.split('.').all(label)
}

/// A text that may be an address, fit for logs: whatever stands where user name and password would is struck out.
pub fn redacted(text: &str) -> String {
    let Some((before, host)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    match before.split_once("://") {
        // What else stands before the sign may be part of a password.
        Some((scheme @ ("http" | "https" | "grpc" | "grpcs" | "unix"), _)) => {
            format!("{scheme}://***@{host}")
        }
        _ => format!("***@{host}"),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Http(authority) => write!(f, "http://{authority}"),
            Endpoint::Https(authority) => write!(f, "https://{authority}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Makes connections to one service. Whatever can be wrong with its address is known once this exists.
#[derive(Clone, Debug)]
pub struct Dialer {
    transport: tonic::transport::Endpoint,
    socket: Option<PathBuf>,
    token: Option<Arc<Token>>,
}

impl Endpoint {
    /// Whether it is on this machine, as far as its address tells.
    pub fn is_here(&self) -> bool {
        match self {
            Endpoint::Unix(_) => true,
            Endpoint::Http(authority) | Endpoint::Https(authority) => {
                let host = authority
                    .rsplit_once(':')
                    .map_or(&authority[..], |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost"
                    || host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// Prepares connections, and reads the files that they need, the system's roots among them if they are to be TLS; needs no
    /// runtime.
    ///
    /// Nagle's algorithm is off (its delays come in 40 ms steps), and keep-alive pings find a dead peer
    /// within half a minute.
    pub fn dialer(&self, credentials: &Credentials) -> Result<Dialer, EndpointError> {
        let target = match self {
            Endpoint::Http(authority) => format!("http://{authority}"),
            Endpoint::Https(authority) => format!("https://{authority}"),
            Endpoint::Unix(_) => "http://localhost".to_owned(),
        };
        let transport = tonic::transport::Endpoint::from_shared(target)
            .map_err(|error| EndpointError::Transport {
                address: self.to_string(),
                why: chain(&error),
            })?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            // A scheduler sends a trailer per lease; the default of 16 KiB is full at some thirty leases.
            .http2_max_header_list_size(1 << 20)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        let tls = |error| EndpointError::Tls {
            address: self.to_string(),
            why: chain(&error),
        };
        let token = match &credentials.token {
            Some(_) if matches!(self, Endpoint::Http(_)) && !self.is_here() => {
                return Err(EndpointError::Exposed {
                    address: self.to_string(),
                });
            }
            Some(path) => Some(Arc::new(Token::read(path)?)),
            None => None,
        };
        let transport = match self {
            Endpoint::Https(_) => {
                let (with_system, alone) = credentials.tls()?;
                match (transport.clone().tls_config(with_system), alone) {
                    // A machine without certificates of its own.
                    (Err(_), Some(alone)) => transport.tls_config(alone),
                    (result, _) => result,
                }
                .map_err(tls)?
            }
            Endpoint::Http(_) | Endpoint::Unix(_) => transport,
        };
        Ok(Dialer {
            transport,
            socket: match self {
                Endpoint::Unix(path) => Some(path.clone()),
                Endpoint::Http(_) | Endpoint::Https(_) => None,
            },
            token,
        })
    }

    /// A line of a dialer of its own. Within a runtime only.
    pub fn line(&self, credentials: &Credentials) -> Result<Line, EndpointError> {
        Ok(self.dialer(credentials)?.line())
    }
}

impl Dialer {
    /// A line that connects when first used and again whenever the connection is lost. Within a runtime only.
    pub fn line(&self) -> Line {
        let token = self.token.clone();
        let Some(path) = self.socket.clone() else {
            return Line::new(self.transport.connect_lazy(), token);
        };
        let channel = self
            .transport
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }));
        Line::new(channel, token)
    }
}

/// An error with its causes, for the transport's own text does not name them.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in [
            "http://127.0.0.1:8980",
            "https://build.example:443",
            "unix:/run/boxwright.sock",
            "http://[::1]:1",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!(
            "grpc://h:1".parse::<Endpoint>().unwrap(),
            Endpoint::Http("h:1".into())
        );
        assert_eq!(
            "unix:///a/b".parse::<Endpoint>().unwrap(),
            Endpoint::Unix("/a/b".into())
        );
    }

    #[test]
    fn without_a_port_it_is_that_of_the_scheme() {
        for (text, whole) in [
            ("http://h", "http://h:80"),
            ("grpc://h/", "http://h:80"),
            ("https://build.example/", "https://build.example:443"),
            ("grpcs://[::1]", "https://[::1]:443"),
            ("https://127.0.0.1:80", "https://127.0.0.1:80"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        for text in [
            "http://me:secret@h:1",
            "me:secret@h:1",
            "ftp://secret@h",
            "http://a:secret@b@h:1",
            "me:secret@h://x",
            "me:secret://x@h",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(!redacted(text).contains("secret"));
        }
    }

    #[test]
    fn bad_addresses_say_why() {
        for text in [
            "",
            "localhost:80",
            "http://",
            "ftp://x:1",
            "http:///",
            "http://:80",
            "https://h:",
            "unix:relative",
            "http://h:1/path",
            "http://h:x y",
            "https://a..b:1",
            "http://-a:1",
            "http://1.2.3:1",
            "http://[::x]:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        for (text, why) in [
            ("ftp://x", "\"ftp\" is not known, only http, https, grpc,"),
            ("HTTP://x:1", "\"HTTP\" is not known"),
            ("http://h:", "port"),
            ("http://h:89800", "from 1 to 65535"),
            ("http://h:0", "from 1 to 65535"),
            ("https://a..b:1", "neither a host name nor"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_tls_cannot_do_is_an_error() {
        let bad = Endpoint::Https("a..b:1".into());
        let none = Credentials::default();
        let error = bad.dialer(&none).unwrap_err();
        assert!(error.to_string().contains("a..b:1"), "{error}");
        assert!(Endpoint::Http("h:1".into()).dialer(&none).is_ok());
    }

    #[test]
    fn a_token_stays_off_plain_connections_to_other_machines() {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "secret").unwrap();
        let credentials = Credentials {
            token: Some(token.path().to_owned()),
            ..Credentials::default()
        };
        for (address, sent) in [
            ("http://10.0.0.1:1", false),
            ("http://build.example:1", false),
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("unix:/run/x.sock", true),
        ] {
            let endpoint: Endpoint = address.parse().unwrap();
            let dialer = endpoint.dialer(&credentials);
            assert_eq!(dialer.is_ok(), sent, "{address}");
            if let Err(error) = dialer {
                let text = error.to_string();
                assert!(text.contains(address) && !text.contains("secret"), "{text}");
            }
        }
    }
}
