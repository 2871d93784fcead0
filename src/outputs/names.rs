//! What kinds of things are in a directory of which many entries are declared: to list it costs less than to look at each.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

/// Declared entries from which listing is worth it.
const MANY: usize = 16;
/// Of a directory with more entries for each declared one than this, most would be listed for nothing.
const STRANGERS: usize = 4;

/// The entries of a directory whose names are UTF-8.
pub(super) struct Names(HashMap<Box<str>, FileType>);

impl Names {
    /// Lists the directory, if that is worth it for so many declared entries and can be done.
    pub(super) fn of(directory: &OwnedFd, declared: usize) -> Option<Names> {
        if declared < MANY {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // One that may not be listed can still be looked into.
        let open = rustix::fs::openat(directory, ".", flags, Mode::empty()).ok()?;
        let mut names = HashMap::with_capacity(declared);
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut listing = RawDir::new(&open, buffer.spare_capacity_mut());
        let mut seen = 0;
        while let Some(entry) = listing.next() {
            let entry = entry.ok()?;
            seen += 1;
            if seen > declared.saturating_mul(STRANGERS) {
                return None;
            }
            if let Ok(name) = entry.file_name().to_str() {
                names.insert(name.into(), entry.file_type());
            }
        }
        Some(Names(names))
    }

    /// Whether a regular file has the name. Nothing follows from `false`: some file systems do not tell in a listing.
    pub(super) fn is_file(&self, name: &str) -> bool {
        self.0.get(name) == Some(&FileType::RegularFile)
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
        for n in 0..MANY {
            std::fs::write(dir.path().join(format!("file-{n}")), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("file-1", dir.path().join("link")).unwrap();
        let names = Names::of(&open(dir.path()), MANY).unwrap();
        assert!(names.is_file("file-0"));
        for other in ["directory", "link", "absent", ".", ".."] {
            assert!(!names.is_file(other), "{other}");
        }
    }

    #[test]
    fn a_directory_of_many_strangers_is_not_listed_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MANY * STRANGERS {
            std::fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert!(Names::of(&open(dir.path()), MANY).is_none());
        assert!(Names::of(&open(dir.path()), MANY - 1).is_none());
        assert!(Names::of(&open(dir.path()), 2 * MANY).is_some());
    }
}
