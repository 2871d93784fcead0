//! The first phase: from a lease to everything that is known of an action before it is staged.
//! Action, Command and all Directory messages are read and checked here.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::command::{self, CheckedCommand};
use super::{Ending, platform, settings::Settings};
use crate::cas::{Cas, CasError};
use crate::reapi::proto::re;
use crate::reapi::status::MissingBlob;
use crate::reapi::{Digest, time};
use crate::sandbox::Level;
use crate::scheduler::Lease;
use crate::tree::{self, Tree, TreeError, TreeStore};

/// The largest Action message that is read, in bytes. Real ones have a few hundred.
const MAX_ACTION: u64 = 1 << 20;
/// The largest Command message that is read, in bytes: a long link line has a few megabytes.
const MAX_COMMAND: u64 = 64 << 20;

/// A resolved action.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) digest: Digest,
    pub(super) do_not_cache: bool,
    /// How long the command may run, and who says so.
    pub(super) timeout: Option<(Duration, &'static str)>,
    pub(super) command: CheckedCommand,
    pub(super) tree: Arc<Tree>,
}

/// Resolves a lease.
pub(super) async fn resolve(
    lease: &Lease,
    cas: &Cas,
    trees: &TreeStore,
    settings: &Settings,
    level: Level,
) -> Result<Resolved, Ending> {
    let (digest, action) = read_action(lease, cas).await?;
    let named = |what: &str, digest: Option<&re::Digest>| {
        Digest::from_proto(lease.function, digest)
            .map_err(|e| Ending::BadRequest(format!("the Action's {what}: {e}")))
    };
    let command_digest = named("command_digest", action.command_digest.as_ref())?;
    let root = named("input_root_digest", action.input_root_digest.as_ref())?;
    let timeout = timeout(&action, settings)?;

    let (command, tree) = tokio::join!(
        cas.read(command_digest, MAX_COMMAND, "Command"),
        tree::fetch_known(cas, trees, root, settings.tree_limits)
    );
    let (tree, mut missing) = tree.map_err(from_tree)?;
    let command = match command {
        Ok(command) => Some(command),
        Err(CasError::Missing(_)) => {
            missing.push(MissingBlob {
                digest: command_digest,
                what: "the Command".to_owned(),
            });
            None
        }
        Err(error) => return Err(from_cas(error, |_| "the Command".to_owned())),
    };
    let Some(command) = command.filter(|_| missing.is_empty()) else {
        // The client is told of everything that is missing at once, so that it need not come
        // back once for the Command, once for the directories and once for the files.
        missing.extend(missing_files(cas, &tree).await?);
        return Err(Ending::MissingInputs(missing));
    };
    let command = re::Command::decode(command)
        .map_err(|e| Ending::BadRequest(format!("blob {command_digest} is not a Command: {e}")))?;
    platform::check(platform::properties(&action, &command), settings, level)?;
    Ok(Resolved {
        digest,
        do_not_cache: action.do_not_cache,
        timeout,
        command: command::check(&command).map_err(Ending::BadRequest)?,
        tree,
    })
}

async fn read_action(lease: &Lease, cas: &Cas) -> Result<(Digest, re::Action), Ending> {
    let bytes = match (&lease.action, lease.action_digest) {
        (Some(bytes), _) => bytes.clone(),
        (None, Some(digest)) => cas
            .read(digest, MAX_ACTION, "Action")
            .await
            .map_err(|e| from_cas(e, |_| "the Action".to_owned()))?,
        (None, None) => {
            return Err(Ending::BadRequest(
                "the lease holds neither an Action nor its digest".into(),
            ));
        }
    };
    // Only where the scheduler did not tell the digest is it computed here: a scheduler may have
    // serialized the message anew, and then this digest differs from the client's.
    let digest = lease
        .action_digest
        .unwrap_or_else(|| lease.function.digest(&bytes));
    let action = re::Action::decode(bytes)
        .map_err(|e| Ending::BadRequest(format!("action {digest} is not an Action: {e}")))?;
    Ok((digest, action))
}

/// REAPI: "The server SHOULD impose a timeout if the client does not specify one, however, if the
/// client does specify a timeout that is longer than the server's maximum timeout, the server MUST
/// reject the request." A timeout of zero is what clients send that mean none.
fn timeout(
    action: &re::Action,
    settings: &Settings,
) -> Result<Option<(Duration, &'static str)>, Ending> {
    let asked = match &action.timeout {
        None => None,
        Some(timeout) => {
            let length = time::from_duration(timeout).ok_or_else(|| {
                Ending::BadRequest(format!(
                    "the Action's timeout of {} s and {} ns is not a length of time",
                    timeout.seconds, timeout.nanos
                ))
            })?;
            (!length.is_zero()).then_some(length)
        }
    };
    match (asked, settings.max_timeout) {
        (Some(asked), Some(max)) if asked > max => Err(Ending::BadRequest(format!(
            "the Action's timeout of {} s is longer than the {} s that this worker allows (--max-timeout)",
            asked.as_secs(),
            max.as_secs()
        ))),
        (Some(asked), _) => Ok(Some((asked, "its action"))),
        (None, max) => {
            let default = settings
                .default_timeout
                .map(|length| (length, "--default-timeout"));
            let max = max.map(|length| (length, "--max-timeout"));
            Ok([default, max].into_iter().flatten().min())
        }
    }
}

/// Input files that are not in the CAS. Only on the way to a failure: they are fetched to find out,
/// for the client will upload the rest and come back.
pub(super) async fn missing_files(cas: &Cas, tree: &Tree) -> Result<Vec<MissingBlob>, Ending> {
    match cas.fetch(&tree.blobs()).await {
        Ok(_) => Ok(Vec::new()),
        Err(CasError::Missing(digests)) => {
            let mut paths = tree.paths_of(&digests);
            let describe = |digest| MissingBlob {
                digest,
                what: match paths.remove(&digest) {
                    Some(path) => format!("input file {path}"),
                    None => "an input file".to_owned(),
                },
            };
            Ok(digests.into_iter().map(describe).collect())
        }
        Err(error) => Err(Ending::Infrastructure(error.to_string())),
    }
}

/// The class of a failure of the CAS; `what` names a missing blob.
pub(super) fn from_cas(error: CasError, what: impl Fn(Digest) -> String) -> Ending {
    match error {
        CasError::Missing(digests) => Ending::MissingInputs(
            digests
                .into_iter()
                .map(|digest| MissingBlob {
                    digest,
                    what: what(digest),
                })
                .collect(),
        ),
        CasError::TooLarge { .. } => Ending::BadRequest(error.to_string()),
        error => Ending::Infrastructure(error.to_string()),
    }
}

fn from_tree(error: TreeError) -> Ending {
    match error {
        TreeError::Invalid { .. } | TreeError::TooLarge { .. } => {
            Ending::BadRequest(error.to_string())
        }
        TreeError::Missing(missing) => Ending::MissingInputs(missing),
        TreeError::Cas(error) => from_cas(error, |_| "an input directory".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(seconds: i64, nanos: i32) -> re::Action {
        re::Action {
            timeout: Some(prost_types::Duration { seconds, nanos }),
            ..Default::default()
        }
    }

    #[test]
    fn timeouts() {
        let mut settings = super::super::runner::tests::settings();
        assert_eq!(timeout(&re::Action::default(), &settings), Ok(None));
        assert_eq!(timeout(&with(0, 0), &settings), Ok(None));
        assert_eq!(
            timeout(&with(7, 0), &settings),
            Ok(Some((Duration::from_secs(7), "its action")))
        );
        assert!(matches!(
            timeout(&with(-1, 0), &settings),
            Err(Ending::BadRequest(_))
        ));
        settings.max_timeout = Some(Duration::from_secs(60));
        assert_eq!(
            timeout(&re::Action::default(), &settings),
            Ok(Some((Duration::from_secs(60), "--max-timeout")))
        );
        settings.default_timeout = Some(Duration::from_secs(30));
        assert_eq!(
            timeout(&re::Action::default(), &settings),
            Ok(Some((Duration::from_secs(30), "--default-timeout")))
        );
        let Err(Ending::BadRequest(text)) = timeout(&with(61, 0), &settings) else {
            panic!("a timeout beyond the maximum was granted")
        };
        assert!(text.contains("61") && text.contains("60"), "{text}");
    }
}
