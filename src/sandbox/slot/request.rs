//! From a [`CommandSpec`] to the request that a launcher gets.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::channel;
use super::lookup::too_long;
use super::uids::SlotUser;
use super::wire::{INLINE_MAX, Request, RunHeader, STRINGS_MAX};
use crate::sandbox::{CommandSpec, End, SandboxError};

/// Why there is no request.
#[derive(Debug)]
pub(in crate::sandbox) enum Refusal {
    /// The command is at fault: how it ends.
    Command(End),
    /// We are.
    Sandbox(SandboxError),
}

/// A run, ready to be sent.
#[derive(Debug)]
pub(in crate::sandbox) struct RunRequest {
    header: RunHeader,
    strings: Vec<u8>,
    memfd: Option<OwnedFd>,
    root: Option<OwnedFd>,
}

/// What a command writes to, beside its strings.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Ends<'a> {
    /// The write end of its standard output.
    pub(in crate::sandbox) stdout: BorrowedFd<'a>,
    /// The write end of its standard error.
    pub(in crate::sandbox) stderr: BorrowedFd<'a>,
    /// By which it enters its cgroups.
    pub(in crate::sandbox) groups: &'a [OwnedFd],
}

fn fault(message: String) -> Refusal {
    Refusal::Command(End::NotStarted { code: 126, message })
}

fn setup(action: impl Into<String>, source: impl Into<io::Error>) -> Refusal {
    Refusal::Sandbox(SandboxError::Setup {
        action: action.into(),
        source: source.into(),
    })
}

impl RunRequest {
    /// `root` is a detached mount of the input root, for launchers that cannot see the path.
    pub(in crate::sandbox) fn new(
        spec: &CommandSpec,
        user: Option<SlotUser>,
        root: Option<OwnedFd>,
    ) -> Result<RunRequest, Refusal> {
        let strings = strings(spec)?;
        let header = RunHeader {
            id: 0,
            user,
            open_files: spec.limits.open_files,
            file_size: spec.limits.file_size,
            processes: spec.limits.processes,
            // Bounded by the length of the strings.
            argc: spec.argv.len() as u32,
            envc: spec.env.len() as u32,
            read_only: spec.view.read_only.len() as u32,
            writable: spec.view.writable.len() as u32,
            groups: 0,
            root_fd: root.is_some(),
            strings_len: strings.len(),
            in_memfd: strings.len() > INLINE_MAX,
        };
        let memfd = if header.in_memfd {
            Some(sealed(&strings).map_err(|e| setup("pass on a long command line", e))?)
        } else {
            None
        };
        Ok(RunRequest {
            header,
            strings,
            memfd,
            root,
        })
    }

    /// Sends it as run `id`.
    pub(in crate::sandbox) fn send(
        &self,
        socket: impl AsFd,
        id: u64,
        ends: Ends<'_>,
    ) -> Result<(), rustix::io::Errno> {
        let groups = ends.groups.len() as u32;
        let header = Request::Run(RunHeader {
            id,
            groups,
            ..self.header
        });
        let header = header.encode();
        let mut fds = vec![ends.stdout, ends.stderr];
        fds.extend(ends.groups.iter().map(AsFd::as_fd));
        fds.extend(self.root.as_ref().map(|root| root.as_fd()));
        fds.extend(self.memfd.as_ref().map(|memfd| memfd.as_fd()));
        match &self.memfd {
            Some(_) => channel::send(socket, &[IoSlice::new(&header)], &fds),
            None => channel::send(
                socket,
                &[IoSlice::new(&header), IoSlice::new(&self.strings)],
                &fds,
            ),
        }
    }
}

/// A memfd with this content that nobody can change any more.
pub(in crate::sandbox) fn sealed(strings: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("boxwright-command", flags)?);
    file.write_all(strings)?;
    fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Root, working directory, arguments and environment, each ended by a NUL.
fn strings(spec: &CommandSpec) -> Result<Vec<u8>, Refusal> {
    let mut size = spec.root.as_os_str().len() + spec.cwd.as_os_str().len() + 2;
    size += spec.argv.iter().map(|arg| arg.len() + 1).sum::<usize>();
    size += spec
        .env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum::<usize>();
    let directories = || spec.view.read_only.iter().chain(&spec.view.writable);
    size += directories()
        .map(|path| path.as_os_str().len() + 1)
        .sum::<usize>();
    if size > STRINGS_MAX {
        return Err(fault(too_long(spec)));
    }
    if spec.argv.is_empty() {
        return Err(fault("the command has no words".into()));
    }
    let root = spec.root.as_os_str();
    if !spec.root.is_absolute() || has_nul(root) {
        return Err(setup(
            format!("use {root:?} as input root: it must be an absolute path without NUL"),
            io::ErrorKind::InvalidInput,
        ));
    }
    let cwd = spec.cwd.as_os_str();
    if spec.cwd.is_absolute() || has_nul(cwd) {
        return Err(fault(format!(
            "the working directory {cwd:?} is not a path within the input root"
        )));
    }
    let mut out = Vec::with_capacity(size);
    let mut push = |parts: &[&OsStr]| {
        for part in parts {
            out.extend_from_slice(part.as_bytes());
        }
        out.push(0);
    };
    push(&[root]);
    push(&[cwd]);
    for (at, arg) in spec.argv.iter().enumerate() {
        if has_nul(arg) {
            return Err(fault(format!("argument {at} contains a NUL byte")));
        }
        push(&[arg]);
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') || has_nul(name) || has_nul(value) {
            return Err(fault(format!(
                "environment variable {name:?} cannot be set: its name is empty or contains =, or there is a NUL byte in it"
            )));
        }
        push(&[name, OsStr::new("="), value]);
    }
    for path in directories() {
        if path.is_absolute() || has_nul(path.as_os_str()) {
            return Err(fault(format!(
                "the directory {path:?}, which is read-only or not, is not a path within the input root"
            )));
        }
        push(&[path.as_os_str()]);
    }
    Ok(out)
}

fn has_nul(text: &OsStr) -> bool {
    text.as_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Limits, StreamSpec};
    use std::time::Duration;

    fn spec() -> CommandSpec {
        let stream = || StreamSpec {
            memory: 0,
            keep: 0,
            spill_dir: "/".into(),
            live: None,
        };
        CommandSpec {
            argv: vec!["cc".into()],
            env: vec![("A".into(), "1=2".into()), ("B".into(), "".into())],
            root: "/root".into(),
            inputs: Default::default(),
            cwd: "sub".into(),
            timeout: None,
            exempt: Default::default(),
            grace: Duration::ZERO,
            limits: Limits::default(),
            view: Default::default(),
            stdout: stream(),
            stderr: stream(),
        }
    }

    #[test]
    fn strings_are_what_the_launcher_reads() {
        let spec = spec();
        let request = RunRequest::new(
            &spec,
            Some(SlotUser {
                uid: 4000,
                killer: 5000,
            }),
            None,
        )
        .unwrap();
        assert_eq!(request.strings, b"/root\0sub\0cc\0A=1=2\0B=\0");
        let read = super::super::wire::Strings::decode(&request.header, &request.strings).unwrap();
        assert_eq!(read.env, [c"A=1=2", c"B="]);
    }

    type Break = fn(&mut CommandSpec);

    #[test]
    fn what_execve_cannot_take_is_the_commands_fault() {
        let breaks: [(Break, &str); 8] = [
            (|s| s.argv.clear(), "no words"),
            (|s| s.argv.push("a\0b".into()), "argument 1 contains a NUL"),
            (
                |s| s.env.push(("".into(), "x".into())),
                "\"\" cannot be set",
            ),
            (|s| s.env.push(("a=b".into(), "x".into())), "\"a=b\" cannot"),
            (|s| s.env.push(("a".into(), "x\0".into())), "\"a\" cannot"),
            (|s| s.cwd = "/etc".into(), "\"/etc\" is not a path within"),
            (|s| s.cwd = "a\0b".into(), "is not a path within"),
            (
                |s| s.argv.push("x".repeat(STRINGS_MAX).into()),
                "argument list too long",
            ),
        ];
        for (break_it, expected) in breaks {
            let mut spec = spec();
            break_it(&mut spec);
            match RunRequest::new(&spec, None, None) {
                Err(Refusal::Command(End::NotStarted { code: 126, message })) => {
                    assert!(message.contains(expected), "{message}");
                }
                other => panic!("{expected}: {other:?}"),
            }
        }
        let mut spec = spec();
        spec.root = "relative".into();
        assert!(matches!(
            RunRequest::new(&spec, None, None),
            Err(Refusal::Sandbox(_))
        ));
    }
}
