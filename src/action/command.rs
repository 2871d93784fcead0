//! A Command message, checked and put in the terms of the sandbox and of the output collector.

use std::collections::HashSet;
use std::ffi::OsString;

use super::paths;
use crate::outputs::{OutputKind, OutputPath};
use crate::reapi::proto::re;

/// A checked Command.
#[derive(Debug)]
pub(super) struct CheckedCommand {
    /// The program and its arguments; not empty.
    pub(super) argv: Vec<OsString>,
    /// The whole environment.
    pub(super) env: Vec<(OsString, OsString)>,
    /// The working directory below the root, clean.
    pub(super) working_directory: String,
    /// What to collect.
    pub(super) outputs: Vec<OutputPath>,
    /// What must exist before the command starts: the working directory and the parents of outputs.
    pub(super) directories: Vec<String>,
    /// How output directories are described.
    pub(super) format: re::command::OutputDirectoryFormat,
    /// The node properties to report.
    pub(super) node_properties: Vec<String>,
}

impl CheckedCommand {
    /// What is expected to read the same inputs: this very command over other inputs, and else another use of its program.
    pub(super) fn shapes(&self) -> Vec<u64> {
        use std::os::unix::ffi::OsStrExt;
        let shape = |words: &[OsString]| {
            let mut hasher = blake3::Hasher::new();
            for word in words {
                hasher.update(&(word.len() as u64).to_le_bytes());
                hasher.update(word.as_bytes());
            }
            hasher.update(self.working_directory.as_bytes());
            let mut first = [0; 8];
            first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
            u64::from_le_bytes(first)
        };
        vec![shape(&self.argv), shape(&self.argv[..1])]
    }
}

/// Checks a Command; the error names the offending part.
pub(super) fn check(command: &re::Command) -> Result<CheckedCommand, String> {
    if command.arguments.first().is_none_or(String::is_empty) {
        return Err("the Command has no program in its arguments".into());
    }
    if let Some(at) = command.arguments.iter().position(|a| a.contains('\0')) {
        return Err(format!("argument {at} of the Command contains a NUL byte"));
    }
    let working_directory = paths::within_root("", &command.working_directory).map_err(|why| {
        format!(
            "working_directory {:?} {why}",
            shorten(&command.working_directory)
        )
    })?;
    let outputs = outputs(command, &working_directory)?;
    let mut directories: Vec<String> = outputs
        .iter()
        .filter_map(|output| paths::parent(&output.within_root))
        .chain([working_directory.as_str()])
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect();
    directories.sort_unstable();
    directories.dedup();
    let format = re::command::OutputDirectoryFormat::try_from(command.output_directory_format)
        .map_err(|_| {
            format!(
                "output_directory_format {} is not known",
                command.output_directory_format
            )
        })?;
    Ok(CheckedCommand {
        argv: command.arguments.iter().map(OsString::from).collect(),
        env: environment(command)?,
        working_directory,
        outputs,
        directories,
        format,
        node_properties: command.output_node_properties.clone(),
    })
}

fn environment(command: &re::Command) -> Result<Vec<(OsString, OsString)>, String> {
    let mut names = HashSet::new();
    for variable in &command.environment_variables {
        let name = shorten(&variable.name);
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
            return Err(format!(
                "{name:?} cannot be the name of an environment variable"
            ));
        }
        if variable.value.contains('\0') {
            return Err(format!(
                "the value of environment variable {name:?} contains a NUL byte"
            ));
        }
        if !names.insert(variable.name.as_str()) {
            return Err(format!("environment variable {name:?} is given twice"));
        }
    }
    Ok(command
        .environment_variables
        .iter()
        .map(|v| (OsString::from(&v.name), OsString::from(&v.value)))
        .collect())
}

/// REAPI: "If `output_paths` is used, `output_files` and `output_directories` will be ignored!"
fn outputs(command: &re::Command, working_directory: &str) -> Result<Vec<OutputPath>, String> {
    #[allow(deprecated)]
    let (files, directories) = (&command.output_files, &command.output_directories);
    let lists: &[(&str, &Vec<String>, OutputKind)] = if command.output_paths.is_empty() {
        &[
            ("output_files", files, OutputKind::File),
            ("output_directories", directories, OutputKind::Directory),
        ]
    } else {
        &[("output_paths", &command.output_paths, OutputKind::Any)]
    };
    let mut outputs = Vec::new();
    let mut seen = HashSet::new();
    for (list, paths, kind) in lists {
        for path in *paths {
            let within_root = paths::within_root(working_directory, path)
                .map_err(|why| format!("{list} entry {:?} {why}", shorten(path)))?;
            if *kind == OutputKind::File && within_root.is_empty() {
                return Err(format!(
                    "{list} entry {:?} is the input root, not a file",
                    shorten(path)
                ));
            }
            if seen.insert(path.as_str()) {
                outputs.push(OutputPath {
                    declared: path.clone(),
                    within_root,
                    kind: *kind,
                });
            }
        }
    }
    Ok(outputs)
}

fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> re::Command {
        re::Command {
            arguments: vec!["true".into()],
            ..Default::default()
        }
    }

    #[test]
    fn bazel_s_deprecated_lists_and_their_parents() {
        #[allow(deprecated)]
        let checked = check(&re::Command {
            output_files: vec!["bazel-out/k8/bin/out.txt".into()],
            output_directories: vec!["bazel-out/k8/tree".into()],
            ..command()
        })
        .unwrap();
        assert_eq!(checked.directories, ["bazel-out/k8", "bazel-out/k8/bin"]);
        assert_eq!(checked.outputs[0].kind, OutputKind::File);
        assert_eq!(checked.outputs[1].kind, OutputKind::Directory);
    }

    #[test]
    fn output_paths_win_over_the_deprecated_lists() {
        #[allow(deprecated)]
        let checked = check(&re::Command {
            output_files: vec!["old".into()],
            output_paths: vec!["new".into(), "new".into()],
            ..command()
        })
        .unwrap();
        assert_eq!(checked.outputs.len(), 1);
        assert_eq!(checked.outputs[0].declared, "new");
    }

    #[test]
    fn buildstream_s_paths_leave_the_working_directory_but_not_the_root() {
        let build = re::Command {
            working_directory: "buildstream/lab/hello.bst".into(),
            output_paths: vec![".".into(), "../../../buildstream-install".into()],
            ..command()
        };
        let checked = check(&build).unwrap();
        assert_eq!(checked.outputs[0].within_root, "buildstream/lab/hello.bst");
        assert_eq!(checked.outputs[1].within_root, "buildstream-install");
        assert_eq!(checked.outputs[1].declared, "../../../buildstream-install");
        assert_eq!(
            checked.directories,
            ["buildstream/lab", "buildstream/lab/hello.bst"]
        );
        let escaped = re::Command {
            output_paths: vec!["../../../../etc".into()],
            ..build
        };
        assert!(check(&escaped).unwrap_err().contains("../../../../etc"));
    }

    #[test]
    fn bad_commands_are_told_what_is_wrong() {
        let variable = |name: &str, value: &str| re::command::EnvironmentVariable {
            name: name.into(),
            value: value.into(),
        };
        let with_env = |vars: Vec<_>| re::Command {
            environment_variables: vars,
            ..command()
        };
        for (bad, word) in [
            (re::Command::default(), "no program"),
            (
                re::Command {
                    arguments: vec!["a".into(), "b\0".into()],
                    ..Default::default()
                },
                "argument 1",
            ),
            (
                re::Command {
                    working_directory: "/tmp".into(),
                    ..command()
                },
                "/tmp",
            ),
            (
                re::Command {
                    working_directory: "../x".into(),
                    ..command()
                },
                "../x",
            ),
            (
                re::Command {
                    output_paths: vec!["/etc/passwd".into()],
                    ..command()
                },
                "/etc/passwd",
            ),
            (
                re::Command {
                    output_directory_format: 9,
                    ..command()
                },
                "9",
            ),
            (with_env(vec![variable("A=B", "")]), "A=B"),
            (with_env(vec![variable("", "")]), "name"),
            (with_env(vec![variable("A", "\0")]), "\"A\""),
            (
                with_env(vec![variable("A", "1"), variable("A", "2")]),
                "twice",
            ),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
