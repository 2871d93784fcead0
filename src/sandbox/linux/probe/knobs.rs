//! Settings of the kernel that stand in the way of user namespaces.

use std::path::Path;

/// What they say; `None` where the kernel has no such setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knobs {
    /// Debian's `kernel.unprivileged_userns_clone`: 0 keeps user namespaces for root.
    pub unprivileged_userns_clone: Option<u64>,
    /// `user.max_user_namespaces` of our own user namespace: 0 forbids them.
    pub max_user_namespaces: Option<u64>,
    /// Ubuntu's `kernel.apparmor_restrict_unprivileged_userns`: 1 lets only programs with a profile do anything in one.
    pub apparmor_restrict_userns: Option<u64>,
    /// Whether we seem to be in a container, whose engine filters system calls and masks `/proc`.
    pub container: bool,
}

/// Reads them.
pub fn knobs() -> Knobs {
    Knobs {
        unprivileged_userns_clone: sysctl("kernel/unprivileged_userns_clone"),
        max_user_namespaces: sysctl("user/max_user_namespaces"),
        apparmor_restrict_userns: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        container: ["/.dockerenv", "/run/.containerenv"]
            .iter()
            .any(|mark| Path::new(mark).exists()),
    }
}

fn sysctl(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    text.trim().parse().ok()
}
