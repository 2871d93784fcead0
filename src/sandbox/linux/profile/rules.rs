//! Rules about system calls, from TOML to [`Rule`]s.

use serde::Deserialize;
use toml::Spanned;

use super::error::{ProfileError, closest};
use super::seccomp::{Action, Check, Rule, Test, Width, constants, syscalls};
use super::sources::Source;

/// A file of `seccomp/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupText {
    #[serde(rename = "description")]
    _description: String,
    rule: Vec<RuleText>,
}

/// `[[rule]]`. A rule without a reason is not accepted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleText {
    calls: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    when: Vec<Spanned<TestText>>,
    action: Spanned<String>,
    reason: Spanned<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TestText {
    int: Option<u8>,
    long: Option<u8>,
    mask: Option<Vec<Number>>,
    r#in: Option<Vec<Number>>,
    not_in: Option<Vec<Number>>,
    any_bit: Option<Vec<Number>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a number, or a constant's name in quotes")]
enum Number {
    Value(u64),
    Name(String),
}

/// Values that one condition may list: each costs a step of the program.
const MAX_VALUES: usize = 64;

/// The rules of a group.
pub(super) fn group(source: &Source) -> Result<Vec<Rule>, ProfileError> {
    let text: GroupText = source.parse()?;
    text.rule.iter().map(|rule| read(source, rule)).collect()
}

/// Checks one rule.
pub(super) fn read(source: &Source, text: &RuleText) -> Result<Rule, ProfileError> {
    let wrong = |key: &str, span, why: &str| ProfileError::Value {
        at: source.at(span),
        key: key.to_owned(),
        why: why.to_owned(),
    };
    if text.calls.get_ref().is_empty() {
        return Err(wrong("calls", text.calls.span(), "there is no call in it"));
    }
    if text.reason.get_ref().trim().is_empty() {
        return Err(wrong("reason", text.reason.span(), "say why"));
    }
    let call = |name: &Spanned<String>| {
        syscalls::known(name.get_ref()).ok_or_else(|| ProfileError::UnknownName {
            at: source.at(name.span()),
            what: "system call",
            name: name.get_ref().clone(),
            suggestion: closest(name.get_ref(), syscalls::names()),
        })
    };
    let calls = text.calls.get_ref().iter().map(call);
    let when = text.when.iter().map(|test| read_test(source, test));
    Ok(Rule {
        calls: calls.collect::<Result<_, _>>()?,
        when: when.collect::<Result<_, _>>()?,
        action: action(source, &text.action)?,
    })
}

/// Reads `allow`, `kill` or an error's name.
pub(super) fn action(source: &Source, text: &Spanned<String>) -> Result<Action, ProfileError> {
    let known = || ["allow", "kill"].into_iter().chain(constants::errnos());
    Action::read(text.get_ref()).ok_or_else(|| ProfileError::UnknownName {
        at: source.at(text.span()),
        what: "action (allow, kill or an error)",
        name: text.get_ref().clone(),
        suggestion: closest(text.get_ref(), known()),
    })
}

fn read_test(source: &Source, text: &Spanned<TestText>) -> Result<Test, ProfileError> {
    let at = || source.at(text.span());
    let wrong = |why: &str| ProfileError::Value {
        at: at(),
        key: "when".to_owned(),
        why: why.to_owned(),
    };
    let test = text.get_ref();
    let (argument, width) = match (test.int, test.long) {
        (Some(argument), None) => (argument, Width::Int),
        (None, Some(argument)) => (argument, Width::Long),
        _ => {
            return Err(wrong(
                "name one argument: `int = N` if the kernel reads 32 bits of it, `long = N` if it reads 64",
            ));
        }
    };
    if argument > 5 {
        return Err(wrong("arguments are numbered 0 to 5"));
    }
    let whole = width.cut(u64::MAX);
    let number = |number: &Number| -> Result<u64, ProfileError> {
        let value = match number {
            Number::Value(value) => *value,
            Number::Name(names) => sum(names, at)?,
        };
        match value & !whole {
            0 => Ok(value),
            _ => Err(wrong(
                "a value of more than 32 bits is never that of an `int`",
            )),
        }
    };
    let numbers = |list: &Option<Vec<Number>>| -> Result<Option<Vec<u64>>, ProfileError> {
        let Some(list) = list else { return Ok(None) };
        if list.is_empty() || list.len() > MAX_VALUES {
            return Err(wrong(&format!("a list has 1 to {MAX_VALUES} values")));
        }
        list.iter().map(number).collect::<Result<_, _>>().map(Some)
    };
    let bits = |list: Vec<u64>| list.iter().fold(0, |all, bit| all | bit);
    let mask = numbers(&test.mask)?.map(bits);
    let within = |values: Vec<u64>| match values
        .iter()
        .all(|value| value & !mask.unwrap_or(whole) == 0)
    {
        true => Ok((mask.unwrap_or(whole), values)),
        false => Err(wrong(
            "a value has bits that the mask takes away: it can never be met",
        )),
    };
    let check = match (
        numbers(&test.r#in)?,
        numbers(&test.not_in)?,
        numbers(&test.any_bit)?,
    ) {
        (Some(values), None, None) => {
            let (mask, values) = within(values)?;
            Check::In { mask, values }
        }
        (None, Some(values), None) => {
            let (mask, values) = within(values)?;
            Check::NotIn { mask, values }
        }
        (None, None, Some(list)) if mask.is_none() => match bits(list) {
            0 => return Err(wrong("`any-bit` without a bit is never met")),
            bits => Check::AnyBit(bits),
        },
        (None, None, Some(_)) => return Err(wrong("`any-bit` takes no mask")),
        _ => return Err(wrong("give one of `in`, `not-in` and `any-bit`")),
    };
    Ok(Test {
        argument,
        width,
        check,
    })
}

/// The value of `A` or `A|B`.
fn sum(names: &str, at: impl Fn() -> super::Place) -> Result<u64, ProfileError> {
    names.split('|').map(str::trim).try_fold(0, |all, name| {
        let value = constants::value(name).ok_or_else(|| ProfileError::UnknownName {
            at: at(),
            what: "constant",
            name: name.to_owned(),
            suggestion: closest(name, constants::names()),
        })?;
        Ok(all | value)
    })
}
