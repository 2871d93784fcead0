//! The launcher's own standing when memory is short.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// How likely a victim this process is when memory is short. The kernel gives one score to all who share their memory, as a command and
/// its launcher do until the command executes.
pub(super) struct OwnScore {
    file: File,
    text: String,
}

impl OwnScore {
    /// Ours, if it is below `bound` and can be told.
    pub(super) fn below(bound: i32) -> Option<OwnScore> {
        let path = "/proc/self/oom_score_adj";
        let mut file = File::options().read(true).write(true).open(path).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let score: i32 = text.trim().parse().ok()?;
        (score < bound).then_some(OwnScore { file, text })
    }

    /// Best effort, as making the command a likelier one is.
    pub(super) fn restore(&self) {
        let _ = self.file.write_at(self.text.as_bytes(), 0);
    }
}
