//! reload: measures a worker of the Remote Workers API from both sides.
//!
//! `reload bots-server` is a scheduler that answers at once, with the CAS, ActionCache and Execution that
//! belong to it, and that behaves towards a bot as BuildGrid 0.9.1 does; `reload run` gives it actions,
//! checks every result and prints one JSON object of figures. `benches/run` puts workers between them.

mod check;
mod client;
mod layout;
mod load;
mod measure;
mod server;
mod tree;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Load generator, checker and benchmark scheduler for workers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Given by `cargo bench`; means nothing here.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Upload trees, run actions, check results, print one JSON object
    Run(Box<load::Options>),
    /// CAS, ActionCache, Execution and the Bots service in one process
    BotsServer(server::Options),
}

fn main() {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a tokio runtime");
    let outcome = match cli.command {
        Command::Run(options) => runtime.block_on(load::run(*options)),
        Command::BotsServer(options) => runtime.block_on(server::serve(options)).map(|()| true),
    };
    match outcome {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(error) => {
            eprintln!("reload: {error}");
            std::process::exit(2);
        }
    }
}
