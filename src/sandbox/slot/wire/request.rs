//! What the daemon asks of a launcher.

use std::ffi::CStr;

use super::super::uids::SlotUser;
use super::{MAGIC, Malformed, Reader, Writer};

/// Bytes of a request without its strings.
pub(crate) const REQUEST_LEN: usize = 80;
/// Strings up to this size travel in the datagram itself; a socket buffer holds three such.
pub(crate) const INLINE_MAX: usize = 60 * 1024;
/// The kernel takes at most 6 MiB of arguments and environment, whatever the limits are.
pub(crate) const STRINGS_MAX: usize = 8 * 1024 * 1024;

const KIND_RUN: u32 = 1;
const KIND_TERMINATE: u32 = 2;
const KIND_KILL: u32 = 3;
const KIND_SWEEP: u32 = 4;
const KIND_SET_UP: u32 = 5;

const FLAG_SWITCH: u32 = 1;
const FLAG_OPEN_FILES: u32 = 2;
const FLAG_FILE_SIZE: u32 = 4;
const FLAG_PROCESSES: u32 = 8;
const FLAG_IN_MEMFD: u32 = 16;
const FLAG_ROOT_FD: u32 = 32;
const FLAGS_KNOWN: u32 = 63;

/// What a daemon asks of a launcher. `id` counts the runs of a slot, so that a late message cannot
/// hit the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Start a command. Descriptors come with it: standard output and error, those by which it enters its cgroups, the mount of
    /// its root if there is one, and one that holds the strings if they are not inline.
    Run(RunHeader),
    /// Make ready for commands of one kind, once: a memfd with what they see comes with it.
    SetUp { id: u64 },
    /// SIGTERM to the command's session.
    Terminate { id: u64 },
    /// SIGKILL to everything.
    Kill { id: u64 },
    /// Kill every process of a user, whoever started it; asked before the first run in a slot.
    Sweep { id: u64, user: SlotUser },
}

/// The fixed part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunHeader {
    pub(crate) id: u64,
    /// Its first id is the user and the group to become; neither is 0.
    pub(crate) user: Option<SlotUser>,
    pub(crate) open_files: Option<u64>,
    pub(crate) file_size: Option<u64>,
    pub(crate) processes: Option<u64>,
    /// Arguments, the program's name among them: at least one.
    pub(crate) argc: u32,
    /// Environment entries.
    pub(crate) envc: u32,
    /// Directories that stay read-only.
    pub(crate) read_only: u32,
    /// Directories below those that do not.
    pub(crate) writable: u32,
    /// Cgroups to enter: each comes as a descriptor to which a process writes 0.
    pub(crate) groups: u32,
    /// The root comes as a descriptor of a detached mount.
    pub(crate) root_fd: bool,
    /// Bytes of all strings.
    pub(crate) strings_len: usize,
    /// The strings are in the last descriptor.
    pub(crate) in_memfd: bool,
}

/// The strings of a run, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Strings<'a> {
    pub(crate) root: &'a CStr,
    pub(crate) cwd: &'a CStr,
    pub(crate) argv: Vec<&'a CStr>,
    /// `NAME=VALUE` each.
    pub(crate) env: Vec<&'a CStr>,
    /// Relative to the root; empty for the root itself.
    pub(crate) read_only: Vec<&'a CStr>,
    /// As `read_only`.
    pub(crate) writable: Vec<&'a CStr>,
}
impl Request {
    /// The header, to which inline strings may be appended.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let run = match *self {
            Request::Run(run) => run,
            Request::Terminate { id } | Request::Kill { id } | Request::SetUp { id } => RunHeader {
                id,
                ..RunHeader::default()
            },
            Request::Sweep { id, user } => RunHeader {
                id,
                user: Some(user),
                ..RunHeader::default()
            },
        };
        let mut flags = 0;
        for (present, flag) in [
            (run.user.is_some(), FLAG_SWITCH),
            (run.open_files.is_some(), FLAG_OPEN_FILES),
            (run.file_size.is_some(), FLAG_FILE_SIZE),
            (run.processes.is_some(), FLAG_PROCESSES),
            (run.in_memfd, FLAG_IN_MEMFD),
            (run.root_fd, FLAG_ROOT_FD),
        ] {
            if present {
                flags |= flag;
            }
        }
        let inline = if run.in_memfd { 0 } else { run.strings_len };
        let mut out = Writer(Vec::with_capacity(REQUEST_LEN + inline));
        out.u32(MAGIC);
        out.u32(match self {
            Request::Run(_) => KIND_RUN,
            Request::Terminate { .. } => KIND_TERMINATE,
            Request::Kill { .. } => KIND_KILL,
            Request::Sweep { .. } => KIND_SWEEP,
            Request::SetUp { .. } => KIND_SET_UP,
        });
        out.u64(run.id);
        out.u32(flags);
        out.u32(run.user.map_or(0, |user| user.uid));
        out.u32(run.user.map_or(0, |user| user.killer));
        out.u32(run.argc);
        out.u32(run.envc);
        out.u32(run.read_only);
        out.u32(run.writable);
        out.u32(run.groups);
        out.u64(run.open_files.unwrap_or(0));
        out.u64(run.file_size.unwrap_or(0));
        out.u64(run.processes.unwrap_or(0));
        out.u64(run.strings_len as u64);
        out.0
    }

    /// Reads one datagram. What follows the header is returned beside the request: the inline strings of a run.
    pub(crate) fn decode(datagram: &[u8]) -> Result<(Request, &[u8]), Malformed> {
        let mut input = Reader(datagram);
        if input.u32()? != MAGIC {
            return Err(Malformed("not a boxwright message"));
        }
        let kind = input.u32()?;
        let id = input.u64()?;
        let flags = input.u32()?;
        let uid = input.u32()?;
        let killer = input.u32()?;
        let argc = input.u32()?;
        let envc = input.u32()?;
        let read_only = input.u32()?;
        let writable = input.u32()?;
        let groups = input.u32()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(Malformed("unknown flags"));
        }
        let open_files = input.u64()?;
        let file_size = input.u64()?;
        let processes = input.u64()?;
        let strings_len = usize::try_from(input.u64()?).unwrap_or(usize::MAX);
        let tail = input.0;
        if strings_len > STRINGS_MAX {
            return Err(Malformed("the strings are too long"));
        }
        let set = |flag, value: u64| (flags & flag != 0).then_some(value);
        let user = (flags & FLAG_SWITCH != 0).then_some(SlotUser { uid, killer });
        let no_user = |id: u32| id == 0 || id == u32::MAX;
        if user.is_some_and(|user| no_user(user.uid) || no_user(user.killer)) {
            return Err(Malformed(
                "neither a command nor its killer may run as uid 0",
            ));
        }
        if user.is_some_and(|user| user.uid == user.killer) {
            return Err(Malformed("a command and its killer may not share a uid"));
        }
        let request = match kind {
            KIND_RUN => {
                let in_memfd = flags & FLAG_IN_MEMFD != 0;
                if tail.len() != if in_memfd { 0 } else { strings_len } {
                    return Err(Malformed("the strings are cut off"));
                }
                Request::Run(RunHeader {
                    id,
                    user,
                    open_files: set(FLAG_OPEN_FILES, open_files),
                    file_size: set(FLAG_FILE_SIZE, file_size),
                    processes: set(FLAG_PROCESSES, processes),
                    argc,
                    envc,
                    read_only,
                    writable,
                    groups,
                    root_fd: flags & FLAG_ROOT_FD != 0,
                    strings_len,
                    in_memfd,
                })
            }
            _ if !tail.is_empty() => return Err(Malformed("something follows the header")),
            KIND_TERMINATE => Request::Terminate { id },
            KIND_KILL => Request::Kill { id },
            KIND_SET_UP => Request::SetUp { id },
            KIND_SWEEP => match user {
                Some(user) => Request::Sweep { id, user },
                None => return Err(Malformed("a sweep without a user")),
            },
            _ => return Err(Malformed("unknown kind")),
        };
        Ok((request, tail))
    }
}

impl<'a> Strings<'a> {
    /// Splits the strings of a run and checks that there are exactly as many as the header says.
    pub(crate) fn decode(run: &RunHeader, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let count = (run.argc as usize)
            .checked_add(run.envc as usize)
            .and_then(|n| n.checked_add(run.read_only as usize))
            .and_then(|n| n.checked_add(run.writable as usize))
            .and_then(|n| n.checked_add(2))
            .ok_or(Malformed("too many strings"))?;
        // Each string has a NUL at least: this bounds what is allocated below.
        if bytes.len() != run.strings_len || count > bytes.len() || run.argc == 0 {
            return Err(Malformed("the count of strings is wrong"));
        }
        let mut rest = bytes;
        let mut next = || -> Result<&'a CStr, Malformed> {
            let string = CStr::from_bytes_until_nul(rest)
                .map_err(|_| Malformed("a string without an end"))?;
            rest = &rest[string.to_bytes_with_nul().len()..];
            Ok(string)
        };
        let root = next()?;
        let cwd = next()?;
        let argv = (0..run.argc).map(|_| next()).collect::<Result<_, _>>()?;
        let env: Vec<&CStr> = (0..run.envc).map(|_| next()).collect::<Result<_, _>>()?;
        let mut directories =
            |count: u32| -> Result<Vec<&CStr>, Malformed> { (0..count).map(|_| next()).collect() };
        let (read_only, writable) = (directories(run.read_only)?, directories(run.writable)?);
        if !rest.is_empty() {
            return Err(Malformed("more strings than announced"));
        }
        if root.to_bytes().first() != Some(&b'/') {
            return Err(Malformed("the root is not absolute"));
        }
        if cwd.to_bytes().first() == Some(&b'/') {
            return Err(Malformed("the working directory is absolute"));
        }
        if env
            .iter()
            .any(|entry| !entry.to_bytes().iter().skip(1).any(|b| *b == b'='))
        {
            return Err(Malformed("an environment entry without a name"));
        }
        let leaves = |path: &&CStr| {
            let bytes = path.to_bytes();
            bytes.first() == Some(&b'/') || bytes.split(|b| *b == b'/').any(|s| s == b"..")
        };
        if read_only.iter().chain(&writable).any(leaves) {
            return Err(Malformed("a read-only directory outside of the root"));
        }
        Ok(Strings {
            root,
            cwd,
            argv,
            env,
            read_only,
            writable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> (RunHeader, Vec<u8>) {
        let strings = b"/root\0sub\0cc\0-c\0A=1\0\0usr/lib\0build\0".to_vec();
        let header = RunHeader {
            id: 7,
            user: Some(SlotUser {
                uid: 4000,
                killer: 4001,
            }),
            open_files: Some(64),
            file_size: None,
            processes: Some(u64::MAX),
            argc: 2,
            envc: 1,
            read_only: 2,
            writable: 1,
            groups: 3,
            root_fd: true,
            strings_len: strings.len(),
            in_memfd: false,
        };
        (header, strings)
    }

    #[test]
    fn requests_survive_the_wire() {
        let (header, strings) = run();
        let mut datagram = Request::Run(header).encode();
        assert_eq!(datagram.len(), REQUEST_LEN);
        datagram.extend_from_slice(&strings);
        let (request, tail) = Request::decode(&datagram).unwrap();
        assert_eq!(request, Request::Run(header));
        let decoded = Strings::decode(&header, tail).unwrap();
        assert_eq!(decoded.argv, [c"cc", c"-c"]);
        assert_eq!(decoded.env, [c"A=1"]);
        assert_eq!(decoded.read_only, [c"", c"usr/lib"]);
        assert_eq!(decoded.writable, [c"build"]);
        assert_eq!((decoded.root, decoded.cwd), (c"/root", c"sub"));
        for request in [
            Request::Terminate { id: 1 },
            Request::Kill { id: u64::MAX },
            Request::SetUp { id: 2 },
            Request::Sweep {
                id: 3,
                user: SlotUser { uid: 9, killer: 10 },
            },
        ] {
            assert_eq!(
                Request::decode(&request.encode()),
                Ok((request, &[] as &[u8]))
            );
        }
    }

    #[test]
    fn root_and_shared_users_are_refused() {
        for (uid, killer) in [(0, 5), (5, 0), (u32::MAX, 5), (5, u32::MAX), (5, 5)] {
            let (mut header, strings) = run();
            header.user = Some(SlotUser { uid, killer });
            let mut datagram = Request::Run(header).encode();
            datagram.extend_from_slice(&strings);
            assert!(Request::decode(&datagram).is_err(), "{uid}:{killer}");
        }
    }

    #[test]
    fn strings_are_counted() {
        let (header, strings) = run();
        for (argc, envc) in [(1, 1), (2, 2), (3, 1), (0, 3), (u32::MAX, u32::MAX)] {
            let wrong = RunHeader {
                argc,
                envc,
                ..header
            };
            assert!(Strings::decode(&wrong, &strings).is_err(), "{argc} {envc}");
        }
        for (strings, argc, envc) in [
            (&b"root\0\0cc\0"[..], 1, 0),
            (b"/root\0/abs\0cc\0", 1, 0),
            (b"/root\0\0cc\0NAME\0", 1, 1),
            (b"/root\0\0cc\0=VALUE\0", 1, 1),
            (b"/root\0\0cc\0A=1", 1, 1),
        ] {
            let header = RunHeader {
                argc,
                envc,
                strings_len: strings.len(),
                ..RunHeader::default()
            };
            assert!(
                Strings::decode(&header, strings).is_err(),
                "{}",
                strings.escape_ascii()
            );
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_request(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Request::decode(&bytes).is_err());
        }

        /// A good message with bytes changed and cut: it is read or refused, and what is read keeps the rules.
        #[test]
        fn damage_never_panics(
            changes in proptest::collection::vec((0usize..REQUEST_LEN + 20, any::<u8>()), 0..6),
            cut in 0usize..=REQUEST_LEN + 20,
        ) {
            let (header, strings) = run();
            let mut datagram = Request::Run(header).encode();
            datagram.extend_from_slice(&strings);
            for (at, byte) in changes {
                datagram[at] = byte;
            }
            datagram.truncate(cut);
            if let Ok((Request::Run(run), tail)) = Request::decode(&datagram) {
                prop_assert!(run.user.is_none_or(|user| user.uid != 0 && user.killer != 0 && user.uid != user.killer));
                if let Ok(strings) = Strings::decode(&run, tail) {
                    prop_assert_eq!(strings.argv.len(), run.argc as usize);
                    prop_assert_eq!(strings.env.len(), run.envc as usize);
                }
            }
        }
    }
}
