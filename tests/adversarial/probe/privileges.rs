//! Becoming somebody else.

use std::fs;
use std::process::Command;

use crate::sys;
use crate::verdict::Verdict;

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    Some(match name {
        // The program that is given is this one, owned by root and set-uid.
        "priv.suid" => match Command::new(&arguments[0]).arg("priv.effective").output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                match said.strip_prefix("ALLOWED ") {
                    Some(ids) if ids == ids_now() => Verdict::Denied("NOTHING".into(), said),
                    Some(_) => Verdict::Allowed(said),
                    None => Verdict::Error(said),
                }
            }
            Err(error) => Verdict::denied(error.into(), &*arguments[0]),
        },
        "priv.effective" => Verdict::Allowed(ids_now()),
        "priv.setuid" => setuid(),
        "priv.caps_zero" => Verdict::found(&status(|name, value| {
            name.starts_with("Cap") && value.trim_start_matches('0') != ""
        })),
        "priv.no_new_privs" => {
            Verdict::found(&status(|name, value| name == "NoNewPrivs" && value != "1"))
        }
        "priv.seccomp" => Verdict::found(&status(|name, value| name == "Seccomp" && value != "2")),
        _ => return None,
    })
}

fn ids_now() -> String {
    let id = |result: sys::Outcome| result.map_or(-1, |id| id);
    format!("uid {} euid {}", id(sys::getuid()), id(sys::geteuid()))
}

/// Any id but one's own.
fn setuid() -> Verdict {
    let other = |own: sys::Outcome| u32::from(own == Ok(0));
    let uid = other(sys::getuid());
    let gid = other(sys::getgid());
    let attempts = [
        ("setuid", sys::in_child(|| sys::setuid(uid))),
        ("setgid", sys::in_child(|| sys::setgid(gid))),
        (
            "setgroups",
            sys::in_child(|| sys::setgroups(1, &raw const gid)),
        ),
    ];
    Verdict::any(attempts.map(|(name, result)| match result {
        Ok(result) => Verdict::of(result, name),
        Err(ended) => Verdict::Denied("SIGNAL".into(), format!("{name} {ended:?}")),
    }))
}

/// The names of the lines of `/proc/self/status` that are like this.
fn status(like: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/status")
        .unwrap_or_else(|error| format!("unreadable:{error}"));
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.filter(|(name, value)| *name == "unreadable" || like(name, value.trim()));
    found.map(|(name, _)| name.to_owned()).collect()
}
