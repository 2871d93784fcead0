//! The file of a long stream: its beginning in order, then a ring that holds the end. When the stream is over, a ring that
//! went round is put in order in a second file, with a line before it that says how much is left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sandbox::{Captured, SpillFile};

/// How many bytes are kept of a stream's two ends. Both are kept because a compiler's first error and a
/// test's last words are what a reader looks for.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Ends {
    head: u64,
    tail: u64,
}

impl Ends {
    pub(in crate::sandbox) fn of(keep: u64) -> Ends {
        let tail = keep / 2;
        Ends {
            head: keep - tail,
            tail,
        }
    }

    /// How many of so many bytes are not kept.
    pub(in crate::sandbox) fn left_out(self, total: u64) -> u64 {
        total.saturating_sub(self.head + self.tail)
    }

    /// Takes the middle out of a stream that is in memory as a whole, if it is too long.
    pub(in crate::sandbox) fn cut(self, whole: &mut Vec<u8>) {
        let total = whole.len() as u64;
        let left_out = self.left_out(total);
        if left_out > 0 {
            let middle = self.head as usize..(total - self.tail) as usize;
            whole.splice(middle, line(left_out).into_bytes());
        }
    }
}

/// What stands where the middle was.
fn line(left_out: u64) -> String {
    format!("\n[boxwright: {left_out} bytes are left out here]\n")
}

/// The file; removed unless it is handed over.
pub(in crate::sandbox) struct Spill {
    path: PathBuf,
    file: File,
    ends: Ends,
    /// Bytes given so far.
    total: u64,
    handed_over: bool,
}

impl Spill {
    pub(in crate::sandbox) fn create(dir: &Path, ends: Ends) -> io::Result<Spill> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("stream-{}-{count}", std::process::id()));
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match opened {
                // Left by a daemon that was killed and had the same process id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => {
                    return Ok(Spill {
                        file: opened?,
                        path,
                        ends,
                        total: 0,
                        handed_over: false,
                    });
                }
            }
        }
    }

    /// Takes the next bytes of the stream.
    pub(in crate::sandbox) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let Ends { head, tail } = self.ends;
        let begin = head.saturating_sub(self.total).min(data.len() as u64) as usize;
        self.file.write_all_at(&data[..begin], self.total)?;
        // Of what follows the beginning, how much came before this; and what of this may be the end.
        let before = (self.total + begin as u64).saturating_sub(head);
        let rest = &data[begin..];
        let stale = (rest.len() as u64).saturating_sub(tail);
        let fresh = &rest[stale as usize..];
        if !fresh.is_empty() {
            let at = (before + stale) % tail;
            let cut = (tail - at).min(fresh.len() as u64) as usize;
            self.file.write_all_at(&fresh[..cut], head + at)?;
            self.file.write_all_at(&fresh[cut..], head)?;
        }
        self.total += data.len() as u64;
        Ok(())
    }

    /// The stream is over. What is left of it comes back in memory if it is at most `memory` bytes.
    pub(in crate::sandbox) fn finish(mut self, dir: &Path, memory: usize) -> io::Result<Captured> {
        let left_out = self.ends.left_out(self.total);
        if left_out == 0 {
            return Ok(self.hand_over());
        }
        let Ends { head, tail } = self.ends;
        let line = line(left_out);
        if head + tail + line.len() as u64 <= memory as u64 {
            let mut whole = Vec::new();
            self.put_in_order(&line, &mut whole)?;
            return Ok(Captured::Memory(whole.into()));
        }
        let mut ordered = Spill::create(dir, Ends::of(u64::MAX))?;
        self.put_in_order(&line, &mut ordered.file)?;
        ordered.total = head + line.len() as u64 + tail;
        Ok(ordered.hand_over())
    }

    fn put_in_order(&mut self, line: &str, to: &mut impl Write) -> io::Result<()> {
        let Ends { head, tail } = self.ends;
        self.copy(0, head, to)?;
        to.write_all(line.as_bytes())?;
        if tail > 0 {
            let oldest = (self.total - head) % tail;
            self.copy(head + oldest, tail - oldest, to)?;
            self.copy(head, oldest, to)?;
        }
        Ok(())
    }

    fn copy(&mut self, from: u64, length: u64, to: &mut impl Write) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(from))?;
        let copied = io::copy(&mut (&self.file).take(length), to)?;
        if copied < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn hand_over(mut self) -> Captured {
        self.handed_over = true;
        Captured::File {
            path: SpillFile::new(self.path.clone()),
            size: self.total,
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !self.handed_over {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
