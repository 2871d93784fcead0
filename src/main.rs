//! boxwright: a sandboxed remote worker daemon.

fn main() {
    // Before anything else: a launcher has one thread and no runtime.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "sandbox-launcher")
    {
        boxwright::sandbox::process::launcher_main();
    }
}
