//! Platform properties: what an action asks of the worker, and whether the worker can give it.
//!
//! REAPI, Action.platform: "Servers SHOULD prefer those set here." Where the Action has a platform
//! the Command's is not read. A property that cannot be honoured is refused by its name and never
//! ignored, for a build that asked for it may come out wrong without it -- unless the operator
//! listed it as one to ignore.

use super::Ending;
use super::settings::Settings;
use crate::reapi::proto::re;
use crate::sandbox::Level;

/// The properties that count: the Action's if it has any, else the Command's.
pub(super) fn properties<'a>(
    action: &'a re::Action,
    command: &'a re::Command,
) -> &'a [re::platform::Property] {
    #[allow(deprecated)]
    let platform = action.platform.as_ref().or(command.platform.as_ref());
    platform.map_or(&[], |platform| platform.properties.as_slice())
}

/// Checks every property against what this worker offers.
pub(super) fn check(
    properties: &[re::platform::Property],
    settings: &Settings,
    level: Level,
) -> Result<(), Ending> {
    for property in properties {
        check_one(property, settings, level)?;
    }
    Ok(())
}

fn check_one(
    property: &re::platform::Property,
    settings: &Settings,
    level: Level,
) -> Result<(), Ending> {
    let (name, value) = (property.name.as_str(), property.value.as_str());
    let shown = format!("{}={}", shorten(name), shorten(value));
    if settings
        .ignored_properties
        .iter()
        .any(|ignored| ignored == name)
    {
        return Ok(());
    }
    let offered: Vec<&str> = settings
        .platform
        .iter()
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
        .collect();
    if offered.contains(&value) {
        return Ok(());
    }
    if !offered.is_empty() {
        return Err(Ending::Unsupported(format!(
            "platform property {shown}: this worker offers {name}={}",
            offered.join(&format!(" and {name}="))
        )));
    }
    match (name, value, level) {
        // Nothing takes the network away at this level, so having it is what one gets.
        ("network", "on", Level::Process) => Ok(()),
        ("network", _, Level::Process) => Err(Ending::Unsupported(format!(
            "platform property {shown}: sandbox level `process` cannot take the network away"
        ))),
        _ => Err(Ending::Unsupported(format!(
            "platform property {shown} is not known to this worker; start it with \
             --platform {shown} if it has what the property asks for, or with --ignore-property {} \
             to run such actions all the same",
            shorten(name)
        ))),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(name: &str, value: &str) -> re::platform::Property {
        re::platform::Property {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn the_action_s_platform_comes_first() {
        let of = |name: &str| {
            Some(re::Platform {
                properties: vec![property(name, "1")],
            })
        };
        let mut action = re::Action {
            platform: of("action"),
            ..Default::default()
        };
        #[allow(deprecated)]
        let command = re::Command {
            platform: of("command"),
            ..Default::default()
        };
        assert_eq!(properties(&action, &command)[0].name, "action");
        action.platform = None;
        assert_eq!(properties(&action, &command)[0].name, "command");
        action.platform = Some(re::Platform::default());
        assert!(properties(&action, &command).is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let settings = Settings {
            platform: vec![
                ("OSFamily".into(), "linux".into()),
                ("ISA".into(), "x86-64".into()),
                ("ISA".into(), "x86-32".into()),
            ],
            ignored_properties: vec!["container-image".into()],
            ..super::super::runner::tests::settings()
        };
        let ask =
            |name: &str, value: &str| check(&[property(name, value)], &settings, Level::Process);
        assert_eq!(ask("OSFamily", "linux"), Ok(()));
        assert_eq!(ask("ISA", "x86-32"), Ok(()));
        assert_eq!(ask("container-image", "docker://x"), Ok(()));
        assert_eq!(ask("network", "on"), Ok(()));
        for (name, value) in [
            ("OSFamily", "Linux"),
            ("network", "off"),
            ("unixUID", "1000"),
            ("osfamily", "linux"),
        ] {
            let Err(Ending::Unsupported(text)) = ask(name, value) else {
                panic!("{name}={value} was accepted")
            };
            assert!(text.contains(name) && text.contains(value), "{text}");
        }
    }
}
