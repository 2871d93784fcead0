//! What the remote can do: asked once, believed for ten minutes or until the connection breaks.
//!
//! A server may be restarted as another version while its workers stay, so a broken connection
//! makes the answer doubtful. It is asked for again then, but a doubtful answer is better than none: it stays in use
//! while the server cannot be asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::{Code, Status};

use super::{Load, RemoteCas};
use crate::cas::CasError;
use crate::cas::pack::{BLOB_OVERHEAD, GROUP_BYTES};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// How long an answer is believed.
const BELIEVED: Duration = Duration::from_secs(600);
/// How long an old answer is used again after the server could not be asked.
const EXTENDED: Duration = Duration::from_secs(10);

/// What counts for this client out of the remote's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of one batch, message framing included.
    pub(super) batch: u64,
    /// Whether reads may be answered in zstd, and streams written in it.
    pub(super) zstd: bool,
    /// Whether blobs in BatchUpdateBlobs may be packed with zstd.
    pub(super) zstd_updates: bool,
    /// Which digest functions it stores by; all, if it does not say.
    functions: [bool; DigestFunction::ALL.len()],
    /// The largest blob that it takes; 0 means that it did not say.
    max_blob: u64,
}

impl Default for Limits {
    /// For a server that does not say.
    fn default() -> Self {
        Limits {
            batch: GROUP_BYTES,
            zstd: false,
            zstd_updates: false,
            functions: [true; DigestFunction::ALL.len()],
            max_blob: 0,
        }
    }
}

impl Limits {
    fn from_proto(capabilities: &re::ServerCapabilities) -> Self {
        let Some(cache) = &capabilities.cache_capabilities else {
            return Limits::default();
        };
        let zstd = re::compressor::Value::Zstd as i32;
        Limits {
            // "max_batch_total_size_bytes: Maximum total size of blobs to be uploaded/downloaded using
            // batch methods. A value of 0 means no limit is set". Negative ones mean nothing either.
            batch: match u64::try_from(cache.max_batch_total_size_bytes) {
                Ok(0) | Err(_) => GROUP_BYTES,
                Ok(announced) => announced.min(GROUP_BYTES),
            },
            zstd: cache.supported_compressors.contains(&zstd),
            zstd_updates: cache.supported_batch_update_compressors.contains(&zstd),
            functions: DigestFunction::ALL.map(|function| {
                cache.digest_functions.is_empty()
                    || cache
                        .digest_functions
                        .contains(&(function.to_proto() as i32))
            }),
            max_blob: u64::try_from(cache.max_cas_blob_size_bytes).unwrap_or(0),
        }
    }

    /// The largest blob that fits into a batch, alone.
    pub(super) fn largest_in_batch(&self) -> u64 {
        self.batch.saturating_sub(BLOB_OVERHEAD)
    }

    /// Refuses what the remote said it cannot store, before a byte of it travels.
    pub(super) fn check_write(&self, digest: Digest) -> Result<(), Status> {
        self.check_function(digest.function())?;
        if self.max_blob > 0 && digest.size() > self.max_blob {
            return Err(Status::failed_precondition(format!(
                "blob {digest} is larger than the {} bytes that this server takes",
                self.max_blob
            )));
        }
        Ok(())
    }

    /// Refuses digests of a function that the remote does not know.
    pub(super) fn check_function(&self, function: DigestFunction) -> Result<(), Status> {
        let at = DigestFunction::ALL.iter().position(|f| *f == function);
        if at.is_some_and(|at| self.functions[at]) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this server does not store blobs by their {} digests; choose a digest function that it announces",
            function.name()
        )))
    }
}

/// The last answer.
#[derive(Default)]
pub(super) struct Capabilities {
    known: Mutex<Option<(Limits, Instant)>>,
    doubtful: AtomicBool,
    asking: tokio::sync::Mutex<()>,
}

impl Capabilities {
    /// The connection broke: another server may be there now.
    pub(super) fn doubt(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    /// The last answer, however old.
    pub(super) fn last(&self) -> Option<Limits> {
        self.known.lock().map(|(limits, _)| limits)
    }

    fn fresh(&self) -> Option<Limits> {
        let (limits, until) = (*self.known.lock())?;
        (Instant::now() < until && !self.doubtful.load(Ordering::Relaxed)).then_some(limits)
    }

    fn keep(&self, limits: Limits, believed: Duration) -> Limits {
        *self.known.lock() = Some((limits, Instant::now() + believed));
        limits
    }
}

impl RemoteCas {
    /// The remote's limits, asked for if need be. Only the first time must the server answer.
    pub(super) async fn limits(&self) -> Result<Limits, CasError> {
        let state = &self.inner.capabilities;
        if let Some(limits) = state.fresh() {
            return Ok(limits);
        }
        let _only_one_asks = state.asking.lock().await;
        if let Some(limits) = state.fresh() {
            return Ok(limits);
        }
        state.doubtful.store(false, Ordering::Relaxed);
        let old = state.last();
        let tries = if old.is_some() { Some(0) } else { None };
        match self.get_capabilities(tries).await {
            Ok(limits) => Ok(state.keep(limits, BELIEVED)),
            Err(error) => match old {
                Some(limits) => {
                    state.doubtful.store(false, Ordering::Relaxed);
                    Ok(state.keep(limits, EXTENDED))
                }
                None => Err(error),
            },
        }
    }

    async fn get_capabilities(&self, tries: Option<u32>) -> Result<Limits, CasError> {
        let message = re::GetCapabilitiesRequest {
            instance_name: self.inner.config.instance.clone(),
        };
        let answer = self
            .unary_with("GetCapabilities", Load::Light, tries, |line| {
                let request = self.request(message.clone());
                async move {
                    super::capabilities_client(line)
                        .get_capabilities(request)
                        .await
                }
            })
            .await;
        match answer {
            Ok(capabilities) => Ok(Limits::from_proto(&capabilities)),
            // A bare CAS without the service: what every server can do.
            Err(CasError::Remote { status, .. }) if status.code() == Code::Unimplemented => {
                Ok(Limits::default())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(cache: re::CacheCapabilities) -> Limits {
        Limits::from_proto(&re::ServerCapabilities {
            cache_capabilities: Some(cache),
            ..Default::default()
        })
    }

    #[test]
    fn batches_stay_below_what_is_announced() {
        let batch = |max_batch_total_size_bytes| {
            announced(re::CacheCapabilities {
                max_batch_total_size_bytes,
                ..Default::default()
            })
            .batch
        };
        assert_eq!(batch(0), GROUP_BYTES);
        assert_eq!(batch(-1), GROUP_BYTES);
        assert_eq!(batch(i64::MAX), GROUP_BYTES);
        assert_eq!(batch(1000), 1000);
        assert_eq!(
            Limits {
                batch: 10,
                ..Limits::default()
            }
            .largest_in_batch(),
            0
        );
    }

    #[test]
    fn unannounced_functions_and_sizes_are_refused() {
        let limits = announced(re::CacheCapabilities {
            digest_functions: vec![re::digest_function::Value::Sha256 as i32],
            max_cas_blob_size_bytes: 3,
            ..Default::default()
        });
        assert!(
            limits
                .check_write(DigestFunction::Sha256.digest(b"abc"))
                .is_ok()
        );
        assert!(
            limits
                .check_write(DigestFunction::Sha256.digest(b"abcd"))
                .is_err()
        );
        assert!(limits.check_function(DigestFunction::Blake3).is_err());
        assert!(
            Limits::default()
                .check_function(DigestFunction::Blake3)
                .is_ok()
        );
    }
}
