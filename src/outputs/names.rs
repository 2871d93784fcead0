//! What kinds of things are in a directory of which many entries are declared: to list it costs less than to look at each.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

/// Declared entries from which listing is worth it.
const MANY: usize = 16;
/// Of a directory with more entries for each declared one than this, most would be listed for nothing.
const STRANGERS: usize = 4;

/// Those of the declared entries of a directory that are regular files, as a listing says.
pub(super) struct Names<'o>(HashSet<&'o str>);

impl<'o> Names<'o> {
    /// Lists the directory, if that is worth it for what is declared in it and can be done.
    pub(super) fn of(
        directory: &OwnedFd,
        declared: impl Iterator<Item = &'o str>,
    ) -> Option<Names<'o>> {
        let declared: HashSet<&str> = declared.collect();
        if declared.len() < MANY {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // One that may not be listed can still be looked into.
        let open = rustix::fs::openat(directory, ".", flags, Mode::empty()).ok()?;
        let mut files = HashSet::with_capacity(declared.len());
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut listing = RawDir::new(&open, buffer.spare_capacity_mut());
        let mut seen = 0;
        while let Some(entry) = listing.next() {
            let entry = entry.ok()?;
            seen += 1;
            if seen > declared.len().saturating_mul(STRANGERS) {
                return None;
            }
            // How long and how many the other names are is the command's choice.
            if entry.file_type() == FileType::RegularFile
                && let Ok(name) = entry.file_name().to_str()
                && let Some(name) = declared.get(name)
            {
                files.insert(*name);
            }
        }
        Some(Names(files))
    }

    /// Whether a regular file has the name. Nothing follows from `false`: some file systems do not tell in a listing.
    pub(super) fn is_file(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn files_are_known_by_a_listing_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut names: Vec<String> = (0..MANY).map(|n| format!("file-{n}")).collect();
        for name in &names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::write(dir.path().join("stranger"), "").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("file-1", dir.path().join("link")).unwrap();
        let others = ["directory", "link", "absent", "."];
        names.extend(others.map(str::to_owned));
        let names = Names::of(&open(dir.path()), names.iter().map(|name| &**name)).unwrap();
        assert!(names.is_file("file-0"));
        for other in others.into_iter().chain(["stranger"]) {
            assert!(!names.is_file(other), "{other}");
        }
    }

    #[test]
    fn a_directory_of_many_strangers_is_not_listed_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..=MANY * STRANGERS).map(|n| n.to_string()).collect();
        for name in &names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let of = |declared| {
            let declared = names.iter().take(declared).map(|name| &**name);
            Names::of(&open(dir.path()), declared)
        };
        assert!(of(MANY).is_none());
        assert!(of(MANY - 1).is_none());
        assert!(of(2 * MANY).is_some());
    }
}
