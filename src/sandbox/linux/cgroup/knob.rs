//! One control file of a group, kept open: it is read and written many times, and opening costs as much as reading.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::{CgroupError, failed};

/// A control file.
#[derive(Debug)]
pub(super) struct Knob {
    file: File,
    path: PathBuf,
    /// What it is set to, as far as we know; a write of the same costs nothing.
    set: Option<String>,
}

impl Knob {
    /// Opens a file for reading; `None` if this kernel has no such file.
    pub(super) fn read_only(dir: &Path, name: &str) -> Result<Option<Knob>, CgroupError> {
        Knob::open(dir, name, OpenOptions::new().read(true))
    }

    /// Opens a file for reading and writing; `None` if this kernel has no such file.
    pub(super) fn writable(dir: &Path, name: &str) -> Result<Option<Knob>, CgroupError> {
        Knob::open(dir, name, OpenOptions::new().read(true).write(true))
    }

    fn open(dir: &Path, name: &str, options: &OpenOptions) -> Result<Option<Knob>, CgroupError> {
        let path = dir.join(name);
        match options.open(&path) {
            Ok(file) => Ok(Some(Knob {
                file,
                path,
                set: None,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// Says what a new group is set to.
    pub(super) fn assume(mut self, value: &str) -> Knob {
        self.set = Some(value.to_owned());
        self
    }

    /// Whether setting it to this value would change it.
    pub(super) fn differs(&self, value: &str) -> bool {
        self.set.as_deref() != Some(value)
    }

    /// Writes the value if it is not set already; says whether it wrote.
    pub(super) fn set(&mut self, value: &str) -> Result<bool, CgroupError> {
        if !self.differs(value) {
            return Ok(false);
        }
        self.set = None;
        self.write(value)?;
        self.set = Some(value.to_owned());
        Ok(true)
    }

    /// Writes the value, whatever was there.
    pub(super) fn write(&self, value: &str) -> Result<(), CgroupError> {
        // The kernel takes a value by one call or not at all.
        self.file
            .write_all_at(value.as_bytes(), 0)
            .map_err(failed(format!("write {value:?} to"), &self.path))
    }

    /// The whole text.
    pub(super) fn text(&self) -> Result<String, CgroupError> {
        let mut text = Vec::with_capacity(1024);
        let mut buffer = [0; 1024];
        loop {
            match self.file.read_at(&mut buffer, text.len() as u64) {
                Ok(length) => {
                    text.extend_from_slice(&buffer[..length]);
                    // The kernel shows these files in one piece.
                    if length < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &self.path)(error)),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The number that is its whole text.
    pub(super) fn number(&self) -> Result<u64, CgroupError> {
        let text = self.text()?;
        text.trim()
            .parse()
            .map_err(|_| self.nonsense("number", &text))
    }

    /// The number after `key ` on a line of its own; 0 if there is no such line, as old kernels leave some out.
    pub(super) fn field(&self, key: &'static str) -> Result<u64, CgroupError> {
        let [value] = self.fields([key])?;
        Ok(value)
    }

    /// Several of them, by one read.
    pub(super) fn fields<const N: usize>(
        &self,
        keys: [&'static str; N],
    ) -> Result<[u64; N], CgroupError> {
        let text = self.text()?;
        let mut values = [0; N];
        for (value, key) in values.iter_mut().zip(keys) {
            if let Some(number) = field(&text, key) {
                *value = number.ok_or_else(|| self.nonsense(key, &text))?;
            }
        }
        Ok(values)
    }

    fn nonsense(&self, wanted: &'static str, text: &str) -> CgroupError {
        CgroupError::Nonsense {
            path: self.path.clone(),
            wanted,
            text: text.chars().take(100).collect(),
        }
    }
}

/// Writes to a control file that is used once. Not `fs::write`: where the file is missing that would try to make it, and be told
/// that this is not permitted instead of that there is none.
pub(super) fn write(path: impl AsRef<Path>, value: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_ref())
}

/// The value of `key` in lines of `key value`; `Some(None)` if it is no number.
fn field(text: &str, key: &str) -> Option<Option<u64>> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "low 0\noom 1\noom_kill 3\noom_group_kill x\n";
        assert_eq!(field(text, "oom"), Some(Some(1)));
        assert_eq!(field(text, "oom_kill"), Some(Some(3)));
        assert_eq!(field(text, "oom_group_kill"), Some(None));
        assert_eq!(field(text, "max"), None);
        assert_eq!(field("", "max"), None);
    }

    #[test]
    fn only_what_differs_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pids.max");
        std::fs::write(&path, "max").unwrap();
        let mut knob = Knob::writable(dir.path(), "pids.max")
            .unwrap()
            .unwrap()
            .assume("max");
        std::fs::write(&path, "777").unwrap();
        assert!(!knob.set("max").unwrap());
        assert_eq!(knob.number().unwrap(), 777);
        assert!(knob.set("100").unwrap());
        assert!(!knob.set("100").unwrap());
        assert_eq!(knob.number().unwrap(), 100);
        assert!(Knob::read_only(dir.path(), "pids.peak").unwrap().is_none());
        std::fs::write(&path, "rubbish").unwrap();
        let error = knob.number().unwrap_err().to_string();
        assert!(error.contains("pids.max holds no number"), "{error}");
    }
}
