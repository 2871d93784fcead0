//! What must come of every attempt, where.
//!
//! `ALLOWED`, `DENIED` (with the errors that will do, if it matters), `ABSENT`; `ALLOWED =detail` is exact; `-` is not
//! tried. A word in braces is a thing of the test's world.

/// Who must succeed with it outside, to show that the attempt is a real one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    User,
    Root,
    /// It depends on the machine whether even root can.
    Machine,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) control: Control,
    pub(crate) process: &'static str,
    pub(crate) bubblewrap: &'static str,
    /// Alike with and without root.
    pub(crate) full: &'static str,
}

const fn row(
    name: &'static str,
    arguments: &'static str,
    control: Control,
    [process, bubblewrap, full]: [&'static str; 3],
) -> Row {
    Row {
        name,
        arguments,
        control,
        process,
        bubblewrap,
        full,
    }
}

use Control::{Machine, Root, User};

const YES: &str = "ALLOWED";
const NO: &str = "DENIED";
/// It is not there.
const GONE: &str = "DENIED ENOENT";
/// The filter's answer.
const FILTER: &str = "DENIED EPERM ENOSYS";

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    //  attempt                                                     control  process    bubblewrap full
    // Files of the host.
    row("fs.read_host", "{host}/secret",                            User,    [YES,      GONE,      GONE]),
    row("fs.read_host", "/etc/shadow /etc/gshadow",                 Root,    [NO,       NO,        "DENIED ENOENT EACCES"]),
    row("fs.list_host", "{host} /home /root /boot /var/lib",        User,    [YES,      NO,        NO]),
    row("fs.write_ro", "{host}/tool /usr/bin/env /bin/sh",          Root,    [NO,       NO,        NO]),
    row("fs.write_ro", "{host}/open",                               User,    [YES,      GONE,      GONE]),
    row("fs.create", "/usr/bin /usr/lib /etc /opt",                 Root,    [NO,       NO,        NO]),
    row("fs.create", "/",                                           Root,    [NO,       YES,       NO]),
    row("fs.create", "/proc/self/cwd /tmp",                         User,    [YES,      YES,       YES]),
    row("fs.proc_root", "{host}/secret",                            User,    [YES,      NO,        NO]),
    row("out.hardlink", "{host}/secret",                            Root,    ["ALLOWED | DENIED EPERM", GONE, GONE]),
    row("mnt.dotdot", "{host}/secret",                              User,    [YES,      NO,        NO]),
    row("sys.absent", "",                                           User,    [YES,      GONE,      "DENIED ENOENT | ABSENT"]),
    row("sys.cgroup", "",                                           User,    [YES,      NO,        NO]),
    row("dev.list", "",                                             User,    [YES,      "ALLOWED =console | DENIED", NO]),
    row("dev.mknod", "",                                            Root,    [NO,       NO,        "DENIED EPERM"]),
    row("exec.interp", "./script",                                  User,    [YES,      GONE,      GONE]),
    // The network.
    row("net.tcp", "{tcp}",                                         User,    [YES,      NO,        "DENIED ECONNREFUSED ENETUNREACH EPERM"]),
    row("net.udp", "{udp}",                                         User,    [YES,      NO,        NO]),
    row("net.dns", "{dns}",                                         User,    [YES,      NO,        "DENIED ENETUNREACH EPERM"]),
    row("net.metadata", "{metadata}",                               User,    [YES,      NO,        "DENIED ENETUNREACH EPERM"]),
    row("net.abstract", "{abstract}",                               User,    [YES,      NO,        "DENIED ECONNREFUSED EPERM"]),
    row("net.unixpath", "{socket}",                                 User,    [YES,      GONE,      GONE]),
    row("net.vsock", "",                                            User,    [YES,      YES,       "DENIED EPERM EAFNOSUPPORT EACCES"]),
    row("net.raw", "",                                              Root,    [NO,       NO,        "DENIED EPERM EAFNOSUPPORT EACCES"]),
    row("net.families", "",                                         User,    [YES,      YES,       NO]),
    row("net.own_loopback", "",                                     User,    [YES,      YES,       YES]),
    // Other processes and the kernel's settings.
    row("proc.scan", "",                                            User,    [YES,      NO,        NO]),
    row("proc.kill_host", "{victim}",                               Root,    ["DENIED EPERM", "DENIED ESRCH", "DENIED ESRCH"]),
    row("proc.ptrace_init", "",                                     User,    ["DENIED EPERM", YES, "DENIED EPERM"]),
    row("proc.init_memory", "",                                     User,    ["DENIED EACCES", YES, "DENIED EACCES EPERM"]),
    row("proc.init_environ", "{secret-variable}",                   User,    [NO,       YES,       NO]),
    row("proc.kill_init", "",                                       User,    ["DENIED EPERM", "DENIED NOTHING", "DENIED NOTHING EPERM"]),
    row("proc.sysctl_write", "",                                    Root,    ["DENIED EACCES", YES, "DENIED EACCES EPERM EROFS ENOENT"]),
    row("proc.oom_score", "",                                       Machine, ["DENIED EACCES", "DENIED | ALLOWED", "DENIED EACCES EPERM EROFS"]),
    // Privileges.
    row("priv.suid", "{suid}",                                      User,    ["DENIED NOTHING", "DENIED NOTHING", "DENIED NOTHING"]),
    row("priv.setuid", "",                                          Root,    ["DENIED EPERM", "DENIED EPERM EINVAL", "DENIED EPERM EINVAL"]),
    row("priv.caps_zero", "",                                       Root,    ["ALLOWED =CapBnd", NO, NO]),
    row("priv.no_new_privs", "",                                    User,    [NO,       NO,        NO]),
    row("priv.seccomp", "",                                         User,    [YES,      YES,       NO]),
    row("time.set", "",                                             Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("tty.tiocsti", "",                                          Root,    [NO,       YES,       NO]),
    // Namespaces and mounts.
    row("ns.nested", "",                                            User,    [YES,      YES,       FILTER]),
    row("ns.clone3", "",                                            User,    [YES,      YES,       FILTER]),
    row("ns.mount", "",                                             Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("ns.setns", "",                                             Root,    [NO,       NO,        NO]),
    row("ns.shared", "{namespaces}",                                User,    [YES,      "ALLOWED =cgroup", "ALLOWED =cgroup | DENIED"]),
    row("mnt.remount", "",                                          Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("mnt.tmpfs", "",                                            Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("mnt.umount", "",                                           Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("mnt.chroot", "",                                           Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    // System calls. Of the matrix none may be reached; of the ordinary ones every one.
    row("sc.matrix", "",                                            Root,    [YES,      YES,       "DENIED NOTHING"]),
    row("sc.ordinary", "",                                          User,    [YES,      YES,       YES]),
    row("sc.int80", "",                                             Machine, ["ALLOWED | ABSENT | DENIED", "ALLOWED | ABSENT | DENIED", "DENIED SIGSYS ENOSYS EPERM | ABSENT"]),
    row("sc.x32", "",                                               Machine, ["ALLOWED | ABSENT | DENIED", "ALLOWED | ABSENT | DENIED", "DENIED SIGSYS ENOSYS EPERM | ABSENT"]),
    // What a command is given without asking.
    row("fd.leak", "",                                              User,    [NO,       "ALLOWED | DENIED", NO]),
    row("fd.stdin", "",                                             User,    [NO,       "ALLOWED | DENIED", NO]),
    row("env.exact", "PATH GIVEN",                                  User,    [NO,       "ALLOWED =PWD | DENIED", NO]),
    // More than its share.
    row("res.fds", "1000",                                          User,    ["DENIED EMFILE", YES, "DENIED EMFILE"]),
    row("res.forkbomb", "300",                                      User,    ["DENIED EAGAIN", YES, "DENIED EAGAIN"]),
    row("res.membomb_anon", "256",                                  User,    [YES,      YES,       "DENIED OOM ENOMEM"]),
    row("res.membomb_tmpfs", "256",                                 User,    [YES,      YES,       "DENIED OOM ENOMEM ENOSPC"]),
    row("res.membomb_memfd", "256",                                 User,    [YES,      YES,       "DENIED OOM ENOMEM"]),
    row("res.membomb_children", "256",                              User,    [YES,      YES,       "DENIED OOM ENOMEM"]),
    row("res.disk", "96",                                           User,    [YES,      YES,       "DENIED LIMIT ENOSPC EDQUOT"]),
    row("res.inodes", "4000",                                       User,    [YES,      YES,       "DENIED LIMIT ENOSPC EDQUOT"]),
    row("res.cpu", "20",                                            User,    [YES,      YES,       NO]),
    row("res.realtime", "",                                         Root,    ["DENIED EPERM", "DENIED EPERM", "DENIED EPERM"]),
    row("res.nice", "",                                             Root,    ["DENIED EACCES EPERM", "DENIED EACCES EPERM", "DENIED EACCES EPERM"]),
];
