//! The first phase: from a lease to everything that is known of an action before it is staged.
//! Action, Command and all Directory messages are read and checked here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::command::{self, CheckedCommand};
use super::failures::{from_cas, from_tree};
use super::platform::{self, Demand, read_only};
use super::{Ending, bounds, missing, settings::Settings};
use crate::cas::{Cas, CasError};
use crate::reapi::proto::re;
use crate::reapi::status::MissingBlob;
use crate::reapi::{Digest, time};
use crate::sandbox::Level;
use crate::scheduler::Lease;
use crate::tree::{self, MergeError, Tree, TreeStore};

/// A message of more bytes is not decoded between other work.
const LARGE: usize = 1 << 20;

/// A resolved action.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) digest: Digest,
    pub(super) do_not_cache: bool,
    /// How long the command may run, and who says so.
    pub(super) timeout: Option<(Duration, &'static str)>,
    pub(super) command: CheckedCommand,
    pub(super) tree: Arc<Tree>,
    /// What it gets.
    pub(super) demand: Demand,
}

/// Resolves a lease for a worker that has the sandbox levels `there`.
pub(super) async fn resolve(
    lease: &Lease,
    cas: &Cas,
    trees: &TreeStore,
    settings: &Settings,
    there: &[Level],
) -> Result<Resolved, Ending> {
    let (digest, action) = read_action(lease, cas).await?;
    let named = |what: &str, digest: Option<&re::Digest>| {
        Digest::from_proto(lease.function, digest)
            .map_err(|e| Ending::BadRequest(format!("the Action's {what}: {e}")))
    };
    let command_digest = named("command_digest", action.command_digest.as_ref())?;
    let root = named("input_root_digest", action.input_root_digest.as_ref())?;
    within_max(&action, settings.max_timeout, "(--max-timeout)")?;

    let (command, tree) = tokio::join!(
        cas.read(command_digest, bounds::MAX_COMMAND, "Command"),
        tree::fetch_known(cas, trees, root, settings.tree_limits)
    );
    let (input, mut missing) = tree.map_err(from_tree)?;
    let command = match command {
        Ok(bytes) => Some(decode_command(command_digest, bytes).await?),
        Err(CasError::Missing(_)) => {
            missing.push(MissingBlob {
                digest: command_digest,
                what: "the Command".to_owned(),
            });
            None
        }
        Err(error) => return Err(from_cas(error, |_| "the Command".to_owned())),
    };
    let properties = platform::properties(&action, command.as_ref());
    let demand = platform::demand(properties, settings, lease.function, there);
    let base = async |chroot| Base::fetch(cas, trees, settings, chroot).await;
    let Some(command) = command.as_ref().filter(|_| missing.is_empty()) else {
        // What is asked for in vain is told once all messages are there.
        let base = match demand.ok().and_then(|demand| demand.chroot) {
            Some(chroot) => Some(base(chroot).await?),
            None => None,
        };
        let missing = all_missing(cas, &input, base, missing).await?;
        return Err(Ending::MissingInputs(missing));
    };
    let mut demand = demand?;
    let command = command::check(command).map_err(Ending::BadRequest)?;
    let tree = match demand.chroot {
        Some(chroot) => {
            let base = base(chroot).await?;
            merged(lease, cas, settings, input, base).await?
        }
        None => input,
    };
    if !platform::ignores_read_only(settings) {
        protect(&mut demand, &tree)?;
    }
    Ok(Resolved {
        digest,
        do_not_cache: action.do_not_cache,
        timeout: timeout(&action, settings, &demand)?,
        command,
        tree,
        demand,
    })
}

/// The tree that `chrootRootDigest` names, as far as it is there.
struct Base {
    digest: Digest,
    tree: Arc<Tree>,
    /// Its directories that nobody has.
    missing: Vec<MissingBlob>,
}

impl Base {
    async fn fetch(
        cas: &Cas,
        trees: &TreeStore,
        settings: &Settings,
        digest: Digest,
    ) -> Result<Base, Ending> {
        let known = tree::fetch_known(cas, trees, digest, settings.tree_limits).await;
        let (tree, missing) = known.map_err(from_tree)?;
        Ok(Base {
            digest,
            tree,
            missing,
        })
    }
}

/// All that nobody has of an action, beside these messages. The client is told of it at once, so that it need not come back once
/// for the Command, once for the directories, once for the files, and then for those of the chroot.
async fn all_missing(
    cas: &Cas,
    input: &Tree,
    base: Option<Base>,
    mut missing: Vec<MissingBlob>,
) -> Result<Vec<MissingBlob>, Ending> {
    missing.extend(missing::files(cas, input).await?);
    if let Some(base) = base {
        let files = missing::files(cas, &base.tree).await?;
        let all = base.missing.into_iter().chain(files);
        missing.extend(all.map(|blob| MissingBlob {
            what: format!("{} of chrootRootDigest {}", blob.what, base.digest),
            ..blob
        }));
    }
    let mut named = HashSet::new();
    missing.retain(|blob| named.insert(blob.digest));
    Ok(missing)
}

/// The input root, merged into its base.
async fn merged(
    lease: &Lease,
    cas: &Cas,
    settings: &Settings,
    input: Arc<Tree>,
    base: Base,
) -> Result<Arc<Tree>, Ending> {
    if !base.missing.is_empty() {
        let missing = all_missing(cas, &input, Some(base), Vec::new()).await?;
        return Err(Ending::MissingInputs(missing));
    }
    match tree::merge(&input, &base.tree, lease.function, settings.tree_limits) {
        Ok(merged) => Ok(Arc::new(merged)),
        Err(MergeError::Tree(error)) => Err(from_tree(error)),
        Err(error) => Err(Ending::BadRequest(error.to_string())),
    }
}

/// Keeps read-only what the tree says is to stay so.
fn protect(demand: &mut Demand, tree: &Tree) -> Result<(), Ending> {
    let found = read_only::of(tree).map_err(Ending::BadRequest)?;
    if found.read_only.is_empty() {
        return Ok(());
    }
    demand.without_plain_levels().map_err(Ending::Unsupported)?;
    demand.view.read_only = found.read_only;
    demand.view.writable = found.writable;
    Ok(())
}

/// What calls to a remote that are made for this action say of it: what the client said of itself, and which action it is.
pub(super) fn request_metadata(lease: &Lease) -> re::RequestMetadata {
    re::RequestMetadata {
        action_id: lease.digest().map(Digest::hash_hex).unwrap_or_default(),
        ..lease.origin.clone().unwrap_or_default()
    }
}

async fn read_action(lease: &Lease, cas: &Cas) -> Result<(Digest, re::Action), Ending> {
    let bytes = match (&lease.action, lease.action_digest) {
        (Some(bytes), _) => bytes.clone(),
        (None, Some(digest)) => cas
            .read(digest, bounds::MAX_ACTION, "Action")
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
    let refused = |why: String| {
        Ending::BadRequest(format!(
            "action {digest} is not an Action that is taken: it {why}"
        ))
    };
    bounds::action(&bytes).map_err(refused)?;
    let action = re::Action::decode(bytes)
        .map_err(|e| Ending::BadRequest(format!("action {digest} is not an Action: {e}")))?;
    Ok((digest, action))
}

/// A large one takes a while, and has a thread of its own for it.
async fn decode_command(digest: Digest, bytes: Bytes) -> Result<re::Command, Ending> {
    let large = bytes.len() > LARGE;
    let decode = move || {
        bounds::command(&bytes).map_err(|why| {
            Ending::BadRequest(format!(
                "blob {digest} is not a Command that is taken: it {why}"
            ))
        })?;
        re::Command::decode(bytes)
            .map_err(|e| Ending::BadRequest(format!("blob {digest} is not a Command: {e}")))
    };
    if !large {
        return decode();
    }
    match tokio::task::spawn_blocking(decode).await {
        Ok(decoded) => decoded,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Ending::Cancelled),
        },
    }
}

/// The timeout that the Action names. One of zero is what clients send that mean none.
fn asked_timeout(action: &re::Action) -> Result<Option<Duration>, Ending> {
    let Some(timeout) = &action.timeout else {
        return Ok(None);
    };
    let length = time::from_duration(timeout).ok_or_else(|| {
        Ending::BadRequest(format!(
            "the Action's timeout of {} s and {} ns is not a length of time",
            timeout.seconds, timeout.nanos
        ))
    })?;
    Ok((!length.is_zero()).then_some(length))
}

/// REAPI: "if the client does specify a timeout that is longer than the server's maximum timeout, the server MUST
/// reject the request."
fn within_max(action: &re::Action, max: Option<Duration>, set_by: &str) -> Result<(), Ending> {
    match (asked_timeout(action)?, max) {
        (Some(asked), Some(max)) if asked > max => Err(Ending::BadRequest(format!(
            "the Action's timeout of {} s is longer than the {} s that this worker allows {set_by}",
            asked.as_secs(),
            max.as_secs()
        ))),
        _ => Ok(()),
    }
}

/// REAPI: "The server SHOULD impose a timeout if the client does not specify one". The shortest that anybody wants counts.
fn timeout(
    action: &re::Action,
    settings: &Settings,
    demand: &Demand,
) -> Result<Option<(Duration, &'static str)>, Ending> {
    within_max(action, settings.max_timeout, "(--max-timeout)")?;
    within_max(action, demand.timeout_cap, "actions of this platform")?;
    let bounds = match asked_timeout(action)? {
        Some(asked) => [Some((asked, "its action")), None, None],
        None => [
            settings
                .default_timeout
                .map(|length| (length, "--default-timeout")),
            settings.max_timeout.map(|length| (length, "--max-timeout")),
            demand
                .timeout_cap
                .map(|length| (length, "its platform's strategy")),
        ],
    };
    let property = demand
        .timeout_asked
        .map(|length| (length, "its platform property `timeout`"));
    Ok(bounds.into_iter().chain([property]).flatten().min())
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
        let demand = |settings: &Settings| {
            let there = settings.strategies.base.levels.clone();
            platform::demand(&[], settings, crate::reapi::DigestFunction::Sha256, &there).unwrap()
        };
        let of =
            |action: &re::Action, settings: &Settings| timeout(action, settings, &demand(settings));
        let seconds = Duration::from_secs;
        assert_eq!(of(&re::Action::default(), &settings), Ok(None));
        assert_eq!(of(&with(0, 0), &settings), Ok(None));
        assert_eq!(
            of(&with(7, 0), &settings),
            Ok(Some((seconds(7), "its action")))
        );
        assert!(matches!(
            of(&with(-1, 0), &settings),
            Err(Ending::BadRequest(_))
        ));
        settings.max_timeout = Some(seconds(60));
        assert_eq!(
            of(&re::Action::default(), &settings),
            Ok(Some((seconds(60), "--max-timeout")))
        );
        settings.default_timeout = Some(seconds(30));
        assert_eq!(
            of(&re::Action::default(), &settings),
            Ok(Some((seconds(30), "--default-timeout")))
        );
        let Err(Ending::BadRequest(text)) = of(&with(61, 0), &settings) else {
            panic!("a timeout beyond the maximum was granted")
        };
        assert!(text.contains("61") && text.contains("60"), "{text}");
        settings.strategies.base.timeout = Some(seconds(20));
        assert_eq!(
            of(&re::Action::default(), &settings),
            Ok(Some((seconds(20), "its platform's strategy")))
        );
        assert!(matches!(
            of(&with(21, 0), &settings),
            Err(Ending::BadRequest(_))
        ));
        let mut demand = demand(&settings);
        demand.timeout_asked = Some(seconds(5));
        let property = Ok(Some((seconds(5), "its platform property `timeout`")));
        assert_eq!(timeout(&with(7, 0), &settings, &demand), property);
        assert_eq!(timeout(&with(0, 0), &settings, &demand), property);
        assert_eq!(
            timeout(&with(4, 0), &settings, &demand),
            Ok(Some((seconds(4), "its action")))
        );
    }
}
