//! Where a program is looked for, and what its user reads when it cannot be started.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use super::wire::{Failure, Step};
use crate::sandbox::{CommandSpec, End, SandboxError};

/// What a command without `PATH` gets.
pub(in crate::sandbox) const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The paths to execute, in turn: the program itself if it has a slash, else one for each entry of `PATH`. An empty
/// entry is the working directory, as POSIX has it. Nothing for an empty name.
pub(in crate::sandbox) fn candidates(program: &CStr, env: &[&CStr]) -> Vec<CString> {
    let name = program.to_bytes();
    if name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    let path = env
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH.as_bytes());
    path.split(|b| *b == b':')
        .filter_map(|dir| {
            let dir = if dir.is_empty() { b"." } else { dir };
            CString::new([dir, b"/", name].concat()).ok()
        })
        .collect()
}

/// What a failed start means: the command's own fault (an [`End::NotStarted`]) or ours.
pub(in crate::sandbox) fn judge(
    failure: &Failure,
    spec: &CommandSpec,
    user: Option<u32>,
    slot: usize,
) -> Result<End, SandboxError> {
    let errno = failure.errno;
    let program = spec.argv.first().map_or(OsStr::new(""), |p| p.as_os_str());
    let tried = if failure.path.is_empty() {
        quote(program)
    } else {
        quote(OsStr::from_bytes(&failure.path))
    };
    let not_started = |code, message| Ok(End::NotStarted { code, message });
    let setup = |action: String| {
        Err(SandboxError::Setup {
            action,
            source: std::io::Error::from_raw_os_error(errno),
        })
    };
    match failure.step {
        Step::NotFound => not_started(127, not_found(program, spec)),
        Step::Interpreter => not_started(
            127,
            format!(
                "{tried} is there, but its interpreter is not (the program after #! in its first line, or its ELF loader)"
            ),
        ),
        Step::Directory => not_started(126, format!("{tried} is a directory")),
        Step::Exec => match errno {
            libc::E2BIG => not_started(126, too_long(spec)),
            libc::EACCES | libc::EPERM => not_started(
                126,
                match user {
                    Some(uid) => format!("{tried} is not executable for uid {uid}"),
                    None => format!("{tried} is not executable"),
                },
            ),
            libc::ENOEXEC => not_started(
                126,
                format!(
                    "{tried} is not in an executable format (a script needs a first line such as #!/bin/sh)"
                ),
            ),
            libc::ETXTBSY => not_started(126, format!("{tried} is still open for writing")),
            libc::ELOOP | libc::EISDIR | libc::EINVAL | libc::ELIBBAD => {
                not_started(126, format!("cannot execute {tried}: {}", reason(errno)))
            }
            _ => setup(format!("execute {tried}")),
        },
        Step::Cwd => match errno {
            libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP | libc::ENAMETOOLONG => {
                not_started(
                    126,
                    format!(
                        "cannot enter the working directory {}: {}",
                        quote(spec.cwd.as_os_str()),
                        reason(errno)
                    ),
                )
            }
            libc::EXDEV => not_started(
                126,
                format!(
                    "the working directory {} leads out of the input root",
                    quote(spec.cwd.as_os_str())
                ),
            ),
            _ => setup(format!(
                "enter the working directory {}",
                quote(spec.cwd.as_os_str())
            )),
        },
        Step::Root => setup(format!(
            "enter the input root {}",
            quote(spec.root.as_os_str())
        )),
        Step::User => setup(match user {
            Some(uid) => format!("become uid {uid}"),
            None => "change the user".into(),
        }),
        Step::Clone => setup("make a process".into()),
        Step::Session => setup("start a session".into()),
        Step::Limit => setup("set the resource limits".into()),
        Step::DeathSignal => setup("tie the command's life to its launcher".into()),
        Step::Streams => setup("hand over the standard streams".into()),
        Step::Mount => match errno {
            // What lies in the root is the action's own.
            libc::ELOOP | libc::ENOTDIR => not_started(
                126,
                format!("{tried} in the input root must be a directory, and is not"),
            ),
            _ => setup(format!("show {tried} in the sandbox")),
        },
        Step::Proc => setup("mount /proc in the sandbox".into()),
        Step::Pivot => setup("make the input root the root".into()),
        Step::Cgroup => setup("enter the slot's cgroups".into()),
        Step::Landlock => setup("apply the Landlock rules".into()),
        Step::Filter => setup("install the filter of system calls".into()),
        Step::Init => Err(SandboxError::Launcher {
            slot,
            problem: "lost the init of its command, which somebody outside of the sandbox killed, \
                      and the command with it"
                .into(),
        }),
        Step::Request => Err(SandboxError::Launcher {
            slot,
            problem: format!("refused the request: {}", reason(errno)),
        }),
    }
}

fn not_found(program: &OsStr, spec: &CommandSpec) -> String {
    if program.is_empty() {
        return "the program's name is empty".into();
    }
    if program.as_bytes().contains(&b'/') {
        return format!("{} was not found", quote(program));
    }
    match path_of(spec) {
        Some(path) => format!(
            "{} was not found in PATH ({})",
            quote(program),
            shorten(&path.to_string_lossy())
        ),
        None => format!(
            "{} was not found in {DEFAULT_PATH}, which is searched as PATH is not set",
            quote(program)
        ),
    }
}

fn path_of(spec: &CommandSpec) -> Option<&OsStr> {
    spec.env
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| value.as_os_str())
}

/// For `E2BIG`, from the kernel or from ourselves.
pub(in crate::sandbox) fn too_long(spec: &CommandSpec) -> String {
    let argv: usize = spec.argv.iter().map(|arg| arg.len() + 1).sum();
    let env: usize = spec.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    format!(
        "argument list too long: {argv} bytes of arguments and {env} of environment (Linux takes a quarter of the stack limit, \
         6 MiB at most, and 128 KiB for a single one)"
    )
}

fn quote(text: &OsStr) -> String {
    format!("{:?}", shorten(&text.to_string_lossy()))
}

/// A message must stay one that can be read.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 1024;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

fn reason(errno: i32) -> String {
    let full = std::io::Error::from_raw_os_error(errno).to_string();
    match full.rfind(" (os error") {
        Some(at) => full[..at].to_owned(),
        None => full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_for(program: &CStr, env: &[&CStr]) -> Vec<String> {
        candidates(program, env)
            .iter()
            .map(|c| c.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_slash_means_no_search() {
        assert_eq!(looked_for(c"./cc", &[c"PATH=/bin"]), ["./cc"]);
        assert_eq!(looked_for(c"bin/cc", &[c"PATH=/bin"]), ["bin/cc"]);
    }

    #[test]
    fn path_is_searched_in_order() {
        assert_eq!(
            looked_for(c"cc", &[c"XPATH=/no", c"PATH=/a:b::/c/", c"PATH=/late"]),
            ["/a/cc", "b/cc", "./cc", "/c//cc"]
        );
        assert_eq!(
            looked_for(c"cc", &[]),
            ["/usr/local/bin/cc", "/usr/bin/cc", "/bin/cc"]
        );
        assert_eq!(looked_for(c"cc", &[c"PATH="]), ["./cc"]);
        assert_eq!(looked_for(c"", &[c"PATH=/a"]), [] as [&str; 0]);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let long = "ä".repeat(2000);
        assert_eq!(shorten(&long).chars().count(), 1027);
        assert_eq!(shorten("short"), "short");
    }
}
