//! The input roots of the actions, one for each that runs at a time: small trees that are roots of their own, with a static and a
//! dynamic program that does nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What an action runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    Static,
    Dynamic,
}

impl Program {
    pub(crate) const ALL: [Program; 2] = [Program::Static, Program::Dynamic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Static => "static",
            Program::Dynamic => "dynamic",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Program::Static => "a static `true`",
            Program::Dynamic => "/usr/bin/true, dynamic",
        }
    }

    /// Where it is in a stage.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Program::Static => "/true",
            Program::Dynamic => DYNAMIC,
        }
    }
}

const DYNAMIC: &str = "/usr/bin/true";

/// The directory with the trees `0`, `1` and so on; removed when dropped.
pub(crate) struct Stage(TempDir);

/// The tree of one slot.
pub(crate) fn tree(stage: &Path, slot: usize) -> PathBuf {
    stage.join(slot.to_string())
}

impl Stage {
    pub(crate) fn make(trees: usize) -> Result<Stage, String> {
        let dir = tempfile::tempdir().map_err(|e| format!("cannot make a directory: {e}"))?;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), open).map_err(|e| e.to_string())?;
        let program = dir.path().join("true");
        static_true(dir.path(), &program)?;
        for slot in 0..trees {
            let tree = tree(dir.path(), slot);
            for place in ["proc", "dev", "tmp", "var/tmp", "usr/bin"] {
                fs::create_dir_all(tree.join(place)).map_err(|e| format!("{place}: {e}"))?;
            }
            copy(&program, &tree, "/true")?;
            copy(Path::new(DYNAMIC), &tree, DYNAMIC)?;
            for library in libraries(DYNAMIC)? {
                copy(Path::new(&library), &tree, &library)?;
            }
        }
        Ok(Stage(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A static program that does nothing, no larger than it must be.
fn static_true(dir: &Path, program: &Path) -> Result<(), String> {
    let source = dir.join("true.rs");
    fs::write(&source, "fn main() {}\n").map_err(|e| e.to_string())?;
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let built = Command::new(&rustc)
        .args([
            "--edition=2024",
            "-O",
            "-Ctarget-feature=+crt-static",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-o",
        ])
        .args([program, &source])
        .status()
        .map_err(|e| format!("cannot run {rustc}: {e}"))?;
    built
        .success()
        .then_some(())
        .ok_or(format!("{rustc} failed"))
}

/// The files that a dynamic program is linked with at its start, the dynamic linker among them.
fn libraries(program: &str) -> Result<Vec<String>, String> {
    let said = Command::new("ldd").arg(program).output();
    let said = said.map_err(|e| format!("cannot run ldd: {e}"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let paths = said
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(paths.map(str::to_owned).collect())
}

fn copy(from: &Path, tree: &Path, to: &str) -> Result<(), String> {
    let to = tree.join(to.trim_start_matches('/'));
    let make = || {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, &to)
    };
    make()
        .map(drop)
        .map_err(|e| format!("cannot make {}: {e}", to.display()))
}
