//! The program: the sandbox's hidden entry point, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "sandbox-launcher")
    {
        boxwright::sandbox::process::launcher_main();
    }
    boxwright::cli::main()
}
