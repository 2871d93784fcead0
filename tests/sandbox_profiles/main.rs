//! The kernel takes the built-in profiles' filters, refuses what they refuse, and real tools work below them.

mod bed;
#[path = "../common/skipped.rs"]
mod skipped;
mod tools;

use bed::{Ended, NONE, attempt, call};

const PROFILES: [&str; 5] = ["default", "strict", "network", "debug", "compat32"];

#[test]
fn programs_run_below_every_profile() {
    for profile in PROFILES {
        assert_eq!(attempt(profile, || Ok(())), Ended::Done, "{profile}");
    }
}

#[test]
fn the_kernel_refuses_what_the_profiles_refuse_and_would_not_without() {
    let (eperm, enosys, family) = (libc::EPERM, libc::ENOSYS, libc::EAFNOSUPPORT);
    let session = -3_i64 as u64;
    let refused: &[(&str, i64, [u64; 6], i32)] = &[
        (
            "a user namespace",
            libc::SYS_unshare,
            [0x1000_0000, 0, 0, 0, 0, 0],
            eperm,
        ),
        ("clone3", libc::SYS_clone3, [0; 6], enosys),
        ("keys", libc::SYS_keyctl, [0, session, 0, 0, 0, 0], eperm),
        ("io_uring", libc::SYS_io_uring_setup, [0; 6], enosys),
        (
            "a packet socket",
            libc::SYS_socket,
            [17, 3, 0, 0, 0, 0],
            family,
        ),
        (
            "the audit system",
            libc::SYS_socket,
            [16, 3, 9, 0, 0, 0],
            family,
        ),
        ("TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0], eperm),
        (
            "TIOCSTI, hidden",
            libc::SYS_ioctl,
            [0, 0xdead_0000_5412, 0, 0, 0, 0],
            eperm,
        ),
        (
            "real time",
            libc::SYS_sched_setscheduler,
            [0, 1, 0, 0, 0, 0],
            eperm,
        ),
        ("a handle", libc::SYS_name_to_handle_at, [0; 6], eperm),
        ("mounting", libc::SYS_fsopen, [0; 6], eperm),
        ("a call of the future", 600, [0; 6], enosys),
    ];
    for &(what, number, arguments, errno) in refused {
        for profile in PROFILES {
            let ended = call(profile, number, arguments);
            assert_eq!(ended, Ended::Errno(errno), "{what} below {profile}");
        }
        let control = call(NONE, number, arguments);
        if what != "a call of the future" && control == Ended::Errno(errno) {
            skipped::here(format!("{what} fails without a filter too"));
        }
    }
    // What this machine has for certain, so that the filters and not the kernel are tested.
    assert_ne!(
        call(NONE, libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]),
        Ended::Errno(eperm)
    );
    assert_ne!(
        call(NONE, libc::SYS_sched_setscheduler, [0, 1, 0, 0, 0, 0]),
        Ended::Errno(eperm)
    );
}

#[test]
fn virtual_machine_sockets_are_out_of_reach() {
    let vsock = [libc::AF_VSOCK as u64, 1, 0, 0, 0, 0];
    for profile in PROFILES {
        assert_eq!(
            call(profile, libc::SYS_socket, vsock),
            Ended::Errno(libc::EAFNOSUPPORT),
            "{profile}"
        );
    }
    for family in [libc::AF_UNIX, libc::AF_INET] {
        let socket = [family as u64, 1, 0, 0, 0, 0];
        for profile in PROFILES {
            assert_eq!(
                call(profile, libc::SYS_socket, socket),
                Ended::Done,
                "{profile} {family}"
            );
        }
    }
}

#[test]
fn tracing_is_for_the_debug_profile() {
    // Whoever may be traced gives up with EXFULL instead of running a program, before which it would stop.
    let traceable = std::io::Error::from_raw_os_error;
    let ask = move |profile: &str| {
        attempt(profile, move || {
            bed::be_traced().and_then(|()| Err(traceable(libc::EXFULL)))
        })
    };
    assert_eq!(ask(NONE), Ended::Errno(libc::EXFULL));
    for profile in PROFILES {
        let expected = if profile == "debug" {
            libc::EXFULL
        } else {
            libc::EPERM
        };
        assert_eq!(ask(profile), Ended::Errno(expected), "{profile}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn other_kinds_of_call_do_not_lead_around_the_filter() {
    if bed::call_32_bit(NONE) != Ended::Done {
        skipped::here("this kernel answers no 32-bit calls");
        return;
    }
    for profile in PROFILES {
        let expected = match profile {
            "compat32" => Ended::Done,
            _ => Ended::Signal(libc::SIGSYS),
        };
        assert_eq!(bed::call_32_bit(profile), expected, "{profile}");
        let x32_getpid = call(profile, 0x4000_0000 | libc::SYS_getpid, [0; 6]);
        assert_eq!(x32_getpid, Ended::Errno(libc::ENOSYS), "{profile}");
    }
}
