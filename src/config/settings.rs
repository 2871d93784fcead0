//! Layers of settings, laid over one another: a flag goes before the environment, that before the
//! file, that before the default. What results knows of every value where it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{self, Fallback, KEYS, Key, Program};
use super::origin::{ConfigError, Origin};
use super::units::Amount;
use super::value::Value;
use super::{Endpoint, Listen};

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// What one source says, by key.
pub type Layer = BTreeMap<&'static str, Entry>;

/// What the defaults need to know of this host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Processors that this process may use.
    pub processors: u64,
    /// The host's name.
    pub name: String,
    /// Its instruction set, as the platform lexicon of REAPI calls it.
    pub isa: String,
    /// Where a daemon of this user keeps its state, if the user has a place for that.
    pub state_dir: Option<PathBuf>,
}

/// Every setting of a program.
#[derive(Clone, Debug)]
pub struct Settings {
    program: Program,
    entries: Layer,
}

/// What the environment says: `BOXWRIGHT_` and the key in capitals, `-` as `_`. Of variables that are no
/// setting's [`strays`](super::strays) tells.
pub fn environment(
    program: Program,
    variables: impl Fn(&str) -> Option<String>,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for key in KEYS
        .iter()
        .filter(|key| key.is_for(program) && key.is_flag())
    {
        let variable = key.variable();
        let Some(text) = variables(&variable) else {
            continue;
        };
        let origin = Origin::Env(variable);
        let values = match key.is_list() {
            true => text.split_whitespace().map(str::to_owned).collect(),
            false => vec![text],
        };
        for text in values {
            let value = key.kind.parse(&text).map_err(|why| ConfigError::Value {
                origin: origin.clone(),
                key: key.name,
                why,
            })?;
            add(&mut layer, key.name, value, &origin);
        }
    }
    Ok(layer)
}

/// Puts a value into a layer; lists grow, others are replaced.
pub fn add(layer: &mut Layer, key: &'static str, value: Value, origin: &Origin) {
    match (layer.get_mut(key).map(|entry| &mut entry.value), value) {
        (Some(Value::Pairs(pairs)), Value::Pairs(more)) => pairs.extend(more),
        (Some(Value::Names(names)), Value::Names(more)) => names.extend(more),
        (_, value) => {
            let origin = origin.clone();
            layer.insert(key, Entry { value, origin });
        }
    }
}

impl Settings {
    /// Lays the layers over the defaults, the strongest first.
    pub fn resolve(program: Program, layers: Vec<Layer>, host: &Host) -> Result<Self, ConfigError> {
        let mut entries = Layer::new();
        for layer in layers {
            for (name, entry) in layer {
                if let Some(key) = keys::find(name).filter(|key| !key.is_for(program)) {
                    return Err(ConfigError::Elsewhere {
                        origin: entry.origin,
                        key: key.name,
                        of: key.only.map_or("", Program::name),
                        program: program.name(),
                    });
                }
                entries.entry(name).or_insert(entry);
            }
        }
        let mut settings = Settings { program, entries };
        for key in KEYS.iter().filter(|key| key.is_for(program)) {
            settings.fill(key, host)?;
        }
        Ok(settings)
    }

    fn fill(&mut self, key: &'static Key, host: &Host) -> Result<(), ConfigError> {
        if key.name == "platform" {
            self.fill_platform(host);
        }
        if self.entries.contains_key(key.name) {
            return Ok(());
        }
        let entry = match key.default {
            Fallback::Unset => return Ok(()),
            Fallback::From(other) => match self.entries.get(other) {
                Some(entry) => Entry {
                    value: entry.value.clone(),
                    origin: Origin::From(other),
                },
                None => return Ok(()),
            },
            Fallback::Is("") if key.is_list() => Entry {
                value: Value::Names(Vec::new()),
                origin: Origin::Default,
            },
            Fallback::Is(text) => Entry {
                value: key
                    .kind
                    .read(text)
                    .map_err(|why| self.refuse(key.name, why))?,
                origin: Origin::Default,
            },
            Fallback::Host(_) => match self.look_up(key, host)? {
                Some(entry) => entry,
                None => return Ok(()),
            },
        };
        self.entries.insert(key.name, entry);
        Ok(())
    }

    /// `OSFamily` and `ISA` describe this host unless the operator described it.
    fn fill_platform(&mut self, host: &Host) {
        let mut pairs = Vec::new();
        let given = self.entries.get("platform");
        if let Some(Entry {
            value: Value::Pairs(given),
            ..
        }) = given
        {
            pairs.clone_from(given);
        }
        let origin = given.map_or(Origin::Default, |entry| entry.origin.clone());
        for (key, value) in [("OSFamily", "linux"), ("ISA", host.isa.as_str())] {
            if !pairs.iter().any(|(known, _)| known == key) {
                pairs.push((key.to_owned(), value.to_owned()));
            }
        }
        pairs.sort();
        let value = Value::Pairs(pairs);
        self.entries.insert("platform", Entry { value, origin });
    }

    fn look_up(&self, key: &'static Key, host: &Host) -> Result<Option<Entry>, ConfigError> {
        let mut origin = Origin::Default;
        let value = match key.name {
            "name" => Value::Text(host.name.clone()),
            "concurrent-jobs" => Value::Number(host.processors.clamp(1, 1024)),
            "state-dir" => match &host.state_dir {
                Some(path) => Value::Path(path.clone()),
                None => return Ok(None),
            },
            "cas-quota-low" => {
                let high = self.entries.get("cas-quota-high").map(|entry| &entry.value);
                let high = match high {
                    Some(Value::Amount(high)) => *high,
                    _ => return Ok(None),
                };
                origin = Origin::From("cas-quota-high");
                Value::Amount(match high {
                    Amount::Bytes(bytes) => Amount::Bytes((u128::from(bytes) * 9 / 10) as u64),
                    Amount::Percent(percent) => Amount::Percent(percent - percent.div_ceil(10)),
                })
            }
            _ => return Ok(None),
        };
        Ok(Some(Entry { value, origin }))
    }

    /// Whose settings these are.
    pub fn program(&self) -> Program {
        self.program
    }

    /// What is set, if anything.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// An error about a value that is in effect.
    pub fn refuse(&self, key: &'static str, why: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            origin: self
                .entries
                .get(key)
                .map_or(Origin::Default, |entry| entry.origin.clone()),
            key,
            why: why.into(),
        }
    }

    /// An address, if one is set.
    pub fn url(&self, key: &'static str) -> Option<Endpoint> {
        match &self.get(key)?.value {
            Value::Url(url) => Some(url.clone()),
            _ => None,
        }
    }

    /// An address to listen on, if one is set.
    pub fn listen(&self, key: &'static str) -> Option<Listen> {
        match &self.get(key)?.value {
            Value::Listen(listen) => Some(listen.clone()),
            _ => None,
        }
    }

    /// A text; empty if none is set.
    pub fn text(&self, key: &'static str) -> String {
        match self.get(key).map(|entry| &entry.value) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    /// A number, if one is set.
    pub fn number(&self, key: &'static str) -> Option<u64> {
        match self.get(key)?.value {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    /// An amount of disk, if one is set.
    pub fn amount(&self, key: &'static str) -> Option<Amount> {
        match self.get(key)?.value {
            Value::Amount(amount) => Some(amount),
            _ => None,
        }
    }

    /// A size in bytes, if one is set.
    pub fn size(&self, key: &'static str) -> Option<u64> {
        match self.amount(key)? {
            Amount::Bytes(bytes) => Some(bytes),
            Amount::Percent(_) => None,
        }
    }

    /// Thousandths of processors, if any are set.
    pub fn cpus(&self, key: &'static str) -> Option<u64> {
        match self.get(key)?.value {
            Value::Cpus(milli) => Some(milli),
            _ => None,
        }
    }

    /// Whether it is set and true.
    pub fn flag(&self, key: &'static str) -> bool {
        matches!(
            self.get(key),
            Some(Entry {
                value: Value::Bool(true),
                ..
            })
        )
    }

    /// What each `[[strategy]]` table says, in order.
    pub fn strategies(&self) -> &[Layer] {
        match self.get("strategy").map(|entry| &entry.value) {
            Some(Value::Strategies(tables)) => tables,
            _ => &[],
        }
    }

    /// A length of time; `None` if none is set or `none` was said.
    pub fn time(&self, key: &'static str) -> Option<Duration> {
        match self.get(key)?.value {
            Value::Time(length) => length,
            _ => None,
        }
    }

    /// A directory or file, if one is set.
    pub fn path(&self, key: &'static str) -> Option<PathBuf> {
        match &self.get(key)?.value {
            Value::Path(path) => Some(path.clone()),
            _ => None,
        }
    }

    /// Properties; empty if none are set.
    pub fn pairs(&self, key: &'static str) -> Vec<(String, String)> {
        match self.get(key).map(|entry| &entry.value) {
            Some(Value::Pairs(pairs)) => pairs.clone(),
            _ => Vec::new(),
        }
    }

    /// Names; empty if none are set.
    pub fn names(&self, key: &'static str) -> Vec<String> {
        match self.get(key).map(|entry| &entry.value) {
            Some(Value::Names(names)) => names.clone(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn host() -> Host {
        Host {
            processors: 4,
            name: "builder7".into(),
            isa: "x86-64".into(),
            state_dir: Some("/var/lib/boxwright".into()),
        }
    }

    fn layer(key: &'static str, text: &str, origin: &Origin) -> Layer {
        let mut layer = Layer::new();
        add(
            &mut layer,
            key,
            keys::find(key).unwrap().kind.parse(text).unwrap(),
            origin,
        );
        layer
    }

    #[test]
    fn the_strongest_layer_wins() {
        let file = super::super::file::parse("concurrent-jobs = 3\nname = 'file'").unwrap();
        let flags = layer("concurrent-jobs", "9", &Origin::Flag("concurrent-jobs"));
        let environment = environment(Program::Standalone, |name| match name {
            "BOXWRIGHT_CONCURRENT_JOBS" => Some("7".into()),
            "BOXWRIGHT_NAME" => Some("env".into()),
            _ => None,
        })
        .unwrap();
        let settings =
            Settings::resolve(Program::Standalone, vec![flags, environment, file], &host())
                .unwrap();
        assert_eq!(settings.number("concurrent-jobs"), Some(9));
        assert_eq!(settings.text("name"), "env");
        assert_eq!(
            settings.get("name").unwrap().origin.to_string(),
            "environment BOXWRIGHT_NAME"
        );
    }

    #[test]
    fn the_platform_is_completed_but_never_contradicted() {
        let of = |text: &str| {
            let flags = layer("platform", text, &Origin::Flag("platform"));
            Settings::resolve(Program::Worker, vec![flags], &host())
                .unwrap()
                .pairs("platform")
        };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            of("ISA=rv64g"),
            [pair("ISA", "rv64g"), pair("OSFamily", "linux")]
        );
        assert_eq!(of("pool=a").len(), 3);
    }

    #[test]
    fn keys_of_the_other_program_are_refused() {
        let file = super::super::file::parse("listen = '127.0.0.1:1'").unwrap();
        let error = Settings::resolve(Program::Worker, vec![file], &host()).unwrap_err();
        assert!(
            error.to_string().contains("boxwright standalone"),
            "{error}"
        );
    }
}
