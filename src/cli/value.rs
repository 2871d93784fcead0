//! Values on the command line. The parser of flags would show a refused value as it was given, and with
//! it the password that somebody wrote into an address: here the message is the check's own, which strikes it out.

use std::ffi::OsStr;

use clap::builder::{TypedValueParser, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

use crate::config::Endpoint;
use crate::config::endpoint::EndpointError;

/// A check as a parser of values.
#[derive(Clone)]
pub(super) struct Checked<F> {
    check: F,
}

impl<T, F> Checked<F>
where
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new(check: F) -> Self {
        Checked { check }
    }
}

impl<T, F> TypedValueParser for Checked<F>
where
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let checked = match value.to_str() {
            Some(text) => (self.check)(text),
            None => Err("it is not UTF-8 text".to_owned()),
        };
        checked.map_err(|why| {
            let name = arg.map_or_else(String::new, |arg| format!("{arg}: "));
            Error::raw(ErrorKind::ValueValidation, format!("{name}{why}\n")).with_cmd(command)
        })
    }
}

/// An address of a server.
pub(super) fn endpoint() -> ValueParser {
    ValueParser::new(Checked::new(|text: &str| {
        text.parse::<Endpoint>()
            .map_err(|e: EndpointError| e.to_string())
    }))
}
