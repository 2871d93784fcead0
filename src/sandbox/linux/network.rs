//! The network of a slot: a namespace of its own with a loopback interface, which the next command finds as the last one
//! found it. A connection that is not quite closed would show: then the namespace is replaced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::sched::{CloneFlags, unshare};

use super::sys;

/// A network namespace that this process lives in.
#[derive(Debug)]
pub(super) struct Network {
    /// Counts of sockets; `None` where the kernel does not tell.
    sockets: Option<File>,
    /// Commands may change its settings (`/proc/sys/net`), as the kernel lets the user namespace's 0 do without capabilities.
    changeable: bool,
}

impl Network {
    /// Takes the new namespace of this process into use.
    pub(super) fn begin(changeable: bool) -> io::Result<Network> {
        sys::loopback_up()?;
        Ok(Network {
            sockets: File::open("/proc/thread-self/net/sockstat").ok(),
            changeable,
        })
    }

    /// Makes sure that the next command finds nothing of the last one.
    pub(super) fn clean(&mut self) -> io::Result<()> {
        if !self.changeable && self.sockets.as_ref().is_some_and(is_clean) {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNET)?;
        *self = Network::begin(self.changeable)?;
        Ok(())
    }
}

fn is_clean(sockets: &File) -> bool {
    let mut buffer = [0; 1024];
    let text = match sockets.read_at(&mut buffer, 0) {
        Ok(read) => String::from_utf8_lossy(&buffer[..read]).into_owned(),
        Err(_) => return false,
    };
    is_quiet(&text)
}

/// Whether no socket is in use, orphaned or waiting. `sockets: used N` counts this process's own.
fn is_quiet(sockstat: &str) -> bool {
    let mut seen = false;
    for line in sockstat.lines() {
        let Some((protocol, counts)) = line.split_once(": ") else {
            return false;
        };
        if protocol == "sockets" {
            continue;
        }
        seen = true;
        let words: Vec<&str> = counts.split_ascii_whitespace().collect();
        for pair in words.chunks(2) {
            if let ["inuse" | "orphan" | "tw", count] = pair
                && *count != "0"
            {
                return false;
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_waits_is_seen() {
        let quiet = "sockets: used 2\nTCP: inuse 0 orphan 0 tw 0 alloc 5 mem 1\nUDP: inuse 0 mem 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n";
        assert!(is_quiet(quiet));
        assert!(!is_quiet(&quiet.replace("tw 0", "tw 1")));
        assert!(!is_quiet(&quiet.replace("RAW: inuse 0", "RAW: inuse 3")));
        assert!(!is_quiet(""));
        assert!(!is_quiet("nonsense"));
    }
}
