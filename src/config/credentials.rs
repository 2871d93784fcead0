//! What remotes are shown of us, and what theirs is verified against: files that the operator names. Certificates are read when a
//! connection is prepared; a token is read again when its file changes, as those that a platform hands out expire within the hour.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use parking_lot::Mutex;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::endpoint::EndpointError;

/// How often a token's file is looked at.
const LOOK: Duration = Duration::from_secs(20);
/// No certificate or token is larger, in bytes.
const LARGEST: u64 = 1 << 20;

/// Files, each of which may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// PEM certificates that servers are verified against, beside those that the system trusts.
    pub ca: Option<PathBuf>,
    /// A PEM certificate to show to servers, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A token to send with every call.
    pub token: Option<PathBuf>,
}

impl Credentials {
    /// The TLS that they make, and the same without the system's certificates if it can do without them.
    pub(super) fn tls(&self) -> Result<(ClientTlsConfig, Option<ClientTlsConfig>), EndpointError> {
        let mut tls = ClientTlsConfig::new();
        if let Some((certificate, key)) = &self.identity {
            let certificate = read("client certificate", certificate)?;
            let key = read("private key", key)?;
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let Some(ca) = &self.ca else {
            return Ok((tls.with_native_roots(), None));
        };
        let ca = read("certificates", ca)?;
        let alone = tls.ca_certificate(Certificate::from_pem(ca));
        Ok((alone.clone().with_native_roots(), Some(alone)))
    }
}

fn read(what: &'static str, path: &Path) -> Result<String, EndpointError> {
    let unusable = |why: String| EndpointError::File {
        what,
        path: path.to_owned(),
        why,
    };
    let file = std::fs::File::open(path).map_err(|e| unusable(e.to_string()))?;
    let mut text = String::new();
    let read = std::io::Read::read_to_string(&mut std::io::Read::take(file, LARGEST), &mut text)
        .map_err(|e| unusable(e.to_string()))?;
    match read as u64 {
        0 => Err(unusable("it is empty".to_owned())),
        LARGEST => Err(unusable("it is larger than 1 MiB".to_owned())),
        _ => Ok(text),
    }
}

/// A bearer token.
#[derive(Debug)]
pub(super) struct Token {
    path: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    header: HeaderValue,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Token {
    pub(super) fn read(path: &Path) -> Result<Self, EndpointError> {
        Ok(Token {
            current: Mutex::new(Current {
                changed: changed(path),
                header: header(path)?,
                looked: Instant::now(),
            }),
            path: path.to_owned(),
        })
    }

    /// The value of an `authorization` header.
    pub(super) fn header(&self) -> HeaderValue {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= LOOK {
            current.looked = Instant::now();
            self.look(&mut current);
        }
        current.header.clone()
    }

    /// A small file that is read once an hour: nobody is sent to another thread for it.
    fn look(&self, current: &mut Current) {
        let now = changed(&self.path);
        if now == current.changed {
            return;
        }
        match header(&self.path) {
            Ok(header) => {
                current.header = header;
                current.changed = now;
            }
            // It may be on its way: the old one holds until the remote says otherwise.
            Err(error) => tracing::warn!("the old token stays in use: {error}"),
        }
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|data| data.modified())
        .ok()
}

fn header(path: &Path) -> Result<HeaderValue, EndpointError> {
    let text = read("token", path)?;
    let unusable = |why: &str| EndpointError::File {
        what: "token",
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(unusable("it is empty"));
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| unusable("it holds more than one line, or what no header may hold"))?;
    // Not shown by whoever logs headers.
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert_eq!(token.header(), "Bearer first");
        assert!(!format!("{token:?}").contains("first"));
        let later = SystemTime::now() + Duration::from_secs(5);
        let write = |text: &str, at: SystemTime| {
            std::fs::write(&path, text).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(at).unwrap();
        };
        write("second", later);
        token.look(&mut token.current.lock());
        assert_eq!(token.header(), "Bearer second");
        // What cannot be used does not replace what can.
        for bad in ["", "\n", "two\nlines"] {
            write(bad, later + Duration::from_secs(5));
            token.look(&mut token.current.lock());
            assert_eq!(token.header(), "Bearer second");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let said = |path: &Path| Token::read(path).unwrap_err().to_string();
        assert!(said(&path).contains(path.to_str().unwrap()));
        std::fs::write(&path, "").unwrap();
        assert!(said(&path).contains("empty"));
        std::fs::write(&path, "a\nb").unwrap();
        assert!(said(&path).contains("more than one line"));
        std::fs::write(&path, "a".repeat(2 << 20)).unwrap();
        assert!(said(&path).contains("1 MiB"));
    }
}
