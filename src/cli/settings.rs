//! The flags that are settings: made from the table in [`crate::config::keys`], so that help,
//! environment and file cannot disagree.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::exit::Failure;
use super::value::Checked;
use crate::config::keys::{Fallback, KEYS, Key, Program};
use crate::config::settings::{self, Layer};
use crate::config::value::{Kind, Value};
use crate::config::{Host, Origin, Settings, file};

/// The flags of `boxwright worker`.
#[derive(Debug)]
pub(super) struct WorkerFlags(Layer);

/// The flags of `boxwright standalone`.
#[derive(Debug)]
pub(super) struct StandaloneFlags(Layer);

macro_rules! flags {
    ($($flags:ident: $program:ident),*) => {$(
        impl Args for $flags {
            fn augment_args(command: Command) -> Command {
                augment(command, Program::$program)
            }
            fn augment_args_for_update(command: Command) -> Command {
                augment(command, Program::$program)
            }
        }
        impl FromArgMatches for $flags {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok($flags(collect(matches, Program::$program)))
            }
            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = collect(matches, Program::$program);
                Ok(())
            }
        }
        impl $flags {
            /// The settings in effect: these flags over the environment, the file and the defaults.
            pub(super) fn resolve(self, source: &Source) -> Result<Settings, Failure> {
                source.resolve(Program::$program, self.0)
            }
        }
    )*};
}

flags!(WorkerFlags: Worker, StandaloneFlags: Standalone);

/// Where else settings come from, and what to do with them.
#[derive(Debug, clap::Args)]
pub(super) struct Source {
    /// A TOML file with the names of the flags as keys; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check flags, environment and file, and exit: 0 if they are good, 78 if not
    #[arg(long)]
    pub(super) check_config: bool,
    /// Print every setting, where it came from, and exit
    #[arg(long)]
    pub(super) print_config: bool,
}

impl Source {
    fn resolve(&self, program: Program, flags: Layer) -> Result<Settings, Failure> {
        let environment = settings::environment(program, |name| std::env::var(name).ok())?;
        let mut layers = vec![flags, environment];
        if let Some(path) = &self.config {
            layers.push(file::load(path)?);
        }
        Ok(Settings::resolve(program, layers, &Host::here())?)
    }
}

fn augment(mut command: Command, program: Program) -> Command {
    for key in KEYS
        .iter()
        .filter(|key| key.is_for(program) && key.is_flag())
    {
        let action = match key.is_list() {
            true => ArgAction::Append,
            false => ArgAction::Set,
        };
        let mut arg = Arg::new(key.name)
            .long(key.name)
            .help(help(key))
            .help_heading(key.group)
            .value_name(key.kind.placeholder())
            .action(action)
            .value_parser(Checked::new(|text| key.kind.parse(text)));
        if key.kind == Kind::Bool {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        if key.name == "name" {
            arg = arg.visible_alias("bot-id-prefix");
        }
        command = command.arg(arg);
    }
    command
}

fn help(key: &Key) -> String {
    match key.default {
        Fallback::Is("") | Fallback::Unset => key.help.to_owned(),
        Fallback::Is(text) => format!("{} [default: {text}]", key.help),
        Fallback::From(other) => format!("{} [default: --{other}]", key.help),
        Fallback::Host(what) => format!("{} [default: {what}]", key.help),
    }
}

fn collect(matches: &ArgMatches, program: Program) -> Layer {
    let mut layer = Layer::new();
    for key in KEYS
        .iter()
        .filter(|key| key.is_for(program) && key.is_flag())
    {
        for value in matches.get_many::<Value>(key.name).into_iter().flatten() {
            settings::add(&mut layer, key.name, value.clone(), &Origin::Flag(key.name));
        }
    }
    layer
}
