//! A standalone for one `boxwright run`: in this process, at a socket that only this user can reach, with a CAS
//! that stays in the user's cache directory so that the next run need not start from nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::Done;
use super::super::blobs::blocking;
use super::super::daemon;
use super::super::exit::{Exit, Failure};
use super::super::standalone::Standalone;
use super::interrupt::Interrupts;
use crate::cas::LocalStore;
use crate::config::keys::Program;
use crate::config::settings::{self, Entry, Layer};
use crate::config::value::Value;
use crate::config::{Endpoint, Host, Origin, Settings, StandaloneConfig};
use crate::observe;
use crate::serve::Listen;
use crate::worker::Stop;

/// How long a standalone that is left at once may take for it.
const LEAVING: Duration = Duration::from_secs(5);

/// Starts it, lets `work` use it, and stops it. If it is to be `quiet` it tells of errors only.
pub(super) fn with(quiet: bool, work: impl AsyncFnOnce(Endpoint, &mut Interrupts) -> Done) -> Done {
    let temporary = Temporary::new()?;
    let mut config = config(quiet, &temporary)?;
    observe::init(&config.host.log).map_err(|e| Failure::new(Exit::Config, e))?;
    let ground = daemon::ground(&config.host)?;
    let socket = temporary.path.join("socket");
    let runtime = daemon::runtime()?;
    let done = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let starting = async {
            let store = store(&mut config, &temporary).await?;
            let listen = Listen::Unix(socket.clone());
            Standalone::start(&config.host, listen, store, ground).await
        };
        let standalone = tokio::select! {
            standalone = starting => standalone?,
            signal = interrupts.next() => return Err(signal.failure("nothing was executed")),
        };
        let (stop, stops) = mpsc::channel(3);
        let mut standalone = tokio::spawn(standalone.run(stops));
        let done = work(Endpoint::Unix(socket), &mut interrupts).await;
        // Twice: whatever still runs after an interruption is not waited for.
        for _ in 0..2 {
            let _ = stop.send(Stop::Terminate).await;
        }
        let closed = tokio::select! {
            closed = &mut standalone => match closed {
                Ok(end) => end.map(drop),
                Err(error) => Err(Failure::new(Exit::Software, error)),
            },
            signal = interrupts.next() => {
                let _ = stop.send(Stop::Terminate).await;
                let _ = tokio::time::timeout(LEAVING, standalone).await;
                Err(signal.failure("the command had ended"))
            }
        };
        // A failure of the command's is worth more than one of cleaning up.
        done.and_then(|code| closed.map(|()| code))
    });
    runtime.shutdown_timeout(super::LEFTOVERS);
    done
}

/// The settings of a standalone with one slot, as far as the environment does not say otherwise.
fn config(quiet: bool, temporary: &Temporary) -> Result<StandaloneConfig, Failure> {
    let entry = |value| Entry {
        value,
        origin: Origin::Default,
    };
    let mut own = Layer::new();
    own.insert("concurrent-jobs", entry(Value::Number(1)));
    let level = if quiet { "error" } else { "warn" };
    own.insert("log-level", entry(Value::Text(level.to_owned())));
    // A service or a CI job may have no home: nothing is kept then.
    let state = cache_dir().unwrap_or_else(|| temporary.state());
    own.insert("state-dir", entry(Value::Path(state)));
    let environment = settings::environment(Program::Standalone, |name| std::env::var(name).ok())?;
    let layers = vec![environment, own];
    let settings = Settings::resolve(Program::Standalone, layers, &Host::here())?;
    Ok(StandaloneConfig::new(&settings)?)
}

/// Root's home is closed to the users that its actions run as.
fn cache_dir() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some("/var/cache/boxwright".into());
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("boxwright"))
}

/// The store in the cache directory, or a temporary one if another run has that.
async fn store(
    config: &mut StandaloneConfig,
    temporary: &Temporary,
) -> Result<Arc<LocalStore>, Failure> {
    let host = config.host.clone();
    let failure = match blocking(move || daemon::store(&host)).await {
        Ok(store) => return Ok(store),
        Err(failure) => failure,
    };
    match failure.exit {
        Exit::TryAgain => tracing::info!("{}; a temporary store does", failure.text),
        _ => tracing::warn!("{}; a temporary store does, nothing is kept", failure.text),
    }
    config.host.state_dir = temporary.state();
    let host = config.host.clone();
    blocking(move || daemon::store(&host)).await
}

/// A directory that is removed in the end.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// For a store that nobody keeps.
    fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    fn new() -> Result<Self, Failure> {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir();
        let failed = |e: std::io::Error, base: &Path| {
            let text = format!("cannot make a directory in {}: {e}", base.display());
            Failure::new(Exit::CannotCreate, text)
        };
        let path = nix::unistd::mkdtemp(&base.join("boxwright-XXXXXX"))
            .map_err(|e| failed(e.into(), &base))?;
        let made = Temporary { path };
        if nix::unistd::geteuid().is_root() {
            // To be passed through by the users of slots, not to be listed; the socket itself stays root's.
            std::fs::set_permissions(&made.path, std::fs::Permissions::from_mode(0o711))
                .map_err(|e| failed(e, &base))?;
        }
        Ok(made)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
