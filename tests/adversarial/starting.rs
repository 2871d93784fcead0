//! Commands that are odd before they run.

use boxwright::sandbox::{CommandSpec, End};

use super::attempt::{Lab, text};

/// What is the command's fault ends as such, and the slot goes on working.
pub(crate) async fn all(lab: &Lab) -> Vec<String> {
    if !lab.place.is_ours() {
        return Vec::new();
    }
    type Change = fn(&mut CommandSpec);
    let hopeless: [(&str, i32, Change); 6] = [
        ("exec.enoent", 127, |spec| {
            spec.argv[0] = "./not-there".into()
        }),
        ("exec.enoent in PATH", 127, |spec| {
            spec.argv[0] = "not-there".into()
        }),
        ("exec.weird: no name", 127, |spec| spec.argv[0] = "".into()),
        ("exec.weird: a directory", 126, |spec| {
            spec.argv[0] = "/".into()
        }),
        ("exec.weird: a link to itself", 126, |spec| {
            spec.argv[0] = "./loop".into()
        }),
        ("exec.e2big", 126, |spec| {
            spec.argv.push("x".repeat(3 << 20).into())
        }),
    ];
    let mut surprises = Vec::new();
    for (name, code, change) in hopeless {
        let mut spec = lab.spec(0, &["exec.ran"]);
        change(&mut spec);
        let end = lab.run(0, spec).await.end;
        match end {
            End::NotStarted { code: given, .. } if given == code => {}
            end => surprises.push(format!("{name}: {end:?}, wanted NotStarted with {code}")),
        }
        let after = lab.says(&["exec.ran"]).await;
        if !after.is("ALLOWED") {
            surprises.push(format!("after {name}: {}", after.line()));
        }
    }
    // What the dynamic linker obeys is for the command's programs; the launcher reads none of it.
    let mut spec = lab.spec(
        0,
        &[
            "env.exact",
            "PATH",
            "GIVEN",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "GLIBC_TUNABLES",
            "RUST_LOG",
            "",
        ],
    );
    for name in [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "GLIBC_TUNABLES",
        "RUST_LOG",
    ] {
        spec.env.push((
            name.into(),
            "/nowhere/rubbish.so:glibc.malloc.check=3".into(),
        ));
    }
    let outcome = lab.run(0, spec).await;
    if outcome.end != End::Exited(0) || !text(&outcome.stdout).starts_with("DENIED NOTHING") {
        surprises.push(format!(
            "exec.weird: {:?} {}",
            outcome.end,
            text(&outcome.stdout)
        ));
    }
    surprises
}
