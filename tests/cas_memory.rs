//! Promise: a large blob passes through the store in chunks, down and up, in memory that does not depend on its size.
//! Alone in its process, as it looks at the whole process's memory; server included.
#![allow(missing_docs)]

#[path = "common/faulty_cas/mod.rs"]
mod faulty_cas;

use std::sync::Arc;

use boxwright::cas::{Cas, LocalStore, StoreConfig, Wanted};
use faulty_cas::FaultyCas;

const SIZE: u64 = 256 << 20;
const ALLOWED: u64 = 80 << 20;

/// A line of /proc/self/status, in bytes.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap();
    kib << 10
}

/// Sets the high-water mark back to what is resident now.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_passes_in_bounded_memory_both_ways() {
    for packed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let server = FaultyCas::start().await;
        if packed {
            server.announce_zstd();
        }
        let digest = server.put_pattern(SIZE);
        let local = LocalStore::open(StoreConfig {
            root: dir.path().join("cas"),
            high_water: 1 << 40,
            low_water: 1 << 39,
            free_floor: 0,
        })
        .unwrap();
        let cas = Cas::new(local, Some(Arc::new(server.client())));

        reset_peak();
        let before = memory("VmRSS");
        let wanted = Wanted {
            digest,
            executable: false,
        };
        let _pins = cas.fetch(&[wanted]).await.unwrap();
        let grown = memory("VmHWM").saturating_sub(before);
        assert!(grown < ALLOWED, "{grown} bytes for the way down");
        if packed {
            // The server keeps packed uploads in memory itself.
            continue;
        }

        server.state.blobs.lock().clear();
        *server.state.keep.lock() = false;
        reset_peak();
        let before = memory("VmRSS");
        cas.publish(&[digest]).await.unwrap();
        let grown = memory("VmHWM").saturating_sub(before);
        assert!(grown < ALLOWED, "{grown} bytes for the way up");
        assert!(server.state.blobs.lock().contains_key(&digest));
    }
}
