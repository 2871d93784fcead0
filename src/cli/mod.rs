//! The command line: one file per subcommand, and the codes with which they end ([`exit`]).

mod blobs;
mod cas;
mod daemon;
mod doctor;
mod exit;
mod inputs;
mod materialise;
mod memory;
mod mount;
mod progress;
mod ready;
mod remote;
mod run;
mod sandboxes;
mod settings;
mod standalone;
mod value;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;

const CODES: &str = "\
Exit codes: 0 done, for a daemon drained; 1 failed; 2 wrong usage; 65 the server refused the data; \
66 an input cannot be read; 69 a remote or an address is not available; 70 infrastructure failed; \
73 an output cannot be written; 74 a stream broke; 75 try again (state directory in use, server full, blobs lost); \
76 the server lacks a service; 77 permission denied; 78 the configuration is wrong. \
`run` ends with the command's own code; then nothing of the above applies, and nothing is printed by boxwright itself.";

/// A sandboxed remote worker: takes build actions from a scheduler, runs them, returns their outputs
#[derive(Debug, Parser)]
#[command(name = "boxwright", version, max_term_width = 110, after_help = CODES)]
struct CommandLine {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Worker(worker::WorkerCommand),
    Standalone(standalone::StandaloneCommand),
    Run(run::RunCommand),
    Cas(cas::CasCommand),
    Doctor(doctor::DoctorCommand),
    Mount(mount::MountCommand),
}

/// Runs the program; called before any thread exists.
pub fn main() -> ExitCode {
    memory::frugal();
    let done = match CommandLine::parse().what {
        What::Worker(command) => command.run(),
        What::Standalone(command) => command.run(),
        What::Run(command) => command.run(),
        What::Cas(command) => command.run(),
        What::Doctor(command) => command.run(),
        What::Mount(command) => command.run(),
    };
    done.unwrap_or_else(|failure| exit::tell(&failure))
}

/// How a subcommand ends.
type Done = Result<ExitCode, Failure>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn help_is_as_printed() {
        let mut command = CommandLine::command().term_width(100);
        command.build();
        insta::assert_snapshot!("boxwright", command.render_long_help());
        for path in [
            vec!["worker"],
            vec!["standalone"],
            vec!["run"],
            vec!["cas"],
            vec!["cas", "put"],
            vec!["cas", "get"],
            vec!["cas", "tree"],
            vec!["cas", "stat"],
            vec!["doctor"],
            vec!["mount"],
        ] {
            let mut found = &mut command;
            for name in &path {
                found = found.find_subcommand_mut(name).unwrap();
            }
            let help = found.clone().term_width(100).render_help().to_string();
            // The default names depend on nothing of this host.
            insta::assert_snapshot!(path.join("-"), help);
        }
    }
}
