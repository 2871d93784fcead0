//! `boxwright doctor`: what this host gives for isolation, in plain words, with what to do about the rest.

mod findings;
mod namespaces;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Done;
use super::exit::{Exit, Failure, printable};
use crate::config::Host;
use crate::sandbox::linux::probe;

use findings::{Finding, State, findings};
pub(super) use findings::{NOEXEC_REMEDY, lacks_for_full};

/// The profile that lets boxwright use user namespaces where AppArmor restricts them.
const APPARMOR: &str = include_str!("../../../systemd/apparmor-boxwright");

/// Say what this host gives for isolation, and what to do about what it lacks
///
/// Makes namespaces, mounts and files as an action would need them, in a process of its own that takes all of them with
/// it. Run it as the user that the worker runs as.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line begins with good; weaker, if actions run at sandbox level full without it, but something is lost; or missing, if they \
do not.

Exit codes: 0 this host can give sandbox level full, 1 it cannot, 70 it could not be found out.")]
pub(super) struct DoctorCommand {
    /// The worker's state directory [default: that of a worker of this user]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The first of the ids of a root worker's actions
    #[arg(long, value_name = "N", default_value_t = 0x7000_0000)]
    first_uid: u32,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

impl DoctorCommand {
    pub(super) fn run(self) -> Done {
        let here = self.state_dir.or_else(|| Host::here().state_dir);
        let dir = here.unwrap_or_else(|| "/var/lib/boxwright".into());
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let host = probe::Host::probe(&dir, self.first_uid)
            .map_err(|e| Failure::new(Exit::Software, e))?;
        let findings = findings(&host);
        let able = !findings.iter().any(|f| f.state == State::Missing);
        match self.json {
            true => println!("{}", as_json(&findings, able)),
            false => {
                print!("{}", printable(&as_lines(&findings, able)));
                if host.knobs.apparmor_restrict_userns == Some(1) {
                    print!("\nThe AppArmor profile, for /etc/apparmor.d/boxwright:\n\n{APPARMOR}");
                }
            }
        }
        Ok(ExitCode::from(u8::from(!able)))
    }
}

fn as_lines(findings: &[Finding], able: bool) -> String {
    let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let state = finding.state.name();
        let (name, what) = (finding.name, &finding.what);
        text += &format!("{state:8} {name:width$}  {what}");
        if let Some(remedy) = &finding.remedy {
            text += &format!(": {remedy}");
        }
        text.push('\n');
    }
    let verdict = match able {
        true => "This host can give sandbox level full.",
        false => "This host cannot give sandbox level full.",
    };
    format!("{text}\n{verdict}\n")
}

fn as_json(findings: &[Finding], able: bool) -> serde_json::Value {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            serde_json::json!({
                "name": finding.name,
                "state": finding.state.name(),
                "what": finding.what,
                "remedy": finding.remedy,
            })
        })
        .collect();
    serde_json::json!({ "full": able, "findings": findings })
}
