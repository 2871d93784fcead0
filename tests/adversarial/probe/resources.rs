//! Taking more than one's share, up to a bound that leaves the machine alive. The bound is the first argument: who
//! reaches it was not stopped.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use crate::sys::{self, Errno};
use crate::verdict::Verdict;

const MIB: usize = 1 << 20;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    let bound = arguments
        .first()
        .and_then(|a| a.parse::<usize>().ok())
        .unwrap_or(0);
    Some(match name {
        "res.forkbomb" => fork_bomb(bound),
        "res.membomb_anon" => anonymous(bound),
        "res.membomb_tmpfs" => tmpfs(bound),
        "res.membomb_memfd" => {
            let file = sys::memfd_create(sys::text("bomb").as_ptr(), 0);
            // SAFETY: the descriptor is new and nobody else's.
            match file.map(|fd| unsafe { File::from_raw_fd(fd as i32) }) {
                Ok(mut file) => fill("memfd", &mut file, bound),
                Err(errno) => Verdict::denied(errno, "memfd"),
            }
        }
        "res.membomb_children" => children(bound),
        "res.disk" => disk(bound, arguments.len() > 1),
        "res.inodes" => inodes(bound, arguments.len() > 1),
        "res.fds" => descriptors(bound),
        "res.cpu" => cpu(bound),
        "res.realtime" => Verdict::of(sys::sched_setscheduler(0, 1, &raw const ONE), "SCHED_FIFO"),
        "res.nice" => Verdict::of(sys::setpriority(0, 0, -5), "nice -5"),
        "res.output_flood" => flood(bound),
        _ => return None,
    })
}

static ONE: i32 = 1;

fn up_to<T>(
    bound: usize,
    what: &str,
    mut one: impl FnMut(usize) -> Result<T, Errno>,
) -> (Vec<T>, Verdict) {
    let mut kept = Vec::new();
    for index in 0..bound {
        match one(index) {
            Ok(value) => kept.push(value),
            Err(errno) => {
                return (
                    kept,
                    Verdict::denied(errno, format!("after {index} {what}")),
                );
            }
        }
    }
    (kept, Verdict::Allowed(format!("{bound} {what}")))
}

fn fork_bomb(bound: usize) -> Verdict {
    let (children, verdict) = up_to(bound, "processes", |_| match sys::fork() {
        Ok(0) => {
            std::thread::sleep(Duration::from_secs(20));
            sys::leave(0)
        }
        result => result,
    });
    for child in children {
        let _ = sys::kill(child as i32, 9);
        let _ = sys::wait(child, 0);
    }
    verdict
}

fn anonymous(bound: usize) -> Verdict {
    let mut pages = vec![0_u8; bound * MIB];
    for page in pages.chunks_mut(4096) {
        page[0] = 1;
    }
    Verdict::Allowed(format!(
        "{} MiB",
        pages.iter().filter(|byte| **byte == 1).count() / 256
    ))
}

fn fill(what: &str, file: &mut File, bound: usize) -> Verdict {
    let block = vec![1_u8; MIB];
    up_to(bound, &format!("MiB of {what}"), |_| {
        file.write_all(&block).map_err(Errno::from)
    })
    .1
}

fn tmpfs(bound: usize) -> Verdict {
    // Without a name it goes with this process, however that ends.
    let path = ["/dev/shm", "/tmp"].iter().find_map(|directory| {
        let path = format!("{directory}/.boxwright-bomb-{}", std::process::id());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .ok()?;
        fs::remove_file(&path).ok()?;
        Some(file)
    });
    match path {
        Some(mut file) => fill("tmpfs", &mut file, bound),
        None => Verdict::Error("neither /dev/shm nor /tmp can be written".into()),
    }
}

/// Four that hold a quarter each, at once.
fn children(bound: usize) -> Verdict {
    let (ready, said) = match std::io::pipe() {
        Ok(ends) => ends,
        Err(error) => return Verdict::Error(error.to_string()),
    };
    let (children, _) = up_to(4, "children", |_| match sys::fork() {
        Ok(0) => {
            let pages = anonymous(bound / 4);
            let full = matches!(pages, Verdict::Allowed(_));
            let _ = (&said).write_all(&[u8::from(full)]);
            std::thread::sleep(Duration::from_secs(20));
            sys::leave(0)
        }
        result => result,
    });
    drop(said);
    let mut full = vec![0; children.len()];
    let whole = std::io::Read::read_exact(&mut &ready, &mut full).is_ok();
    for child in &children {
        let _ = sys::kill(*child as i32, 9);
        let _ = sys::wait(*child, 0);
    }
    match whole && children.len() == 4 {
        true => Verdict::Allowed(format!("{bound} MiB in 4 processes")),
        false => Verdict::Denied("ENOMEM".into(), "a child was killed".into()),
    }
}

/// Many files, as a bound on one file is none on all.
fn disk(bound: usize, wait: bool) -> Verdict {
    let block = vec![1_u8; 4 * MIB];
    let (written, verdict) = up_to(bound / 4, "files of 4 MiB", |index| {
        let name = format!("disk-{index}");
        fs::write(&name, &block).map(|()| name).map_err(Errno::from)
    });
    be_watched(wait, &verdict);
    written.iter().for_each(|name| drop(fs::remove_file(name)));
    verdict
}

/// Who looks at the disk from time to time has the time to see it: also if somebody else frees as much meanwhile, so that it is
/// found by the walk that comes every ten seconds.
fn be_watched(wait: bool, verdict: &Verdict) {
    if let (true, Verdict::Allowed(_)) = (wait, verdict) {
        std::thread::sleep(Duration::from_secs(15));
    }
}

fn inodes(bound: usize, wait: bool) -> Verdict {
    let _ = fs::create_dir("inodes");
    let (_, verdict) = up_to(bound, "files", |index| {
        File::create(format!("inodes/{index}"))
            .map(drop)
            .map_err(Errno::from)
    });
    be_watched(wait, &verdict);
    let _ = fs::remove_dir_all("inodes");
    verdict
}

fn descriptors(bound: usize) -> Verdict {
    const RLIMIT_NOFILE: i32 = 7;
    let mut limit = [0_u64; 2];
    let _ = sys::getrlimit(RLIMIT_NOFILE, &raw mut limit);
    let hard = [limit[1].max(bound as u64 + 16); 2];
    if sys::setrlimit(RLIMIT_NOFILE, &raw const hard).is_err() {
        let soft = [limit[1]; 2];
        let _ = sys::setrlimit(RLIMIT_NOFILE, &raw const soft);
    }
    up_to(bound, "descriptors", |_| {
        File::open("/dev/null").map_err(Errno::from)
    })
    .1
}

/// The bound is in percent of one processor. A machine may be busy with others for a while, hence three rounds.
fn cpu(bound: usize) -> Verdict {
    let mut most = 0;
    for _ in 0..3 {
        most = most.max(burn());
        if most > bound {
            return Verdict::Allowed(format!("{most} % of a processor"));
        }
    }
    Verdict::Denied("NOTHING".into(), format!("beyond {most} %"))
}

/// What two threads get in a second, in percent of one processor.
fn burn() -> usize {
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let used = || {
        let mut used = [0_i64; 2];
        let _ = sys::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &raw mut used);
        used[0] as f64 + used[1] as f64 / 1e9
    };
    let (began, before) = (Instant::now(), used());
    let spin = move || {
        let mut x = 1_u64;
        while began.elapsed() < Duration::from_secs(1) {
            for _ in 0..10_000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
        }
    };
    let other = std::thread::spawn(spin);
    spin();
    let _ = other.join();
    ((used() - before) * 100.0 / began.elapsed().as_secs_f64()) as usize
}

/// The verdict goes to standard error: standard output is full.
fn flood(bound: usize) -> Verdict {
    let block = vec![b'x'; MIB];
    let mut out = std::io::stdout().lock();
    let (_, verdict) = up_to(bound, "MiB", |_| out.write_all(&block).map_err(Errno::from));
    let _ = verdict.print(&mut std::io::stderr());
    sys::leave(0)
}
