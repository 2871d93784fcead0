//! Variables of the environment that look like settings and are none. They are no error, for other programs may have such names;
//! but who mistyped one is to hear of it.

use super::keys::{KEYS, closest};

const PREFIX: &str = "BOXWRIGHT_";

/// What the scripts, tests and benchmarks beside this program read; those of one test begin with `TEST_`.
const BESIDE: &[&str] = &[
    "BUILDBOX_FUSE",
    "INSTALL_RUST",
    "NO_SKIPS",
    "PEERS",
    "PEERS_BIND",
    "SID",
    "SOAK",
    "VM_MEMORY",
];

/// What is to be said of these variables, in the order of their names.
pub fn strays(names: impl Iterator<Item = String>) -> Vec<String> {
    let settings: Vec<String> = { KEYS.iter() }
        .filter(|key| key.is_flag())
        .map(|key| key.variable())
        .collect();
    let mut strays: Vec<String> = names
        .filter(|name| !settings.contains(name) && is_ours(name))
        .collect();
    strays.sort();
    strays.iter().map(|name| told(name)).collect()
}

/// Whether it has our prefix, and is not known to be for somebody else.
fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| {
        !rest.starts_with("TEST_") && !BESIDE.contains(&rest) && !is_of_kubernetes(rest)
    })
}

/// Kubernetes tells each container of the services beside it (BOXWRIGHT_SERVICE_HOST, BOXWRIGHT_PORT_8980_TCP_ADDR, and with
/// the rest of the service's name between), and ours may well be called like this program.
fn is_of_kubernetes(rest: &str) -> bool {
    let rest = format!("_{rest}");
    let numbered = |after: &str| after.starts_with(|c: char| c.is_ascii_digit());
    rest.ends_with("_PORT")
        || rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT_")
        || rest.split("_PORT_").skip(1).any(numbered)
}

fn told(name: &str) -> String {
    let flags = { KEYS.iter() }.filter(|key| key.is_flag());
    let meant = closest(&name[PREFIX.len()..], flags.map(|key| key.name));
    let meant = meant.and_then(super::keys::find);
    let hint = meant.map_or_else(
        || "--help lists the settings".to_owned(),
        |key| format!("did you mean {}?", key.variable()),
    );
    format!("{name} is not a setting and has no effect; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<String> {
        strays(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn the_nearest_setting_is_named() {
        let told = of(&["BOXWRIGHT_zzzz", "BOXWRIGHT_CONCURENT_JOBS"]);
        let hint = "did you mean BOXWRIGHT_CONCURRENT_JOBS?";
        assert!(told[0].ends_with(hint), "{told:?}");
        assert!(told[1].ends_with("--help lists the settings"), "{told:?}");
        // Only a file can have tables.
        assert_eq!(of(&["BOXWRIGHT_STRATEGY"]).len(), 1);
        assert_eq!(of(&["BOXWRIGHT_"]).len(), 1);
    }

    #[test]
    fn settings_and_what_others_read_are_not_told_of() {
        for key in KEYS.iter().filter(|key| key.is_flag()) {
            assert_eq!(of(&[&key.variable()]), [""; 0]);
        }
        for other in [
            "PATH",
            "XBOXWRIGHT_REMOTTE",
            "BOXWRIGHT_NO_SKIPS",
            "BOXWRIGHT_TEST_SKIPS",
            "BOXWRIGHT_SERVICE_HOST",
            "BOXWRIGHT_SERVICE_PORT",
            "BOXWRIGHT_SERVICE_PORT_GRPC",
            "BOXWRIGHT_PORT",
            "BOXWRIGHT_PORT_8980_TCP_ADDR",
            "BOXWRIGHT_WORKER_PORT_8980_TCP",
        ] {
            assert_eq!(of(&[other]), [""; 0]);
        }
    }

    /// The table follows the scripts.
    #[test]
    fn what_scripts_read_is_known() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut waiting: Vec<_> = [".ci", "tests", "benches", "Makefile"]
            .map(|at| root.join(at))
            .into();
        let mut found = 0;
        while let Some(at) = waiting.pop() {
            if at.is_dir() {
                waiting.extend(
                    std::fs::read_dir(&at)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else if at.extension().is_none() {
                let text = std::fs::read_to_string(&at).unwrap_or_default();
                let names = text.split(PREFIX).skip(1).map(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
                    format!("{PREFIX}{}", &rest[..end.unwrap_or(rest.len())])
                });
                let names: Vec<String> = names.filter(|name| name != PREFIX).collect();
                found += names.len();
                assert_eq!(strays(names.into_iter()), [""; 0], "{}", at.display());
            }
        }
        assert!(found > 5, "{found}");
    }
}
