//! A command that will not go: daemons, sessions, the stopped, a command that stops itself.

use std::time::Duration;

use boxwright::sandbox::End;

use super::attempt::{Lab, marked};

pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    let mut surprises = Vec::new();
    for name in [
        "proc.linger_daemon",
        "proc.linger_setsid",
        "proc.linger_vfork",
        "proc.linger_stopped",
    ] {
        let mark = lab.mark();
        let said = lab.says(&[name, &mark]).await;
        let left = marked(&mark);
        println!(
            "{:?} {name}: {}, {} left",
            lab.place,
            said.line(),
            left.len()
        );
        if !said.is("ALLOWED") || left.is_empty() == lab.place.is_outside() {
            surprises.push(format!("{name}: {}, {left:?} left", said.line()));
        }
        for pid in left {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    if lab.place.is_ours() {
        let mark = lab.mark();
        let mut spec = lab.spec(0, &["proc.sigstop", &mark]);
        spec.timeout = Some(Duration::from_millis(300));
        let outcome = lab.run(0, spec).await;
        if outcome.end != End::TimedOut || !marked(&mark).is_empty() {
            surprises.push(format!(
                "proc.sigstop: {:?}, {:?} left",
                outcome.end,
                marked(&mark)
            ));
        }
    }
    surprises
}
