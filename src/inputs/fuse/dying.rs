//! Whether a thread is about to die.

/// Whether it is dead, or as good as dead: the kernel marks a thread of a process that is killed with a pending SIGKILL, which
/// it acts upon when it is done with what it waits for. One of which nothing is known (0) may be.
pub(super) fn is_dying(thread: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => killed(&status),
        Err(_) => true,
    }
}

/// proc_pid_status(5): SigPnd is what is pending for the thread, signal 1 in the lowest bit.
fn killed(status: &str) -> bool {
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    pending.is_none_or(|bits| bits & 1 << 8 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_sigkill_is_death() {
        let with = |bits: &str| format!("Name:\tcat\nSigPnd:\t{bits}\nShdPnd:\t0000000000000100\n");
        assert!(killed(&with("0000000000000100")));
        assert!(killed(&with("0000000000010102")));
        assert!(!killed(&with("0000000000000000")));
        // SIGALRM and SIGUSR1.
        assert!(!killed(&with("0000000000002200")));
        assert!(killed("Name:\tcat\n"), "nothing is known");
    }

    #[test]
    fn a_running_thread_does_not_die_and_one_that_is_gone_did() {
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(is_dying(child.id()));
        assert!(is_dying(0));
    }
}
