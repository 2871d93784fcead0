//! A cgroup that counts the CPU of a driver and of all that it starts, the dead included.

use std::fs;
use std::path::{Path, PathBuf};

/// Removed by [`Group::remove`].
pub(crate) struct Group(PathBuf);

impl Group {
    /// A new one, of the first version where that counts CPU, otherwise of the second.
    pub(crate) fn make(name: &str) -> Result<Group, String> {
        let first = Path::new("/sys/fs/cgroup/cpuacct");
        let base = match first.is_dir() {
            true => first,
            false => Path::new("/sys/fs/cgroup"),
        };
        let path = base.join(format!("boxwright-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).map_err(|e| {
            format!(
                "cannot make {}, which counts CPU: {e}; measuring takes root",
                path.display()
            )
        })?;
        Ok(Group(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts this process into the group of this path.
    pub(crate) fn enter(path: &Path) -> Result<(), String> {
        fs::write(path.join("cgroup.procs"), "0")
            .map_err(|e| format!("cannot enter {}: {e}", path.display()))
    }

    /// Seconds of CPU so far.
    pub(crate) fn cpu(&self) -> Result<f64, String> {
        let read = |file: &str| fs::read_to_string(self.0.join(file));
        if let Ok(nanoseconds) = read("cpuacct.usage") {
            let nanoseconds = nanoseconds.trim().parse::<f64>();
            return nanoseconds.map(|n| n / 1e9).map_err(|e| e.to_string());
        }
        let stat = read("cpu.stat").map_err(|e| format!("{}: {e}", self.0.display()))?;
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        let usage = usage.and_then(|word| word.trim().parse::<f64>().ok());
        Ok(usage.ok_or("cpu.stat tells no usage_usec")? / 1e6)
    }

    /// Once everything in it is dead.
    pub(crate) fn remove(self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("sandbox_overhead: {} is left behind", self.0.display());
    }
}
