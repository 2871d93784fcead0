//! Platform properties: what an action asks of the worker, and whether the worker can give it.
//!
//! REAPI, Action.platform: "Servers SHOULD prefer those set here." Where the Action has a platform
//! the Command's is not read. A property that cannot be honoured is refused by its name and never
//! ignored, for a build that asked for it may come out wrong without it -- unless the operator
//! listed it as one to ignore.
//!
//! The properties choose a [`Strategy`]; those of [`asked`] narrow it; what comes out is a [`Demand`]. All others are labels:
//! they must be among those that the worker offers, or that the strategy matches.

mod asked;
mod demand;
pub(super) mod read_only;
mod strategy;

pub use asked::INPUT_REPORT;
pub(super) use demand::Demand;
pub use strategy::{Strategies, Strategy};

use super::Ending;
use super::settings::Settings;
use crate::reapi::DigestFunction;
use crate::reapi::proto::re;
use crate::sandbox::Level;
use asked::Asked;

/// The properties that count, as far as they are known: the Action's if it has any, else the Command's.
pub(super) fn properties<'a>(
    action: &'a re::Action,
    command: Option<&'a re::Command>,
) -> &'a [re::platform::Property] {
    #[allow(deprecated)]
    let of_command = || command.and_then(|command| command.platform.as_ref());
    let platform = action.platform.as_ref().or_else(of_command);
    platform.map_or(&[], |platform| platform.properties.as_slice())
}

/// Finds out what an action with these properties gets at a worker that has the levels `there`.
pub(super) fn demand(
    properties: &[re::platform::Property],
    settings: &Settings,
    function: DigestFunction,
    there: &[Level],
) -> Result<Demand, Ending> {
    let Some(strategy) = settings.strategies.of(properties) else {
        return Err(Ending::Unsupported(undeclared(properties)));
    };
    let mut asked = Asked::default();
    for property in properties {
        let name = property.name.as_str();
        if settings.ignored_properties.iter().any(|i| i == name) {
            continue;
        }
        let known = asked
            .read(name, &property.value, function)
            .map_err(|why| unsupported(property, &why))?;
        check_label(property, settings, known || strategy.names(property))?;
    }
    Demand::new(strategy, asked, there).map_err(Ending::Unsupported)
}

/// Whether the operator wants this node property of input trees to be ignored.
pub(super) fn ignores_read_only(settings: &Settings) -> bool {
    settings
        .ignored_properties
        .iter()
        .any(|i| i == read_only::NAME)
}

/// A name that the worker offers has one of the values that it offers; one that it does not is fine if it is `known`
/// otherwise.
fn check_label(
    property: &re::platform::Property,
    settings: &Settings,
    known: bool,
) -> Result<(), Ending> {
    let name = property.name.as_str();
    let offered: Vec<&str> = (settings.platform.iter())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
        .collect();
    if offered.contains(&property.value.as_str()) || (offered.is_empty() && known) {
        return Ok(());
    }
    if !offered.is_empty() {
        let offers = offered.join(&format!(" and {name}="));
        return Err(unsupported(
            property,
            &format!("this worker offers {name}={offers}"),
        ));
    }
    Err(Ending::Unsupported(format!(
        "platform property {shown} is not known to this worker; start it with \
         --platform {shown} if it has what the property asks for, or with --ignore-property {} \
         to run such actions all the same",
        shorten(name),
        shown = shown(property)
    )))
}

fn undeclared(properties: &[re::platform::Property]) -> String {
    let mut asked: Vec<String> = properties.iter().take(20).map(shown).collect();
    if properties.len() > asked.len() {
        asked.push("...".to_owned());
    }
    let platform = match asked.is_empty() {
        true => "an action without platform properties".to_owned(),
        false => format!("the platform {}", asked.join(" ")),
    };
    format!(
        "{platform} matches no strategy of this worker, which runs no others (require-platform); \
         a [[strategy]] in its configuration file declares one"
    )
}

fn unsupported(property: &re::platform::Property, why: &str) -> Ending {
    Ending::Unsupported(format!("platform property {}: {why}", shown(property)))
}

fn shown(property: &re::platform::Property) -> String {
    format!("{}={}", shorten(&property.name), shorten(&property.value))
}

fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn property(name: &str, value: &str) -> re::platform::Property {
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
        assert_eq!(properties(&action, Some(&command))[0].name, "action");
        action.platform = None;
        assert_eq!(properties(&action, Some(&command))[0].name, "command");
        action.platform = Some(re::Platform::default());
        assert!(properties(&action, Some(&command)).is_empty());
    }

    fn settings() -> Settings {
        Settings {
            platform: vec![
                ("OSFamily".into(), "linux".into()),
                ("ISA".into(), "x86-64".into()),
                ("ISA".into(), "x86-32".into()),
                ("unixUID".into(), "1000".into()),
            ],
            ignored_properties: vec!["container-image".into(), "pids".into()],
            strategies: Strategies::at(&Level::ALL),
            ..super::super::runner::tests::settings()
        }
    }

    fn ask(settings: &Settings, pairs: &[(&str, &str)]) -> Result<Demand, Ending> {
        let properties: Vec<_> = pairs.iter().map(|(k, v)| property(k, v)).collect();
        demand(&properties, settings, DigestFunction::Sha256, &Level::ALL)
    }

    fn refusal(settings: &Settings, pairs: &[(&str, &str)]) -> String {
        match ask(settings, pairs) {
            Err(Ending::Unsupported(text)) => text,
            other => panic!("{pairs:?}: {other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let settings = settings();
        for good in [
            ("OSFamily", "linux"),
            ("ISA", "x86-32"),
            ("container-image", "docker://x"),
            ("network", "off"),
            ("unixGID", "0"),
        ] {
            ask(&settings, &[good]).unwrap();
        }
        for (name, value) in [
            ("OSFamily", "Linux"),
            ("network", "on"),
            ("network", "maybe"),
            ("osfamily", "linux"),
            ("unixuid", "1000"),
            ("sandbox-profile", "debug"),
            ("dockerNetwork", "off"),
        ] {
            let text = refusal(&settings, &[(name, value)]);
            assert!(text.contains(name) && text.contains(value), "{text}");
        }
    }

    #[test]
    fn a_property_that_is_offered_is_acted_upon_all_the_same() {
        let settings = settings();
        assert_eq!(
            ask(&settings, &[("unixUID", "1000")])
                .unwrap()
                .view
                .user
                .uid,
            1000
        );
        assert!(refusal(&settings, &[("unixUID", "1001")]).contains("offers unixUID=1000"));
    }

    #[test]
    fn an_ignored_property_is_ignored_whatever_its_value() {
        let demand = ask(&settings(), &[("pids", "many")]).unwrap();
        assert_eq!(demand.limits.pids, None);
    }

    #[test]
    fn undeclared_platforms_are_refused_where_they_must_be_declared() {
        let mut settings = settings();
        settings.strategies.required = true;
        settings.strategies.declared.push(Strategy {
            matches: vec![("pool".into(), vec!["big".into()])],
            ..Strategy::at(&[Level::Full])
        });
        ask(&settings, &[("pool", "big"), ("ISA", "x86-64")]).unwrap();
        assert!(refusal(&settings, &[("pool", "small")]).contains("pool=small"));
        assert!(refusal(&settings, &[]).contains("without platform properties"));
        // A strategy makes its own properties known, and no others.
        assert!(refusal(&settings, &[("pool", "big"), ("rack", "7")]).contains("rack=7"));
    }
}
