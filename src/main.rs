//! The program: the sandbox's hidden entry points, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1).unwrap_or_default();
    if first == "sandbox-launcher" {
        boxwright::sandbox::process::launcher_main();
    }
    if first == "sandbox-probe" {
        boxwright::sandbox::linux::probe::child_main();
    }
    boxwright::cli::main()
}
