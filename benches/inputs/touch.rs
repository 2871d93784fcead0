//! What an action does with its inputs.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// Opens, reads and closes each of these files.
pub(crate) fn touch<'p>(root: &Path, files: impl IntoIterator<Item = &'p String>) {
    let mut buffer = vec![0; 64 << 10];
    for file in files {
        let mut file = std::fs::File::open(root.join(file)).expect("an input opens");
        while file.read(&mut buffer).expect("an input reads") > 0 {}
    }
}

/// Every `n`th of some files.
pub(crate) fn every(files: &[String], n: usize) -> Vec<String> {
    files.iter().step_by(n).cloned().collect()
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

pub(crate) fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}
