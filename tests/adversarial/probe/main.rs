//! One attempt at something that a sandboxed command must not achieve, by name: `probe fs.read_host /etc/shadow`.
//!
//! The last line on standard output is the verdict, `ALLOWED detail`, `DENIED errno detail`, `ABSENT why` or
//! `ERROR why`; the lines before it are what was found. Every attempt is harmless where it is allowed: counts are
//! bounded, values are written back unchanged, and what is made is removed.
//!
//! This is a static program of the standard library alone, so that it runs in an empty root.

mod calls;
mod enter;
mod files;
mod keep;
mod leaks;
mod namespaces;
mod network;
mod outputs;
mod privileges;
mod processes;
mod resources;
mod surroundings;
mod sys;
mod verdict;

use verdict::Verdict;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let verdict = run(&name, &arguments);
    // The stream may be gone, and then nobody asks.
    let _ = verdict.print(&mut std::io::stdout());
}

/// Each subject knows its own names.
fn run(name: &str, arguments: &[String]) -> Verdict {
    let subjects: [fn(&str, &[String]) -> Option<Verdict>; 12] = [
        enter::run,
        files::run,
        network::run,
        processes::run,
        privileges::run,
        surroundings::run,
        namespaces::run,
        calls::run,
        resources::run,
        leaks::run,
        keep::run,
        outputs::run,
    ];
    subjects
        .iter()
        .find_map(|subject| subject(name, arguments))
        .unwrap_or_else(|| Verdict::Error(format!("there is no probe {name:?}")))
}
