//! inputs: measures the ways of showing an input tree against each other, in one run, and holds them to their promises.
//!
//! Each gate is a ratio of two figures of the same run on the same file system, so that a slow or busy machine
//! slows both. Needs root and /dev/fuse. `cargo bench --bench inputs [-- CELL...]`; exit status 1 if a promise is not kept.

mod cells;
mod cold;
mod compile;
mod ground;
mod large;
mod line;
mod memory;
mod outputs;
mod peer;
mod raw;
mod touch;
mod tree;

use clap::Parser;
use ground::Ground;

#[derive(Parser)]
#[command(about = "Benchmarks of input roots")]
struct Cli {
    /// Only cells whose name has one of these words in it
    words: Vec<String>,
    /// Where to work; on the file system that counts
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Given by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A promise and how it came out.
struct Gate {
    name: &'static str,
    /// What was measured, in words.
    figures: String,
    ratio: f64,
    /// The ratio must be at most this.
    bound: f64,
}

fn main() {
    let cli = Cli::parse();
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        println!("SKIPPED: needs root and /dev/fuse");
        std::process::exit(3);
    }
    // Before there are threads: nothing that is mounted here is seen elsewhere or left behind.
    boxwright::inputs::fuse::private_mounts().expect("mounts of its own");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let kept = runtime.block_on(async {
        let mut kept = true;
        for (name, cell) in cells::ALL {
            let wanted = cli.words.is_empty() || cli.words.iter().any(|word| name.contains(word));
            if !wanted {
                continue;
            }
            let ground = Ground::new(cli.dir.as_deref());
            for gate in cell(&ground).await {
                let good = gate.ratio <= gate.bound;
                kept &= good;
                println!(
                    "{} {:<44} {:>8.3} (at most {:.3})  {}",
                    if good { "kept  " } else { "BROKEN" },
                    gate.name,
                    gate.ratio,
                    gate.bound,
                    gate.figures
                );
            }
        }
        kept
    });
    if !kept {
        std::process::exit(1);
    }
}
