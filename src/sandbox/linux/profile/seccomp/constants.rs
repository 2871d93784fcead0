//! The constants that policies may call by name. All of them are the same on every machine that we have filters for.

/// The value of a constant.
pub fn value(name: &str) -> Option<u64> {
    let found = CONSTANTS.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}

/// The number of an error, by its name.
pub fn errno(name: &str) -> Option<u16> {
    let found = ERRNOS.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}

/// Every constant's name.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONSTANTS.iter().map(|(name, _)| *name)
}

/// Every error's name.
pub fn errnos() -> impl Iterator<Item = &'static str> {
    ERRNOS.iter().map(|(name, _)| *name)
}

const CONSTANTS: &[(&str, u64)] = &[
    ("AF_UNIX", 1),
    ("AF_INET", 2),
    ("AF_INET6", 10),
    ("AF_NETLINK", 16),
    ("AF_PACKET", 17),
    ("AF_ALG", 38),
    ("AF_VSOCK", 40),
    ("NETLINK_ROUTE", 0),
    ("SYS_SOCKET", 1),
    ("SYS_SOCKETPAIR", 8),
    ("CLONE_NEWTIME", 0x80),
    ("CLONE_NEWNS", 0x0002_0000),
    ("CLONE_NEWCGROUP", 0x0200_0000),
    ("CLONE_NEWUTS", 0x0400_0000),
    ("CLONE_NEWIPC", 0x0800_0000),
    ("CLONE_NEWUSER", 0x1000_0000),
    ("CLONE_NEWPID", 0x2000_0000),
    ("CLONE_NEWNET", 0x4000_0000),
    ("TIOCSTI", 0x5412),
    ("TIOCLINUX", 0x541c),
    ("TIOCCONS", 0x541d),
    ("TIOCSETD", 0x5423),
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
    ("SCHED_RESET_ON_FORK", 0x4000_0000),
    ("PER_LINUX", 0),
    ("PER_LINUX32", 8),
    ("ADDR_NO_RANDOMIZE", 0x0004_0000),
    ("S_IFMT", 0o170_000),
    ("S_IFCHR", 0o020_000),
    ("S_IFBLK", 0o060_000),
];

const ERRNOS: &[(&str, u16)] = &[
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EACCES", 13),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("ENOTTY", 25),
    ("ENOSYS", 38),
    ("EPROTONOSUPPORT", 93),
    ("EOPNOTSUPP", 95),
    ("EAFNOSUPPORT", 97),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_c_library() {
        macro_rules! same {
            ($read:ident: $($name:ident)*) => { $(
                assert_eq!($read(stringify!($name)).map(|v| v as u32), Some(libc::$name as u32), stringify!($name));
            )* };
        }
        same!(value: AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_ALG AF_VSOCK NETLINK_ROUTE
            CLONE_NEWTIME CLONE_NEWNS CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET
            TIOCSTI TIOCLINUX TIOCCONS TIOCSETD
            SCHED_OTHER SCHED_FIFO SCHED_RR SCHED_BATCH SCHED_IDLE SCHED_DEADLINE SCHED_RESET_ON_FORK
            ADDR_NO_RANDOMIZE S_IFMT S_IFCHR S_IFBLK);
        same!(errno: EPERM ENOENT EACCES ENODEV EINVAL ENOTTY ENOSYS EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT);
    }
}
