//! The world that attempts are made in: a secret, listeners, a victim, a terminal, a network of the test's own.
//!
//! A test enters it by running itself again: `probe world.enter` gives the second run its terminal, its network and its
//! `/etc/subuid`, which it could not change for itself once it has threads.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs, thread};

const WORLD: &str = "BOXWRIGHT_TEST_WORLD";
/// In the worker's environment and no command's.
pub(crate) const SECRET: &str = "BOXWRIGHT_TEST_SECRET";
const BOXWRIGHT: &str = env!("CARGO_BIN_EXE_boxwright");
/// What is in the host's files, and nowhere else.
pub(crate) const HOSTS: &[u8] = b"of the host and nobody else's";
/// The ordinary user that a daemon without root is.
const ORDINARY: u32 = 5000;
const METADATA: &str = "169.254.169.254:80";
const DNS: &str = "169.254.169.253:53";

/// Who the test is in its world.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Same,
    Ordinary,
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs a test's body in a world of its own.
pub(crate) fn enter(name: &str, user: User, body: impl AsyncFnOnce()) {
    if env::var_os(WORLD).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        return runtime.unwrap().block_on(body());
    }
    let dir = tempfile::Builder::new()
        .prefix("boxwright-world.")
        .tempdir()
        .unwrap();
    build(dir.path());
    let mut command = Command::new(dir.path().join("probe"));
    command.args(["world.enter".as_ref(), dir.path().join("etc").as_os_str()]);
    if user == User::Ordinary && is_root() {
        let ids = [format!("--reuid={ORDINARY}"), format!("--regid={ORDINARY}")];
        command
            .arg("setpriv")
            .args(ids)
            .args(["--clear-groups", "--"]);
        chown(dir.path().join("scratch"), Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
    let output = command
        .arg(dir.path().join("test"))
        .args(["--exact", name, "--nocapture"])
        .env(WORLD, dir.path())
        .env(SECRET, "the-worker-s-own")
        .env("TMPDIR", dir.path().join("scratch"))
        .current_dir("/")
        .output()
        .unwrap();
    // By these macros, which the test's own harness shows if it fails.
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{name} in its world: {}",
        output.status
    );
}

/// The files of a world; what runs in it may be another user.
fn build(dir: &Path) {
    let mode = |path: &str, mode| {
        fs::set_permissions(dir.join(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("", 0o755);
    for directory in ["host", "etc", "scratch"] {
        fs::create_dir(dir.join(directory)).unwrap();
        mode(directory, 0o755);
    }
    // The build's own directory may be closed to others.
    let test = env::current_exe().unwrap();
    for (name, program) in [("test", test.as_path()), ("boxwright", BOXWRIGHT.as_ref())] {
        let place = dir.join(name);
        if fs::hard_link(program, &place).is_err() {
            fs::copy(program, &place).unwrap();
        }
    }
    for probe in ["probe", "host/interpreter", "suid"] {
        fs::copy(compiled(), dir.join(probe)).unwrap();
    }
    for program in ["test", "boxwright", "probe", "host/interpreter"] {
        mode(program, 0o755);
    }
    mode("suid", 0o4755);
    for (file, permissions) in [("secret", 0o644), ("tool", 0o644), ("open", 0o666)] {
        fs::write(dir.join("host").join(file), HOSTS).unwrap();
        mode(&format!("host/{file}"), permissions);
    }
    // A range of subordinate ids for the ordinary user, and a name, without which it has no range.
    for (file, line) in [
        (
            "passwd",
            format!("ordinary:x:{ORDINARY}:{ORDINARY}::/:/bin/sh\n"),
        ),
        ("group", format!("ordinary:x:{ORDINARY}:\n")),
        ("subuid", format!("{ORDINARY}:100000:262144\n")),
        ("subgid", format!("{ORDINARY}:100000:262144\n")),
    ] {
        let now = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
        fs::write(dir.join("etc").join(file), now + &line).unwrap();
        mode(&format!("etc/{file}"), 0o644);
    }
}

/// The probe program, compiled once for its sources.
pub(crate) fn compiled() -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adversarial/probe");
    let mut hasher = DefaultHasher::new();
    let mut files: Vec<_> = fs::read_dir(&sources)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        fs::read(file).unwrap().hash(&mut hasher);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let probe = folder.join(format!("probe-{:016x}", hasher.finish()));
    // Of tests that run beside each other the first one compiles.
    let lock = fs::File::create(folder.join("probe.lock")).unwrap();
    lock.lock().unwrap();
    if !probe.exists() {
        let half = probe.with_extension("new");
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc)
            .args([
                "--edition=2024",
                "-O",
                "-Ctarget-feature=+crt-static",
                "-Cpanic=abort",
                "-Cstrip=symbols",
            ])
            .arg("-o")
            .args([&half, &sources.join("main.rs")])
            .status()
            .unwrap();
        assert!(status.success(), "the probe does not compile");
        fs::rename(&half, &probe).unwrap();
    }
    probe
}

/// What an attempt may know.
pub(crate) struct World {
    dir: PathBuf,
    victim: Child,
    words: Vec<(&'static str, String)>,
}

impl World {
    /// The one that this process was started in, with its listeners listening.
    pub(crate) fn here() -> World {
        let dir = PathBuf::from(env::var_os(WORLD).unwrap());
        let scratch = dir.join("scratch");
        let socket = scratch.join("socket");
        let _ = fs::remove_file(&socket);
        let path = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
        let name = format!("boxwright-world-{}", std::process::id());
        let abstracted =
            UnixAddr::from_abstract_name(&name).and_then(|name| UnixListener::bind_addr(&name));
        // Accepting is the kernel's part, as long as the listeners live.
        thread::spawn(move || {
            [path, abstracted.unwrap()].map(|listener| listener.incoming().for_each(drop))
        });
        let tcp = greeter("127.0.0.1:0").unwrap();
        let udp = echo("127.0.0.1:0").unwrap();
        let victim = Command::new("sleep")
            .arg("120")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut words = vec![
            ("{host}", dir.join("host").to_str().unwrap().to_owned()),
            ("{socket}", socket.to_str().unwrap().to_owned()),
            ("{abstract}", name),
            ("{tcp}", tcp.to_string()),
            ("{udp}", udp.to_string()),
            ("{victim}", victim.id().to_string()),
            ("{secret-variable}", SECRET.to_owned()),
            ("{namespaces}", namespaces()),
        ];
        // A second world of the same test finds them taken by the first, which is as good. A network that is not
        // the test's own has none.
        if let Ok(address) = greeter(METADATA).or_else(already(METADATA)) {
            words.push(("{metadata}", address.to_string()));
        }
        if let Ok(address) = echo(DNS).or_else(already(DNS)) {
            words.push(("{dns}", address.to_string()));
        }
        // A set-uid program that is not root's is worth nothing.
        if fs::metadata(dir.join("suid")).unwrap().uid() == 0 {
            words.push(("{suid}", "./suid".to_owned()));
        }
        World { dir, victim, words }
    }

    /// The probe program, of which an input root gets a link.
    pub(crate) fn probe(&self) -> PathBuf {
        self.dir.join("probe")
    }

    pub(crate) fn launcher(&self) -> PathBuf {
        self.dir.join("boxwright")
    }

    /// The first of ids that no other test uses.
    pub(crate) fn unused_ids(&self) -> u32 {
        0x7200_0000 + (std::process::id() << 6) % 0x0100_0000
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Puts what is in it into an input root: the probe, a set-uid one, a script with a foreign interpreter.
    pub(crate) fn furnish(&self, root: &Path) {
        for program in ["probe", "suid"] {
            // A copy loses its set-uid bit; a link to another's file is refused on some systems, and then it has none to lose.
            let place = root.join(program);
            if fs::hard_link(self.dir.join(program), &place).is_err() {
                fs::copy(self.dir.join(program), &place).unwrap();
            }
        }
        let script = root.join("script");
        fs::write(
            &script,
            format!("#!{}/host/interpreter exec.ran\n", self.dir.display()),
        )
        .unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        symlink("loop", root.join("loop")).unwrap();
    }

    /// The argument with what its names in braces stand for; `None` if there is no such thing in this world.
    pub(crate) fn fill(&self, argument: &str) -> Option<String> {
        let words = self.words.iter();
        let filled = words.fold(argument.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        });
        (!filled.contains('{')).then_some(filled)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// `mnt=mnt:[4026531841]` and so on: what `ns.shared` compares.
fn namespaces() -> String {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let links = kinds.map(|kind| {
        fs::read_link(format!("/proc/self/ns/{kind}"))
            .map(|link| format!("{kind}={}", link.display()))
    });
    links.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn already(address: &'static str) -> impl FnOnce(std::io::Error) -> std::io::Result<SocketAddr> {
    move |error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Ok(address.parse().unwrap()),
        _ => Err(error),
    }
}

fn greeter(address: &str) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
        }
    });
    Ok(address)
}

fn echo(address: &str) -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind(address)?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((size, from)) = socket.recv_from(&mut packet) {
            let _ = socket.send_to(&packet[..size], from);
        }
    });
    Ok(address)
}
