//! `boxwright cas`: looking into a CAS, and putting things there.

mod get;
mod kind;
mod list;
mod put;
mod stat;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

pub(super) use list::directories as tree_of;
pub(super) use put::{function, prepare};

use super::Done;
use super::blobs::StoreOnDisk;
use super::exit::{Exit, Failure};
use super::{remote, value};
use crate::cas::{BlobSource, LocalStore, StoreConfig};
use crate::config::Endpoint;

/// Look into a CAS, or put things there
///
/// Digests are written HASH/SIZE, or blake3:HASH/SIZE.
#[derive(Debug, Args)]
pub(super) struct CasCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Put(put::Put),
    Get(get::Get),
    Tree(list::List),
    Stat(stat::Stat),
}

/// Which CAS.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// The CAS
    #[arg(long, value_name = "URL", value_parser = value::endpoint(), default_value = remote::DEFAULT_REMOTE)]
    remote: Endpoint,
    /// The instance name there
    #[arg(long, value_name = "NAME", default_value = "")]
    instance: String,
    /// Instead of a remote, the state directory of a daemon that does not run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["remote", "instance"])]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    access: remote::Access,
}

impl CasCommand {
    pub(super) fn run(self) -> Done {
        let runtime = remote::runtime()?;
        runtime.block_on(async {
            match self.what {
                What::Put(command) => command.run().await,
                What::Get(command) => command.run().await,
                What::Tree(command) => command.run().await,
                What::Stat(command) => command.run().await,
            }
        })
    }
}

impl Where {
    /// Opens it, and does `work` with it.
    pub(super) async fn with<F>(&self, work: impl FnOnce(Arc<dyn BlobSource>) -> F) -> Done
    where
        F: Future<Output = Done>,
    {
        let Some(state_dir) = &self.state_dir else {
            let credentials = self.access.credentials();
            let client = remote::connect(&self.remote, credentials, &self.instance)?;
            return work(Arc::new(client)).await;
        };
        let store = open(state_dir)?;
        let done = work(Arc::new(StoreOnDisk(store.clone()))).await;
        store.close()?;
        done
    }
}

/// The store of a daemon that does not run; one that has none is not made.
fn open(state_dir: &Path) -> Result<Arc<LocalStore>, Failure> {
    let root = state_dir.join(super::daemon::STORE);
    if !root.is_dir() {
        let text = format!("{} holds no blob store", state_dir.display());
        return Err(Failure::new(Exit::NoInput, text));
    }
    // The marks are those of the daemon, which sees to them when it runs next.
    Ok(LocalStore::open(StoreConfig {
        root,
        high_water: u64::MAX,
        low_water: u64::MAX,
        free_floor: 0,
    })?)
}

/// Ends well.
fn well() -> Done {
    Ok(ExitCode::SUCCESS)
}
