//! Remotes behind TLS: what is verified, what is shown, and what is said when it does not fit. The server is a real one, with
//! certificates that `openssl` makes for each test.

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;
#[path = "common/skipped.rs"]
mod skipped;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use boxwright::cas::{BlobSource, CasError, RemoteCas, RemoteConfig};
use boxwright::config::{Credentials, EndpointError};
use faulty_cas::{FaultyCas, blob};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// A certificate authority with the certificates that it has signed.
struct Authority(tempfile::TempDir);

impl Authority {
    /// `None`, and a word on why, where there is no `openssl`.
    fn new() -> Option<Self> {
        let authority = Authority(tempfile::tempdir().unwrap());
        if Command::new("openssl").arg("version").output().is_err() {
            skipped::program("openssl");
            return None;
        }
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        );
        for name in ["localhost", "worker"] {
            let extensions = format!("subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n");
            std::fs::write(authority.path(&format!("{name}.ext")), extensions).unwrap();
            authority.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            authority.openssl(&format!(
                "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {name}.ext -out {name}.pem"
            ));
        }
        Some(authority)
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pem(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn server(&self) -> ServerTlsConfig {
        let identity = Identity::from_pem(self.pem("localhost.pem"), self.pem("localhost.key"));
        ServerTlsConfig::new().identity(identity)
    }

    fn trusted(&self) -> Credentials {
        Credentials {
            ca: Some(self.path("ca.pem")),
            ..Credentials::default()
        }
    }
}

fn client(server: &FaultyCas, credentials: Credentials) -> Result<RemoteCas, EndpointError> {
    RemoteCas::new(RemoteConfig {
        endpoint: server.address.parse().unwrap(),
        credentials,
        instance: "main".to_owned(),
        retries: 1,
        retry_delay: Duration::from_millis(1),
        call_timeout: Duration::from_secs(20),
    })
}

/// Small and large, up and down.
async fn works(server: &FaultyCas, credentials: Credentials) -> Result<(), CasError> {
    let client = client(server, credentials).unwrap();
    let (small, data) = blob(1, 1000);
    client.write_batch(vec![(small, data)]).await?;
    let (large, data) = blob(2, 6_000_000);
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &data).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    client.write_stream(large, file).await?;
    let mut came = Vec::new();
    let mut sink = |piece: bytes::Bytes| {
        came.extend_from_slice(&piece);
        Ok(())
    };
    client.read_stream(large, &mut sink).await?;
    assert!(came == data);
    assert_eq!(client.find_missing(&[small, large]).await?, []);
    Ok(())
}

fn refusal(result: Result<(), CasError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn a_server_is_verified_against_the_named_certificates() {
    let (Some(ours), Some(other)) = (Authority::new(), Authority::new()) else {
        return;
    };
    let server = FaultyCas::start_tls(ours.server()).await;
    works(&server, ours.trusted()).await.unwrap();
    let before = server.calls("GetCapabilities");
    let said = refusal(works(&server, other.trusted()).await);
    assert!(said.contains("https://localhost:"), "{said}");
    // Without the system's certificates, a client that trusts nobody else is not even made.
    if client(&server, Credentials::default()).is_ok() {
        refusal(works(&server, Credentials::default()).await);
    }
    assert_eq!(
        server.calls("GetCapabilities"),
        before,
        "nobody was told anything"
    );
}

#[tokio::test]
async fn the_server_must_have_the_name_that_was_asked_for() {
    let Some(ours) = Authority::new() else { return };
    let identity = Identity::from_pem(ours.pem("worker.pem"), ours.pem("worker.key"));
    let server = FaultyCas::start_tls(ServerTlsConfig::new().identity(identity)).await;
    refusal(works(&server, ours.trusted()).await);
    assert_eq!(server.calls("GetCapabilities"), 0);
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let Some(ours) = Authority::new() else { return };
    let tls = ours
        .server()
        .client_ca_root(Certificate::from_pem(ours.pem("ca.pem")));
    let server = FaultyCas::start_tls(tls).await;
    refusal(works(&server, ours.trusted()).await);
    let shown = Credentials {
        identity: Some((ours.path("worker.pem"), ours.path("worker.key"))),
        ..ours.trusted()
    };
    works(&server, shown).await.unwrap();
}

#[tokio::test]
async fn the_token_goes_with_every_call() {
    let Some(ours) = Authority::new() else { return };
    let server = FaultyCas::start_tls(ours.server()).await;
    std::fs::write(ours.path("token"), "s3cret\n").unwrap();
    let credentials = Credentials {
        token: Some(ours.path("token")),
        ..ours.trusted()
    };
    works(&server, credentials).await.unwrap();
    let tokens = server.state.seen.lock().tokens.clone();
    assert!(tokens.len() >= 5, "{tokens:?}");
    assert!(
        tokens.iter().all(|t| t.as_deref() == Some("Bearer s3cret")),
        "{tokens:?}"
    );
}

fn boxwright(arguments: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_boxwright"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), said)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_takes_certificates_and_tokens() {
    let Some(ours) = Authority::new() else { return };
    let tls = ours
        .server()
        .client_ca_root(Certificate::from_pem(ours.pem("ca.pem")));
    let server = FaultyCas::start_tls(tls).await;
    let (ca, cert) = (ours.path("ca.pem"), ours.path("worker.pem"));
    let (key, token) = (ours.path("worker.key"), ours.path("token"));
    std::fs::write(&token, "s3cret").unwrap();
    let mut arguments = vec![
        "cas",
        "put",
        "--remote",
        &server.address,
        "--tls-ca",
        text(&ca),
    ];
    arguments.extend(["--tls-cert", text(&cert), "--tls-key", text(&key)]);
    arguments.extend(["--token-file", text(&token), text(&ca)]);
    let (code, said) = boxwright(&arguments);
    assert_eq!(code, Some(0), "{said}");
    let digest = faulty_cas::SHA256.digest(ours.pem("ca.pem").as_bytes());
    assert_eq!(server.get(digest).unwrap(), ours.pem("ca.pem"));
    let tokens = server.state.seen.lock().tokens.clone();
    assert!(tokens.iter().all(|t| t.as_deref() == Some("Bearer s3cret")));
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (absent, empty) = (dir.path().join("absent"), dir.path().join("empty"));
    std::fs::write(&empty, "").unwrap();
    for flag in ["--tls-ca", "--token-file"] {
        for file in [&absent, &empty] {
            let remote = "https://localhost:1";
            let (code, said) = boxwright(&[
                "worker",
                "--check-config",
                "--remote",
                remote,
                flag,
                text(file),
            ]);
            assert_eq!(code, Some(78), "{said}");
            assert!(said.contains(text(file)), "{said}");
        }
    }
    let remote = "http://build.example:1";
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    let (code, said) = boxwright(&[
        "worker",
        "--check-config",
        "--remote",
        remote,
        "--token-file",
        text(&token),
    ]);
    assert_eq!(code, Some(78), "{said}");
    assert!(
        said.contains("https://") && !said.contains("s3cret"),
        "{said}"
    );
}
