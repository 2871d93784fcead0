//! Strategies: which isolation an action of a platform may get, and within which bounds. The first one that
//! matches counts, after Bazel's spawn strategies that are scoped by execution platform.

use std::sync::Arc;
use std::time::Duration;

use crate::config::NetworkPolicy;
use crate::reapi::proto::re;
use crate::sandbox::{DEFAULT_PROFILE, Level, Limits, RootShape};

/// What the operator decided for the actions of one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// What an action must ask for to be one of them: each key with one of its values. Empty matches every action.
    pub matches: Vec<(String, Vec<String>)>,
    /// The levels that may be used, the preferred one first. No other is.
    pub levels: Vec<Level>,
    /// Where the input root is.
    pub root: RootShape,
    /// Who gets the host's network.
    pub network: NetworkPolicy,
    /// The profile of actions that ask for none.
    pub profile: Arc<str>,
    /// The profiles that actions may ask for.
    pub profiles: Vec<Arc<str>>,
    /// What every action is limited to; one may ask for less, never for more.
    pub limits: Limits,
    /// The longest timeout; actions that ask for a longer one are refused.
    pub timeout: Option<Duration>,
}

impl Default for Strategy {
    fn default() -> Self {
        Strategy {
            matches: Vec::new(),
            levels: vec![Level::Full],
            root: RootShape::default(),
            network: NetworkPolicy::Off,
            profile: DEFAULT_PROFILE.into(),
            profiles: Vec::new(),
            limits: Limits::default(),
            timeout: None,
        }
    }
}

impl Strategy {
    /// Nothing special, at these levels.
    pub fn at(levels: &[Level]) -> Self {
        Strategy {
            levels: levels.to_vec(),
            ..Strategy::default()
        }
    }

    /// Whether it names the property.
    pub(super) fn names(&self, property: &re::platform::Property) -> bool {
        self.matches
            .iter()
            .any(|(key, values)| *key == property.name && values.contains(&property.value))
    }

    fn is_for(&self, properties: &[re::platform::Property]) -> bool {
        self.matches.iter().all(|(key, values)| {
            properties
                .iter()
                .any(|asked| asked.name == *key && values.contains(&asked.value))
        })
    }
}

/// All strategies of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strategies {
    /// The declared ones; the first that matches counts.
    pub declared: Vec<Strategy>,
    /// For actions that none of those matches.
    pub base: Strategy,
    /// Whether actions that no declared one matches are refused instead.
    pub required: bool,
}

impl Strategies {
    /// Nothing special, at these levels.
    pub fn at(levels: &[Level]) -> Self {
        Strategies {
            base: Strategy::at(levels),
            ..Strategies::default()
        }
    }

    /// The strategy of an action with these properties; `None` if it must be refused.
    pub(super) fn of(&self, properties: &[re::platform::Property]) -> Option<&Strategy> {
        let declared = self.declared.iter().find(|s| s.is_for(properties));
        declared.or((!self.required).then_some(&self.base))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::property;
    use super::*;

    #[test]
    fn the_first_match_counts() {
        let strategy = |pairs: &[(&str, &[&str])], level| Strategy {
            matches: pairs
                .iter()
                .map(|(key, values)| {
                    let values = values.iter().map(|v| (*v).to_owned()).collect();
                    ((*key).to_owned(), values)
                })
                .collect(),
            ..Strategy::at(&[level])
        };
        let mut strategies = Strategies {
            declared: vec![
                strategy(
                    &[("pool", &["big", "huge"]), ("ISA", &["x86-64"])],
                    Level::Process,
                ),
                strategy(&[("pool", &["big"])], Level::Full),
            ],
            ..Strategies::at(&[Level::Full, Level::Process])
        };
        let of = |strategies: &Strategies, pairs: &[(&str, &str)]| {
            let properties: Vec<_> = pairs.iter().map(|(k, v)| property(k, v)).collect();
            strategies.of(&properties).map(|s| s.levels.clone())
        };
        let huge = [("ISA", "x86-64"), ("pool", "huge")];
        assert_eq!(of(&strategies, &huge), Some(vec![Level::Process]));
        assert_eq!(of(&strategies, &[("pool", "big")]), Some(vec![Level::Full]));
        let both = Some(vec![Level::Full, Level::Process]);
        assert_eq!(of(&strategies, &[("pool", "huge")]), both);
        assert_eq!(of(&strategies, &[]), both);
        strategies.required = true;
        assert_eq!(of(&strategies, &[("pool", "huge")]), None);
        assert_eq!(of(&strategies, &huge), Some(vec![Level::Process]));
    }
}
