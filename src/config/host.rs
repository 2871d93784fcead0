//! What the defaults need to know of this host.

use std::path::PathBuf;

use super::settings::Host;

impl Host {
    /// Looks around.
    pub fn here() -> Self {
        Host {
            processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            name: host_name(),
            isa: isa(std::env::consts::ARCH).to_owned(),
            state_dir: state_dir(nix::unistd::geteuid().is_root(), |name| {
                std::env::var_os(name)
            }),
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .map(|name| name.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|name| !name.is_empty() && name.len() <= 128)
        .unwrap_or_else(|| "boxwright".to_owned())
}

/// The platform lexicon's name of an architecture.
fn isa(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "x86-64",
        "x86" => "x86-32",
        "aarch64" => "arm-a64",
        "arm" => "arm-a32",
        "riscv64" => "rv64g",
        "powerpc64" if cfg!(target_endian = "little") => "power-isa-le",
        "powerpc64" => "power-isa-be",
        other => other,
    }
}

fn state_dir(root: bool, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute() && path.to_str().is_some())
    };
    if root {
        return Some("/var/lib/boxwright".into());
    }
    // XDG base directories: "If $XDG_STATE_HOME is either not set or empty, a default equal to
    // $HOME/.local/state should be used"; relative paths are to be ignored.
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("boxwright"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_where_the_user_keeps_state() {
        let of = |root, pairs: &[(&str, &str)]| {
            state_dir(root, |name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            })
        };
        assert_eq!(
            of(true, &[("HOME", "/root")]),
            Some("/var/lib/boxwright".into())
        );
        assert_eq!(of(false, &[]), None);
        assert_eq!(
            of(
                false,
                &[("HOME", "/home/a"), ("XDG_STATE_HOME", "relative")]
            ),
            Some("/home/a/.local/state/boxwright".into())
        );
        assert_eq!(
            of(false, &[("HOME", "/home/a"), ("XDG_STATE_HOME", "/s")]),
            Some("/s/boxwright".into())
        );
    }
}
