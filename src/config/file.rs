//! The configuration file: TOML with the flags' names as keys.
//!
//! ```toml
//! remote = "http://build.example:50051"
//! concurrent-jobs = 8
//! cas-quota-high = "200G"
//! [platform]
//! OSFamily = "linux"
//! ISA = ["x86-64", "x86-32"]
//! ```
//!
//! An unknown key is an error, as is a key given twice or a value of another type: a setting that is
//! silently not in effect costs more than a daemon that does not start. No text makes [`parse`] panic.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Key};
use super::origin::{ConfigError, Origin};
use super::settings::{Entry, Layer};
use super::strategy::STRATEGY_KEYS;
use super::value::{self, Kind, Value, shorten};

/// A file is never larger than this; larger ones are refused unread.
pub const MAX_FILE: u64 = 1 << 20;

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Layer, ConfigError> {
    let unreadable = |why: String| ConfigError::Read {
        path: path.display().to_string(),
        why,
    };
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE + 1), &mut bytes)
        .map_err(|e| unreadable(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8 text".into()))?;
    parse_named(path, &text)
}

/// Checks a whole file given as text.
pub fn parse(text: &str) -> Result<Layer, ConfigError> {
    parse_named(Path::new("configuration"), text)
}

/// Like [`parse`]; messages call the file `path`.
pub fn parse_named(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let source = Source {
        path: Arc::new(path.to_owned()),
        text,
    };
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::Read {
            path: path.display().to_string(),
            why: format!("it is larger than {MAX_FILE} bytes"),
        });
    }
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: source.at(error.span().unwrap_or_default()),
        why: error.message().trim_end().to_owned(),
    })?;
    let mut layer = Layer::new();
    for (name, found) in table.get_ref() {
        let origin = source.at(name.span());
        let key = known(KEYS, name.get_ref(), &origin)?;
        let value = source.value(key, found)?;
        layer.insert(key.name, Entry { value, origin });
    }
    Ok(layer)
}

/// The key of this name in a table of keys.
fn known(table: &'static [Key], name: &str, origin: &Origin) -> Result<&'static Key, ConfigError> {
    let found = |name: &str| table.iter().find(|key| key.name == name);
    found(name).ok_or_else(|| ConfigError::Unknown {
        origin: origin.clone(),
        key: shorten(name),
        suggestion: keys::closest(name, table.iter().map(|key| key.name))
            .and_then(found)
            .map(|key| key.name),
    })
}

/// `--print-config` does not list what tables may say, so the message does.
fn in_a_strategy(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Unknown {
            origin,
            key,
            suggestion: None,
        } => {
            let names: Vec<&str> = STRATEGY_KEYS.iter().map(|key| key.name).collect();
            ConfigError::Value {
                origin,
                key: "strategy",
                why: format!("unknown key {key:?}; a table may have {}", names.join(", ")),
            }
        }
        other => other,
    }
}

struct Source<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
}

impl Source<'_> {
    fn at(&self, span: Range<usize>) -> Origin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        Origin::File {
            path: self.path.clone(),
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        }
    }

    fn refused(&self, key: &'static Key, span: Range<usize>, why: String) -> ConfigError {
        ConfigError::Value {
            origin: self.at(span),
            key: key.name,
            why,
        }
    }

    fn wrong_type(&self, key: &'static Key, found: &Spanned<DeValue<'_>>) -> ConfigError {
        let allowed = match key.kind {
            Kind::Pairs => {
                let table = match key.name {
                    "match" => "match = { KEY = \"VALUE\" }",
                    _ => "[platform] KEY = \"VALUE\"",
                };
                format!("a table ({table}) or a list of \"KEY=VALUE\"")
            }
            Kind::Names => "a list of names".to_owned(),
            Kind::Words(_) => format!("a list of {}", key.kind.allowed()),
            Kind::Number(..) | Kind::Bool | Kind::Strategies => key.kind.allowed(),
            Kind::Cpus => format!("{}, decimals in quotes", key.kind.allowed()),
            _ => format!("{}, in quotes", key.kind.allowed()),
        };
        let why = format!("expected {allowed}, found {}", found.get_ref().type_str());
        self.refused(key, found.span(), why)
    }

    fn value(&self, key: &'static Key, found: &Spanned<DeValue<'_>>) -> Result<Value, ConfigError> {
        let read = |text: &str| {
            key.kind
                .read(text)
                .map_err(|why| self.refused(key, found.span(), why))
        };
        match (&key.kind, found.get_ref()) {
            (Kind::Pairs, DeValue::Table(table)) => self.table(key, table),
            (Kind::Pairs | Kind::Names, DeValue::Array(list)) => self.list(key, list),
            (Kind::Pairs | Kind::Names, _) => Err(self.wrong_type(key, found)),
            (Kind::Strategies, DeValue::Array(tables)) => self.strategies(key, tables),
            (Kind::Strategies, _) => Err(self.wrong_type(key, found)),
            (Kind::Words(_), DeValue::Array(list)) => self.words(key, found, list),
            (Kind::Bool, DeValue::Boolean(yes)) => Ok(Value::Bool(*yes)),
            (Kind::Bool, _) => Err(self.wrong_type(key, found)),
            (Kind::Cpus, DeValue::Integer(number)) if number.radix() == 10 => read(number.as_str()),
            (Kind::Cpus, DeValue::Float(number)) => read(number.as_str()),
            (Kind::Number(..), DeValue::Integer(number)) => {
                match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => read(&number.to_string()),
                    Err(_) => read(number.as_str()),
                }
            }
            (Kind::Size | Kind::Amount, DeValue::Integer(number)) if number.radix() == 10 => {
                read(number.as_str())
            }
            (Kind::Number(..), _) => Err(self.wrong_type(key, found)),
            (_, DeValue::String(text)) => read(text),
            _ => Err(self.wrong_type(key, found)),
        }
    }

    fn list(&self, key: &'static Key, list: &[Spanned<DeValue<'_>>]) -> Result<Value, ConfigError> {
        let (mut pairs, mut names) = (Vec::new(), Vec::new());
        for item in list {
            let DeValue::String(text) = item.get_ref() else {
                return Err(self.wrong_type(key, item));
            };
            match key.kind.read(text) {
                Ok(Value::Pairs(more)) => pairs.extend(more),
                Ok(Value::Names(more)) => names.extend(more),
                Ok(_) => return Err(self.wrong_type(key, item)),
                Err(why) => return Err(self.refused(key, item.span(), why)),
            }
        }
        Ok(match key.kind {
            Kind::Pairs => Value::Pairs(pairs),
            _ => Value::Names(names),
        })
    }

    /// `["full", "process"]`, which is the same as `"full,process"`.
    fn words(
        &self,
        key: &'static Key,
        found: &Spanned<DeValue<'_>>,
        list: &[Spanned<DeValue<'_>>],
    ) -> Result<Value, ConfigError> {
        let mut words = Vec::new();
        for item in list {
            let DeValue::String(text) = item.get_ref() else {
                return Err(self.wrong_type(key, item));
            };
            words.push(text.as_ref());
        }
        let read = key.kind.read(&words.join(","));
        read.map_err(|why| self.refused(key, found.span(), why))
    }

    /// `[[strategy]]`, as often as one likes.
    fn strategies(
        &self,
        key: &'static Key,
        tables: &[Spanned<DeValue<'_>>],
    ) -> Result<Value, ConfigError> {
        let mut read = Vec::new();
        for item in tables {
            let DeValue::Table(table) = item.get_ref() else {
                return Err(self.wrong_type(key, item));
            };
            let mut layer = Layer::new();
            for (name, found) in table {
                let origin = self.at(name.span());
                let key = known(STRATEGY_KEYS, name.get_ref(), &origin).map_err(in_a_strategy)?;
                let value = self.value(key, found)?;
                layer.insert(key.name, Entry { value, origin });
            }
            read.push(layer);
        }
        Ok(Value::Strategies(read))
    }

    /// `[platform]`: a key's value is a text, or a list of them.
    fn table(&self, key: &'static Key, table: &DeTable<'_>) -> Result<Value, ConfigError> {
        let mut pairs = Vec::new();
        for (name, found) in table {
            let mut add = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) => {
                    let pair = value::pair(name.get_ref(), text)
                        .map_err(|why| self.refused(key, item.span(), why))?;
                    pairs.push(pair);
                    Ok(())
                }
                other => {
                    let why = format!(
                        "the value of {:?} is a text or a list of texts, found {}",
                        shorten(name.get_ref()),
                        other.type_str()
                    );
                    Err(self.refused(key, item.span(), why))
                }
            };
            match found.get_ref() {
                DeValue::Array(list) => list.iter().try_for_each(&mut add)?,
                _ => add(found)?,
            }
        }
        Ok(Value::Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_file_is_read() {
        let layer = parse(
            "remote = 'http://h:1'\nconcurrent-jobs = 0x10\ncas-quota-high = '200G'\n\
             cas-free-floor = 4096\nignore-property = ['a', 'b']\n\n\
             [platform]\nOSFamily = 'linux'\nISA = ['x86-64', 'x86-32']\n",
        )
        .unwrap();
        assert_eq!(layer["concurrent-jobs"].value, Value::Number(16));
        assert_eq!(
            layer["concurrent-jobs"].origin.to_string(),
            "configuration:2"
        );
        let Value::Pairs(pairs) = &layer["platform"].value else {
            panic!("not pairs")
        };
        assert_eq!(pairs.len(), 3);
        assert_eq!(layer["platform"].origin.to_string(), "configuration:7");
    }

    #[test]
    fn mistakes_are_named() {
        let mut said = String::new();
        for text in [
            "concurent-jobs = 8",
            "a = 1\nb = 2",
            "remote = 'x'\n\nremote = 'y'",
            "remote = 'localhost'",
            "concurrent-jobs = '8'",
            "concurrent-jobs = 0",
            "concurrent-jobs = -1",
            "concurrent-jobs = 99999999999999999999",
            "state-dir = 7",
            "state-dir = 'var'",
            "default-timeout = 30",
            "default-timeout = '30'",
            "cas-quota-high = '50 G'",
            "cas-quota-high = '150%'",
            "log-format = 'xml'",
            "log-level = 'verbose'",
            "platform = 'OSFamily=linux'",
            "platform = ['OSFamily']",
            "platform = [1]",
            "[platform]\nISA = { a = 1 }",
            "[platform]\nISA = ''",
            "[remotes]\nbots = 'http://h:1'",
            "remote = ",
            "\u{0}",
            "= = =",
            "sandbox = 'none'",
            "sandbox = ['full', 'full']",
            "sandbox = []",
            "sandbox = 1",
            "require-platform = 'yes'",
            "limit-cpus = true",
            "limit-cpus = 0.001",
            "strategy = 'x'",
            "strategy = ['x']",
            "[strategy]\nmatch = {}",
            "[[strategy]]\nlevel = ['full']",
            "[[strategy]]\nmatch = 'pool=big'",
            "[[strategy]]\nmatch = { pool = 1 }",
            "\n[[strategy]]\nmatch = { pool = 'big' }\n[[strategy]]\nnetwork = 'none'",
            "[[strategy]]\nmemory = '200%'",
            "[[strategy]]\nsandbox = 'full'",
        ] {
            said += &format!("{text:?}\n  {}\n", parse(text).unwrap_err());
        }
        insta::assert_snapshot!(said);
    }

    #[test]
    fn a_huge_file_is_refused() {
        let error = parse(&"#".repeat(MAX_FILE as usize + 1)).unwrap_err();
        assert!(error.to_string().contains("larger"), "{error}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        for text in [
            format!("platform = {}", "[".repeat(100_000)),
            format!("platform = {}", "{a=".repeat(50_000)),
            format!("{} = 1", vec!["a"; 50_000].join(".")),
        ] {
            assert!(parse(&text).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\\n|=|\\[|\\]|'|\"|#){0,120}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_value_panics(index in 0..KEYS.len(), value in "\\PC{0,30}") {
            let _ = parse(&format!("{} = {value}", KEYS[index].name));
            let _ = parse(&format!("{} = '''{value}'''", KEYS[index].name));
        }
    }
}
