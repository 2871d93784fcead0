//! What is said of hosts that lack something.

use super::*;
use crate::sandbox::linux::probe::{CALLS, Fuse, IdMap, Knobs, StateDir, SubIds, Trial};

const EVERYTHING: [Step; 14] = Step::ALL;

fn able() -> Host {
    Host {
        root: true,
        kernel: "6.12.1".into(),
        missing_calls: Vec::new(),
        trial: trial(&[]),
        knobs: Knobs::default(),
        fuse: Fuse {
            device: Ok(()),
            mode: Some(0o666),
        },
        cgroups: Cgroups::V2 {
            group: "/sys/fs/cgroup/a".into(),
            delegated: true,
            missing: Vec::new(),
        },
        landlock: Some(6),
        other_first_uid: None,
        sub_ids: SubIds::default(),
        state_dir: StateDir {
            nearest: "/var/lib/boxwright".into(),
            exists: true,
            writable: Ok(()),
            kind: "xfs".into(),
            free: 50 << 30,
            reflinks: true,
            closed_above: None,
            noexec: false,
        },
    }
}

/// Everything can be done but for these, which fail with the number.
fn trial(but: &[(Step, i32)]) -> Trial {
    let mut stopped = false;
    let went = EVERYTHING.map(|step| {
        let refused = but.iter().find(|(refused, _)| *refused == step);
        let attempt = match refused {
            _ if stopped => Attempt::NotTried,
            Some((_, number)) => Attempt::Refused(io::Error::from_raw_os_error(*number)),
            None => Attempt::Done,
        };
        stopped |= refused.is_some() && matches!(step, Step::User | Step::Ids | Step::Mounts);
        (step, attempt)
    });
    Trial::new(IdMap::Taken(0x7000_0000), went.into())
}

#[test]
fn every_lack_says_what_to_do() {
    let open = |knobs: Knobs, but: &[(Step, i32)], root| Host {
        root,
        knobs,
        trial: trial(but),
        ..able()
    };
    let user = [(Step::User, libc::EPERM)];
    let plain = Knobs::default();
    let hosts = [
        ("all is well", able()),
        (
            "Debian of old",
            open(
                Knobs {
                    unprivileged_userns_clone: Some(0),
                    ..plain
                },
                &user,
                false,
            ),
        ),
        (
            "RHEL",
            open(
                Knobs {
                    max_user_namespaces: Some(0),
                    ..plain
                },
                &[(Step::User, libc::ENOSPC)],
                true,
            ),
        ),
        ("used up", open(plain, &[(Step::User, libc::ENOSPC)], true)),
        (
            "Ubuntu",
            open(
                Knobs {
                    apparmor_restrict_userns: Some(1),
                    ..plain
                },
                &[(Step::Mounts, libc::EPERM)],
                false,
            ),
        ),
        ("Docker", open(plain, &user, true)),
        (
            "Docker with seccomp off",
            open(plain, &[(Step::Proc, libc::EPERM)], true),
        ),
        (
            "root of a container",
            Host {
                other_first_uid: Some(65_534),
                ..open(plain, &[(Step::Ids, libc::EPERM)], true)
            },
        ),
        (
            "no capabilities",
            open(plain, &[(Step::Ids, libc::EPERM)], true),
        ),
        (
            "an old kernel and nothing set up",
            Host {
                root: false,
                kernel: "5.4.0".into(),
                missing_calls: CALLS[2..].to_vec(),
                trial: Trial::new(
                    IdMap::Single,
                    EVERYTHING
                        .map(|step| {
                            let refused = matches!(step, Step::Overlay | Step::Fuse);
                            let error = || io::Error::from_raw_os_error(libc::EPERM);
                            (
                                step,
                                if refused {
                                    Attempt::Refused(error())
                                } else {
                                    Attempt::Done
                                },
                            )
                        })
                        .into_iter()
                        .filter(|(step, _)| *step != Step::OverlayOnState)
                        .collect(),
                ),
                fuse: Fuse {
                    device: Err(io::ErrorKind::NotFound.into()),
                    mode: None,
                },
                cgroups: Cgroups::V2 {
                    group: "/".into(),
                    delegated: false,
                    missing: Vec::new(),
                },
                landlock: None,
                state_dir: StateDir {
                    writable: Err(io::ErrorKind::PermissionDenied.into()),
                    ..able().state_dir
                },
                ..able()
            },
        ),
    ];
    let mut said = String::new();
    for (name, host) in hosts {
        said += &format!("== {name}\n");
        for finding in findings(&host) {
            assert_eq!(finding.remedy.is_none(), finding.state == State::Good);
            // What is well on every other host is said once.
            if finding.state != State::Good || name == "all is well" {
                let (state, name, what) = (finding.state.name(), finding.name, finding.what);
                let remedy = finding.remedy.unwrap_or_default();
                said += &format!("{state} {name}: {what}\n  {remedy}\n");
            }
        }
    }
    insta::assert_snapshot!(said);
}

#[test]
fn a_probe_that_died_proves_nothing() {
    for known in [
        &EVERYTHING[..0],
        &EVERYTHING[..1],
        &EVERYTHING[..2],
        &EVERYTHING[..7],
    ] {
        let went = known.iter().map(|step| (*step, Attempt::Done)).collect();
        let host = Host {
            trial: Trial::new(IdMap::Taken(0x7000_0000), went),
            ..able()
        };
        assert!(lacks_for_full(&host)[0].contains("died"), "{known:?}");
    }
}

#[test]
fn the_state_directory_is_no_reason_against_level_full() {
    let mut host = able();
    assert_eq!(lacks_for_full(&host), [""; 0]);
    host.state_dir.writable = Err(io::ErrorKind::PermissionDenied.into());
    assert_eq!(lacks_for_full(&host), [""; 0]);
    host.trial = trial(&[(Step::Proc, libc::EPERM)]);
    assert_eq!(lacks_for_full(&host).len(), 1);
}
