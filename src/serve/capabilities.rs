//! What this server can do.

use tonic::{Request, Response, Status};

use super::MAX_BATCH;
use super::request::instance;
use crate::reapi::DigestFunction;
use crate::reapi::proto::re::capabilities_server::Capabilities;
use crate::reapi::proto::{re, semver};

/// The Capabilities service.
pub(super) struct CapabilitiesService {
    pub(super) cache_updates: bool,
    pub(super) executes: bool,
}

fn version(major: i32, minor: i32) -> Option<semver::SemVer> {
    Some(semver::SemVer {
        major,
        minor,
        ..Default::default()
    })
}

#[tonic::async_trait]
impl Capabilities for CapabilitiesService {
    async fn get_capabilities(
        &self,
        request: Request<re::GetCapabilitiesRequest>,
    ) -> Result<Response<re::ServerCapabilities>, Status> {
        instance(&request.get_ref().instance_name)?;
        let functions: Vec<i32> = DigestFunction::ALL
            .iter()
            .map(|function| function.to_proto() as i32)
            .collect();
        let zstd = vec![re::compressor::Value::Zstd as i32];
        Ok(Response::new(re::ServerCapabilities {
            cache_capabilities: Some(re::CacheCapabilities {
                digest_functions: functions.clone(),
                action_cache_update_capabilities: Some(re::ActionCacheUpdateCapabilities {
                    update_enabled: self.cache_updates,
                }),
                max_batch_total_size_bytes: MAX_BATCH as i64,
                symlink_absolute_path_strategy: re::symlink_absolute_path_strategy::Value::Allowed
                    as i32,
                supported_compressors: zstd.clone(),
                supported_batch_update_compressors: zstd,
                ..Default::default()
            }),
            execution_capabilities: self.executes.then(|| re::ExecutionCapabilities {
                digest_function: DigestFunction::Sha256.to_proto() as i32,
                exec_enabled: true,
                execution_priority_capabilities: Some(re::PriorityCapabilities {
                    priorities: vec![re::priority_capabilities::PriorityRange {
                        min_priority: i32::MIN,
                        max_priority: i32::MAX,
                    }],
                }),
                supported_node_properties: vec!["mtime".to_owned(), "unix_mode".to_owned()],
                digest_functions: functions,
            }),
            deprecated_api_version: None,
            // Bazel 2 to 4 speak 2.0 and refuse a server that begins later.
            low_api_version: version(2, 0),
            high_api_version: version(2, 12),
        }))
    }
}
