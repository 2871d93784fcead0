//! Who we are to a scheduler: the bot's id, and the session message's `worker`.

use super::RwapiConfig;
use crate::reapi::proto::rw;

/// A bot id that nobody else has, now or after a restart.
///
/// BuildGrid closes a session when another is created under the same id, so two processes that
/// shared one would take each other's leases away for ever.
pub(super) fn bot_id(name: Option<&str>) -> String {
    let host;
    let name = match name {
        Some(name) if !name.is_empty() => name,
        _ => {
            host = nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            &host
        }
    };
    let name: String = name
        .chars()
        .take(128)
        .map(|c| {
            if c.is_ascii_graphic() && c != '/' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let random = uuid::Uuid::new_v4().simple();
    if name.is_empty() {
        format!("boxwright-{random}")
    } else {
        format!("{name}-{random}")
    }
}

/// The machine as the scheduler matches it: one device, whose properties are the platform.
///
/// Only the first device's properties are matched; `worker.properties` repeats them because
/// BuildBox's worker does, and servers were written against it. The labels are there only: among the
/// device's properties each would double the rows that BuildGrid keeps, and actions could ask for it.
pub(super) fn worker(bot_id: &str, config: &RwapiConfig, capacity: usize) -> rw::Worker {
    let entry = |key: &str, value: String| rw::worker::Config {
        key: key.to_owned(),
        value,
    };
    rw::Worker {
        devices: vec![rw::Device {
            handle: bot_id.to_owned(),
            properties: config
                .platform
                .iter()
                .map(|(key, value)| rw::device::Property {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
        }],
        properties: config
            .platform
            .iter()
            .chain(&config.labels)
            .map(|(key, value)| rw::worker::Property {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        configs: vec![
            entry("capacity", capacity.to_string()),
            entry("priority", config.priority.to_string()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_the_same_twice() {
        let ids = [
            bot_id(Some("a")),
            bot_id(Some("a")),
            bot_id(None),
            bot_id(Some("")),
        ];
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        assert!(ids[0].starts_with("a-"));
        assert!(bot_id(Some("a/b ä")).starts_with("a-b---"));
    }
}
