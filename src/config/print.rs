//! `--print-config`: every setting that is in effect and where it came from, as a file that can be
//! used as a configuration.

use std::fmt::Write;

use super::keys::KEYS;
use super::settings::{Entry, Layer, Settings};
use super::strategy::STRATEGY_KEYS;
use super::value::Value;

/// The column of origins.
const COLUMN: usize = 48;

/// The text.
pub fn render(settings: &Settings) -> String {
    let mut text = String::new();
    let mut group = "";
    for key in KEYS.iter().filter(|key| key.is_for(settings.program())) {
        if key.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = key.group;
            let _ = writeln!(text, "{gap}# {group}");
        }
        let _ = match settings.get(key.name) {
            Some(Entry {
                value: Value::Strategies(tables),
                ..
            }) => {
                tables.iter().for_each(|table| strategy(&mut text, table));
                Ok(())
            }
            Some(entry) => {
                let setting = format!("{} = {}", key.name, entry.value);
                writeln!(text, "{setting:COLUMN$} # {}", entry.origin)
            }
            None => {
                let setting = format!("# {}", key.name);
                writeln!(text, "{setting:COLUMN$} # not set")
            }
        };
    }
    text
}

/// One `[[strategy]]`, its keys in the order in which they are documented.
fn strategy(text: &mut String, table: &Layer) {
    let _ = writeln!(text, "[[strategy]]");
    for key in STRATEGY_KEYS {
        if let Some(entry) = table.get(key.name) {
            let setting = format!("{} = {}", key.name, entry.value);
            let _ = writeln!(text, "{setting:COLUMN$} # {}", entry.origin);
        }
    }
}
