//! The Action and Command of `boxwright run`. The same wish makes the same bytes, and so the same digest.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::super::exit::{Exit, Failure};
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction, time};

/// Where programs are looked for when nobody says.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What was asked for on the command line.
pub(super) struct Wish<'a> {
    pub(super) arguments: &'a [String],
    pub(super) environment: &'a [(String, String)],
    pub(super) platform: &'a [(String, String)],
    pub(super) outputs: &'a [String],
    pub(super) working_directory: &'a str,
    pub(super) timeout: Option<Duration>,
    pub(super) do_not_cache: bool,
}

/// The Action's digest, and the messages to upload.
pub(super) fn build(
    function: DigestFunction,
    root: Digest,
    wish: &Wish<'_>,
) -> (Digest, Vec<(Digest, Bytes)>) {
    let platform = (!wish.platform.is_empty()).then(|| {
        let mut pairs = wish.platform.to_vec();
        // REAPI, Platform: properties "MUST be sorted by property name, and then by property value."
        pairs.sort();
        let property = |(name, value)| re::platform::Property { name, value };
        re::Platform {
            properties: pairs.into_iter().map(property).collect(),
        }
    });
    #[allow(deprecated)]
    let command = re::Command {
        arguments: wish.arguments.to_vec(),
        environment_variables: environment(wish.environment),
        output_paths: wish.outputs.iter().map(|path| declared(path)).collect(),
        platform: platform.clone(),
        working_directory: wish.working_directory.to_owned(),
        ..Default::default()
    };
    let command: Bytes = command.encode_to_vec().into();
    let command_digest = function.digest(&command);
    let action = re::Action {
        command_digest: Some(command_digest.to_proto()),
        input_root_digest: Some(root.to_proto()),
        timeout: wish.timeout.map(time::duration),
        do_not_cache: wish.do_not_cache,
        platform,
        ..Default::default()
    };
    let action: Bytes = action.encode_to_vec().into();
    let action_digest = function.digest(&action);
    let mut messages = vec![(command_digest, command), (action_digest, action)];
    if root.is_empty() {
        messages.push((root, Bytes::new()));
    }
    (action_digest, messages)
}

/// The working directory itself is the empty path.
pub(super) fn declared(path: &str) -> String {
    match path {
        "." => String::new(),
        path => path.to_owned(),
    }
}

/// Sorted by name, the last of a name counts.
fn environment(given: &[(String, String)]) -> Vec<re::command::EnvironmentVariable> {
    let mut all = std::collections::BTreeMap::from([("PATH", PATH)]);
    for (name, value) in given {
        all.insert(name, value);
    }
    let variable = |(name, value): (&str, &str)| re::command::EnvironmentVariable {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    all.into_iter().map(variable).collect()
}

/// A path below the input root, as Command has it.
pub(super) fn check_path(flag: &str, path: &str) -> Result<(), Failure> {
    let why = if path.starts_with('/') {
        "it is absolute; paths are relative to the working directory"
    } else if path.split('/').any(|segment| segment == "..") {
        "it leads out with `..`"
    } else if path
        .split('/')
        .any(|segment| segment.is_empty() || segment == ".")
    {
        "it has an empty segment or `.`; write it without"
    } else if path.contains('\0') || path.len() > 4095 {
        "it is no path"
    } else {
        return Ok(());
    };
    Err(Failure::new(Exit::Usage, format!("{flag} {path:?}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish<'a>(arguments: &'a [String], environment: &'a [(String, String)]) -> Wish<'a> {
        Wish {
            arguments,
            environment,
            platform: &[],
            outputs: &[],
            working_directory: "",
            timeout: None,
            do_not_cache: false,
        }
    }

    #[test]
    fn the_order_of_flags_does_not_matter() {
        let arguments = ["true".to_owned()];
        let pair = |name: &str| (name.to_owned(), "1".to_owned());
        let root = Digest::empty(DigestFunction::Sha256);
        let digest = |environment: &[(String, String)]| {
            build(DigestFunction::Sha256, root, &wish(&arguments, environment)).0
        };
        assert_eq!(
            digest(&[pair("A"), pair("B")]),
            digest(&[pair("B"), pair("A")])
        );
        assert_ne!(digest(&[pair("A")]), digest(&[]));
    }

    #[test]
    fn there_is_always_a_path() {
        let path = |given: &[(String, String)]| {
            let all = environment(given);
            all.into_iter()
                .find(|variable| variable.name == "PATH")
                .unwrap()
                .value
        };
        assert_eq!(path(&[]), PATH);
        assert_eq!(path(&[("PATH".into(), "/x".into())]), "/x");
    }

    #[test]
    fn paths_are_checked_before_anything_is_sent() {
        for path in ["/abs", "../x", "a/../b", "a//b", "./a", "a/", ""] {
            assert_eq!(
                check_path("--output", path).unwrap_err().exit,
                Exit::Usage,
                "{path:?}"
            );
        }
        assert!(check_path("--output", "a/b.c").is_ok());
    }
}
