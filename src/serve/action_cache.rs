//! The ActionCache service over the results on disk.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::request::{blocking, digest, failed, function, instance};
use crate::cas::LocalStore;
use crate::reapi::proto::re;
use crate::reapi::proto::re::action_cache_server::ActionCache as Service;
use crate::reapi::{Digest, DigestFunction};
use crate::scheduler::embedded::{ActionCache, Inline, MAX_RESULT};

/// The ActionCache service.
pub(super) struct ActionCacheService {
    pub(super) store: Arc<LocalStore>,
    pub(super) cache: Arc<ActionCache>,
    pub(super) updates: bool,
}

#[tonic::async_trait]
impl Service for ActionCacheService {
    async fn get_action_result(
        &self,
        request: Request<re::GetActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let action = digest("action_digest", function, request.action_digest.as_ref())?;
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files,
        };
        let (cache, store) = (self.cache.clone(), self.store.clone());
        let result = blocking(move || {
            let mut result = cache.get(action).map_err(failed)?.ok_or_else(|| {
                Status::not_found(format!("no result of action {action} is cached"))
            })?;
            if inline.wants(&result) {
                inline.fill(&store, function, &mut result).map_err(failed)?;
            }
            Ok(result)
        })
        .await?;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<re::UpdateActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        if !self.updates {
            return Err(Status::permission_denied(
                "this server does not let clients write to its action cache",
            ));
        }
        let request = request.into_inner();
        instance(&request.instance_name)?;
        let function = function(request.digest_function)?;
        let action = digest("action_digest", function, request.action_digest.as_ref())?;
        let result = request
            .action_result
            .ok_or_else(|| Status::invalid_argument("action_result: no result given"))?;
        validate(function, &result)
            .map_err(|why| Status::invalid_argument(format!("action_result.{why}")))?;
        let cache = self.cache.clone();
        let result = blocking(move || {
            cache.put(action, &result).map_err(failed)?;
            Ok(result)
        })
        .await?;
        Ok(Response::new(result))
    }
}

/// Checks a result that a client wants cached; the error names the offending field.
fn validate(function: DigestFunction, result: &re::ActionResult) -> Result<(), String> {
    if result.exit_code != 0 {
        return Err(format!(
            "exit_code: only results of successful actions are cached, this one is {}",
            result.exit_code
        ));
    }
    if result.encoded_len() > MAX_RESULT {
        return Err(format!(
            "output_files: the result has more than {MAX_RESULT} bytes"
        ));
    }
    let check = |field: String, digest: Option<&re::Digest>| {
        Digest::from_proto(function, digest)
            .map(drop)
            .map_err(|error| format!("{field}: {error}"))
    };
    for (i, file) in result.output_files.iter().enumerate() {
        path(&file.path, false).map_err(|why| format!("output_files[{i}].path: {why}"))?;
        check(format!("output_files[{i}].digest"), file.digest.as_ref())?;
    }
    for (i, directory) in result.output_directories.iter().enumerate() {
        let field = format!("output_directories[{i}]");
        path(&directory.path, true).map_err(|why| format!("{field}.path: {why}"))?;
        let (tree, root) = (&directory.tree_digest, &directory.root_directory_digest);
        if tree.is_some() || root.is_none() {
            check(format!("{field}.tree_digest"), tree.as_ref())?;
        }
        if root.is_some() {
            check(format!("{field}.root_directory_digest"), root.as_ref())?;
        }
    }
    // Clients before REAPI 2.1 still send the two deprecated lists.
    #[allow(deprecated)]
    let links = [
        ("output_symlinks", &result.output_symlinks),
        ("output_file_symlinks", &result.output_file_symlinks),
        (
            "output_directory_symlinks",
            &result.output_directory_symlinks,
        ),
    ];
    for (field, links) in links {
        for (i, link) in links.iter().enumerate() {
            path(&link.path, false).map_err(|why| format!("{field}[{i}].path: {why}"))?;
            if link.target.is_empty() || link.target.contains('\0') {
                return Err(format!("{field}[{i}].target: it is empty or has a NUL"));
            }
        }
    }
    for (field, log) in [
        ("stdout_digest", &result.stdout_digest),
        ("stderr_digest", &result.stderr_digest),
    ] {
        if log.is_some() {
            check(field.to_owned(), log.as_ref())?;
        }
    }
    Ok(())
}

/// Output paths are relative to the working directory; `..` may occur in them.
fn path(path: &str, may_be_empty: bool) -> Result<(), &'static str> {
    match path {
        "" if !may_be_empty => Err("the path is empty"),
        _ if path.starts_with('/') => Err("the path is absolute"),
        _ if path.contains('\0') => Err("the path has a NUL"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_results_are_refused_by_field() {
        let good = DigestFunction::Sha256.digest(b"x").to_proto();
        let file = |path: &str, digest: Option<re::Digest>| re::ActionResult {
            output_files: vec![re::OutputFile {
                path: path.into(),
                digest,
                ..Default::default()
            }],
            ..Default::default()
        };
        let check = |result| validate(DigestFunction::Sha256, &result);
        assert_eq!(check(file("a/b", Some(good.clone()))), Ok(()));
        for (result, field) in [
            (file("/etc/x", Some(good.clone())), "output_files[0].path"),
            (file("", Some(good.clone())), "output_files[0].path"),
            (file("a", None), "output_files[0].digest"),
            (
                re::ActionResult {
                    exit_code: 1,
                    ..Default::default()
                },
                "exit_code",
            ),
            (
                re::ActionResult {
                    output_directories: vec![re::OutputDirectory::default()],
                    ..Default::default()
                },
                "output_directories[0].tree_digest",
            ),
            (
                re::ActionResult {
                    stdout_digest: Some(re::Digest::default()),
                    ..Default::default()
                },
                "stdout_digest",
            ),
        ] {
            let error = check(result).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
