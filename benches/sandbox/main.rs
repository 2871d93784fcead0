//! What a sandbox costs for each action: the levels and shapes of boxwright, a bare `posix_spawn`, and bubblewrap as buildbox-run
//! calls it, in turns.
//!
//! `cargo bench --bench sandbox_overhead -- [--rounds N] [--actions N]`
//!
//! Each variant is a process of its own (the *driver*: a daemon of which only the sandbox is left), in a cgroup of its own, so that CPU
//! counts to the last launcher, init and dead child. Rounds are interleaved: whatever else the machine does hits all variants alike, and
//! ratios are taken within a round. The tables are printed, then the promises; exit status 1 if one is not kept, 3 if this machine
//! cannot measure, for want of root, cgroups or bubblewrap.

mod driver;
mod group;
mod stage;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use driver::Variant;
use group::Group;
use stage::Program;

const CONCURRENCY: [usize; 3] = [1, 2, 4];

/// One variant's process.
struct Driver {
    variant: Variant,
    group: Group,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// One measurement.
#[derive(Clone, Copy)]
struct Figure {
    /// CPU of an action, in ms.
    cpu: f64,
    /// The time of all actions by their number, in ms: the inverse of the throughput.
    wall: f64,
}

type Cell = (Variant, Program, usize);

impl Driver {
    fn start(variant: Variant, stage: &Path) -> Result<Driver, String> {
        let group = Group::make(variant.name())?;
        let mut child = Command::new("/proc/self/exe")
            .args(["drive", variant.name()])
            .args([stage, group.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start a driver: {e}"))?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a driver has no pipes".into());
        };
        let mut driver = Driver {
            variant,
            group,
            child,
            orders,
            answers: BufReader::new(answers),
        };
        match driver.answer()?.as_str() {
            "ready" => Ok(driver),
            other => Err(format!("{}: {other}", variant.name())),
        }
    }

    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(read) if read > 0 => Ok(line.trim().to_owned()),
            _ => Err(format!("the driver of {} died", self.variant.name())),
        }
    }

    fn measure(
        &mut self,
        program: Program,
        at_once: usize,
        actions: usize,
    ) -> Result<Figure, String> {
        let before = self.group.cpu()?;
        writeln!(self.orders, "{} {at_once} {actions}", program.name())
            .map_err(|e| e.to_string())?;
        let answer = self.answer()?;
        let wall: f64 = answer
            .parse()
            .map_err(|_| format!("{}: {answer}", self.variant.name()))?;
        let each = 1000.0 / actions as f64;
        Ok(Figure {
            cpu: (self.group.cpu()? - before) * each,
            wall: wall * each,
        })
    }

    fn end(self) {
        let Driver {
            group,
            mut child,
            orders,
            ..
        } = self;
        // The end of its orders is its end.
        drop(orders);
        let _ = child.wait();
        group.remove();
    }
}

/// All figures, in the order of the rounds.
#[derive(Default)]
struct Figures(BTreeMap<Cell, Vec<Figure>>);

impl Figures {
    fn of(&self, cell: Cell, what: fn(&Figure) -> f64) -> Vec<f64> {
        self.0.get(&cell).into_iter().flatten().map(what).collect()
    }

    fn median(&self, cell: Cell, what: fn(&Figure) -> f64) -> f64 {
        median(self.of(cell, what))
    }

    /// The median of the rounds' ratios.
    fn ratio(&self, cell: Cell, to: Variant, what: fn(&Figure) -> f64) -> f64 {
        let other = self.of((to, cell.1, cell.2), what);
        let pairs = self.of(cell, what).into_iter().zip(other);
        median(pairs.map(|(one, other)| one / other).collect())
    }

    /// The median of the rounds' differences.
    fn more(&self, cell: Cell, than: Variant, what: fn(&Figure) -> f64) -> f64 {
        let other = self.of((than, cell.1, cell.2), what);
        let pairs = self.of(cell, what).into_iter().zip(other);
        median(pairs.map(|(one, other)| one - other).collect())
    }

    fn print(&self) {
        for program in Program::ALL {
            println!(
                "\n{}, ms for each action, medians (least) of the rounds",
                program.title()
            );
            print!("{:<30}", "");
            for at_once in CONCURRENCY {
                print!(
                    "| {:^13} {:^17} ",
                    format!("CPU x{at_once}"),
                    format!("wall x{at_once}")
                );
            }
            println!("| CPU: of bwrap, over posix_spawn; rate x4: of bwrap");
            for variant in Variant::ALL {
                print!("{:<30}", variant.title());
                for at_once in CONCURRENCY {
                    let cell = (variant, program, at_once);
                    let both = |what: fn(&Figure) -> f64| {
                        let least = self.of(cell, what).into_iter().fold(f64::NAN, f64::min);
                        (self.median(cell, what), least)
                    };
                    let (cpu, least_cpu) = both(cpu);
                    let (wall, least_wall) = both(wall);
                    print!("| {cpu:5.2} ({least_cpu:5.2}) {wall:7.2} ({least_wall:6.2}) ");
                }
                let cell = (variant, program, 4);
                println!(
                    "| {:.3}, {:+.2} ms; {:.1} times",
                    self.ratio(cell, Variant::Bubblewrap, cpu),
                    self.more(cell, Variant::Spawn, cpu),
                    1.0 / self.ratio(cell, Variant::Bubblewrap, wall),
                );
            }
        }
    }

    /// Promise, figure, and whether it is kept.
    fn promises(&self) -> Vec<(&'static str, String, bool)> {
        let full = (Variant::Full, Program::Static, 4);
        let of_bwrap = self.ratio(full, Variant::Bubblewrap, cpu);
        let faster = 1.0 / self.ratio(full, Variant::Bubblewrap, wall);
        let all = CONCURRENCY.map(|at_once| (Variant::Full, Program::Static, at_once));
        let added = median(
            all.map(|cell| self.more(cell, Variant::Spawn, cpu))
                .to_vec(),
        );
        let large = CONCURRENCY.map(|at_once| (Variant::Large, Program::Static, at_once));
        let large = median(
            large
                .map(|cell| self.ratio(cell, Variant::Full, cpu))
                .to_vec(),
        );
        vec![
            (
                "CPU of an action at the full level, 4 at a time, at most 0.35 of bubblewrap's",
                format!("{of_bwrap:.3}"),
                of_bwrap <= 0.35,
            ),
            (
                "actions per second at the full level, 4 at a time, at least 5 times bubblewrap's",
                format!("{faster:.1} times"),
                faster >= 5.0,
            ),
            (
                "CPU of an action at the full level over posix_spawn, at most 0.6 ms",
                format!("{added:.2} ms"),
                added <= 0.6,
            ),
            (
                "CPU of an action with 1 GiB in the daemon's memory, at most 1.15 times that without",
                format!("{large:.3} times"),
                large <= 1.15,
            ),
        ]
    }
}

fn cpu(figure: &Figure) -> f64 {
    figure.cpu
}

fn wall(figure: &Figure) -> f64 {
    figure.wall
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn rounds(drivers: &mut [Driver], rounds: usize, actions: usize) -> Result<Figures, String> {
    let mut figures = Figures::default();
    // One that counts for nothing: launchers are made, caches are filled.
    for round in 0..=rounds {
        for program in Program::ALL {
            for at_once in CONCURRENCY {
                for driver in drivers.iter_mut() {
                    let actions = (actions / driver.variant.weight()).max(2 * at_once);
                    let figure = driver.measure(program, at_once, actions)?;
                    if round > 0 {
                        let cell = (driver.variant, program, at_once);
                        figures.0.entry(cell).or_default().push(figure);
                    }
                }
            }
        }
        eprintln!("round {round} of {rounds}");
    }
    Ok(figures)
}

fn bench(words: &[String]) -> Result<bool, String> {
    let number = |name: &str, or: usize| -> Result<usize, String> {
        match words.iter().position(|word| word == name) {
            None => Ok(or),
            Some(at) => {
                let number = words.get(at + 1).and_then(|word| word.parse().ok());
                number
                    .filter(|n| *n > 0)
                    .ok_or(format!("{name} takes a number"))
            }
        }
    };
    let (count, actions) = (number("--rounds", 7)?, number("--actions", 240)?);
    let stage = stage::Stage::make(CONCURRENCY[CONCURRENCY.len() - 1])?;
    let mut drivers = Vec::new();
    for variant in Variant::ALL {
        drivers.push(Driver::start(variant, stage.path())?);
    }
    let figures = rounds(&mut drivers, count, actions);
    drivers.into_iter().for_each(Driver::end);
    let figures = figures?;
    figures.print();
    println!();
    let mut held = true;
    for (promise, figure, kept) in figures.promises() {
        held &= kept;
        println!(
            "{} {promise}: {figure}",
            if kept { "KEPT  " } else { "BROKEN" }
        );
    }
    Ok(held)
}

fn main() -> ExitCode {
    boxwright::sandbox::launcher_main();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, variant, stage, group] = words.as_slice()
        && word == "drive"
    {
        return driver::main(variant, Path::new(stage), Path::new(group));
    }
    match bench(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("sandbox_overhead: {reason}");
            ExitCode::from(3)
        }
    }
}
