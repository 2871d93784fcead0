//! The program: the sandbox's hidden entry point, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    boxwright::sandbox::launcher_main();
    boxwright::cli::main()
}
