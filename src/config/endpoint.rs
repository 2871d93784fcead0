//! Where a service is: `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH` (also `grpc://`, `grpcs://`, as Bazel users
//! write), and the one way of connecting to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Uri};

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
#[error(
    "{text:?} is not an address: {why}; write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
)]
pub struct EndpointError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = |why: &str| EndpointError {
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
        match scheme {
            "http" | "grpc" => Ok(Endpoint::Http(authority.to_owned())),
            "https" | "grpcs" => Ok(Endpoint::Https(authority.to_owned())),
            _ => Err(bad("its scheme is not known")),
        }
    }
}

/// A text that may be an address, fit for logs: whatever stands where user name and password would is struck out.
pub fn redacted(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("***@{host}"),
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => text.to_owned(),
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

impl Endpoint {
    /// A channel that connects when first used and again whenever the connection is lost.
    ///
    /// Nagle's algorithm is off (its delays come in 40 ms steps), and keep-alive pings find a dead peer
    /// within half a minute.
    pub fn channel(&self) -> Channel {
        let target = match self {
            Endpoint::Http(authority) => format!("http://{authority}"),
            Endpoint::Https(authority) => format!("https://{authority}"),
            Endpoint::Unix(_) => "http://localhost".to_owned(),
        };
        let mut endpoint = tonic::transport::Endpoint::from_shared(target)
            .expect("addresses are checked when parsed")
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            // A scheduler sends a trailer per lease; the default of 16 KiB is full at some thirty leases.
            .http2_max_header_list_size(1 << 20)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        match self {
            Endpoint::Http(_) => endpoint.connect_lazy(),
            Endpoint::Https(_) => {
                endpoint = endpoint
                    .tls_config(ClientTlsConfig::new().with_native_roots())
                    .expect("the default TLS configuration is valid");
                endpoint.connect_lazy()
            }
            Endpoint::Unix(path) => {
                let path = path.clone();
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move {
                        let stream = tokio::net::UnixStream::connect(path).await?;
                        Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                    }
                }))
            }
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
    fn secrets_stay_out_of_messages() {
        for text in [
            "http://me:secret@h:1",
            "me:secret@h:1",
            "ftp://secret@h",
            "http://a:secret@b@h:1",
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
            "unix:relative",
            "http://h:1/path",
            "http://h:x y",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
