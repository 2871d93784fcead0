//! The outputs of a result, as a plan of what to write. Only what was asked for is taken: a server cannot place
//! other files next to it.

use super::super::blobs;
use super::super::exit::{Exit, Failure};
use super::super::materialise::{self, Plan};
use super::action::declared;
use crate::cas::BlobSource;
use crate::reapi::digest::DigestError;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};
use crate::tree::TreeLimits;

/// What to write.
pub(super) async fn plan(
    cas: &dyn BlobSource,
    function: DigestFunction,
    result: &re::ActionResult,
    asked: &[String],
) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    for file in &result.output_files {
        check(&file.path, asked)?;
        let digest = Digest::from_proto(function, file.digest.as_ref())
            .map_err(|e| malformed(&file.path, &e))?;
        plan.file(&file.path, digest, file.is_executable)?;
    }
    for link in links(result) {
        check(&link.path, asked)?;
        plan.link(&link.path, &link.target)?;
    }
    for directory in &result.output_directories {
        check(&directory.path, asked)?;
        let (root, all) = tree(cas, function, directory).await?;
        let path = match directory.path.as_str() {
            "." => "",
            path => path,
        };
        plan.tree(path, root, &all)?;
    }
    Ok(plan)
}

/// Those of the asked-for outputs that the command did not make.
pub(super) fn lacking(result: &re::ActionResult, asked: &[String]) -> Vec<String> {
    let made: std::collections::HashSet<String> =
        (result.output_files.iter().map(|file| &file.path))
            .chain(links(result).map(|link| &link.path))
            .chain(
                result
                    .output_directories
                    .iter()
                    .map(|directory| &directory.path),
            )
            .map(|path| declared(path))
            .collect();
    asked
        .iter()
        .filter(|path| !made.contains(&declared(path)))
        .cloned()
        .collect()
}

/// `output_symlinks`, and the fields that it replaced.
#[allow(deprecated)]
fn links(result: &re::ActionResult) -> impl Iterator<Item = &re::OutputSymlink> {
    let links = &result.output_symlinks;
    links
        .iter()
        .chain(&result.output_file_symlinks)
        .chain(&result.output_directory_symlinks)
}

async fn tree(
    cas: &dyn BlobSource,
    function: DigestFunction,
    directory: &re::OutputDirectory,
) -> Result<(Digest, materialise::Directories), Failure> {
    let broken = |e: DigestError| malformed(&directory.path, &e);
    if directory.tree_digest.is_some() {
        let digest =
            Digest::from_proto(function, directory.tree_digest.as_ref()).map_err(broken)?;
        let message = blobs::read(cas, digest, 4 * TreeLimits::default().message, "a Tree").await?;
        return materialise::of_tree(digest, &message);
    }
    let root = directory.root_directory_digest.as_ref();
    let root = Digest::from_proto(function, root).map_err(broken)?;
    Ok((root, materialise::fetch(cas, root).await?))
}

fn check(path: &str, asked: &[String]) -> Result<(), Failure> {
    match asked.iter().any(|asked| declared(asked) == declared(path)) {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::Data,
            format!(
                "the server returned {:?}, which was not asked for; nothing was written",
                path.chars().take(200).collect::<String>()
            ),
        )),
    }
}

fn malformed(path: &str, error: &DigestError) -> Failure {
    Failure::new(
        Exit::Data,
        format!("the server returned output {path:?} without a usable digest: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_that_was_not_asked_for() {
        let asked = ["out/a".to_owned(), ".".to_owned()];
        for path in ["out/a", "", "."] {
            assert!(check(path, &asked).is_ok(), "{path:?}");
        }
        for path in [".bashrc", "out", "out/a/b", "../out/a", "/out/a"] {
            assert_eq!(
                check(path, &asked).unwrap_err().exit,
                Exit::Data,
                "{path:?}"
            );
        }
    }

    #[test]
    fn what_was_not_made_is_known() {
        let result = re::ActionResult {
            output_files: vec![re::OutputFile {
                path: "a".into(),
                ..Default::default()
            }],
            output_symlinks: vec![re::OutputSymlink {
                path: "l".into(),
                ..Default::default()
            }],
            output_directories: vec![re::OutputDirectory::default()],
            ..Default::default()
        };
        let asked = ["a", "b", "l", "."].map(str::to_owned);
        assert_eq!(lacking(&result, &asked), ["b"]);
    }
}
