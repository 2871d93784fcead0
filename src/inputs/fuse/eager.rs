//! Looking for the next request for a moment before going to sleep.
//!
//! A program that looks at one file after another asks again as soon as it is answered. A thread that slept
//! in between would have to be woken for each request, on a processor that went idle: on a virtual machine that takes longer
//! than the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long. Longer than a program takes between two requests, shorter than anybody minds.
const MOMENT: Duration = Duration::from_micros(50);

/// Whether requests come.
#[derive(Default)]
pub(super) struct Requests {
    count: AtomicU64,
    came: Notify,
}

impl Requests {
    /// One came.
    pub(super) fn came(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.came.notify_one();
    }
}

/// Keeps the thread of this runtime awake while requests come. With one processor only, nobody could ask meanwhile.
pub(super) async fn keep_awake(requests: Arc<Requests>) {
    if std::thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
        return;
    }
    loop {
        requests.came.notified().await;
        let mut last = requests.count.load(Ordering::Relaxed);
        let mut since = Instant::now();
        while since.elapsed() < MOMENT {
            tokio::task::yield_now().await;
            // Who asks may be waiting for this very processor.
            std::thread::yield_now();
            let now = requests.count.load(Ordering::Relaxed);
            if now != last {
                last = now;
                since = Instant::now();
            }
        }
    }
}
