//! The program: the sandbox's hidden entry points, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    boxwright::inputs::fuse::mounter_main();
    boxwright::sandbox::launcher_main();
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "sandbox-probe")
    {
        boxwright::sandbox::linux::probe::child_main();
    }
    boxwright::cli::main()
}
