//! On whose behalf calls are made. REAPI lets a RequestMetadata go with every call, so that a server's logs and dashboards can
//! tell which action, and which build, a call belongs to: "An identifier that ties multiple requests to the same action. For
//! example, multiple requests to the CAS, Action Cache, and Execution API are used in order to compile foo.cc."
//!
//! It belongs to the task that works for the action, as the task's deadline would, and not to the client, which all actions share. What is
//! downloaded for several actions at once names the one that asked first.

use tonic::metadata::{Binary, MetadataValue};

use super::encode;
use crate::reapi::proto::re;

tokio::task_local! {
    static METADATA: MetadataValue<Binary>;
}

/// Does `work`; the calls to remotes in it carry this metadata, in which the tool's name and version are filled in.
pub async fn on_behalf_of<T>(metadata: re::RequestMetadata, work: impl Future<Output = T>) -> T {
    METADATA.scope(encode(metadata), work).await
}

/// Whom this task works for, to be told to another one.
#[derive(Clone)]
pub(crate) struct Behalf(Option<MetadataValue<Binary>>);

impl Behalf {
    /// Whom the task works for that calls this; nobody outside of [`on_behalf_of`].
    pub(crate) fn current() -> Self {
        Behalf(METADATA.try_with(Clone::clone).ok())
    }

    /// Does `work` for the same one.
    pub(crate) async fn pass_on<T>(self, work: impl Future<Output = T>) -> T {
        match self.0 {
            Some(metadata) => METADATA.scope(metadata, work).await,
            None => work.await,
        }
    }

    pub(super) fn metadata(self) -> Option<MetadataValue<Binary>> {
        self.0
    }
}
