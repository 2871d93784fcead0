//! What commands have read, so that it can be fetched before they ask for it the next time.
//!
//! Remembered are paths, by the shape of the command: most of what a compiler reads is there under the same name in the next
//! build, whatever has changed in it. A path that was not read any more some times in a row is forgotten. All is
//! bounded, and kept over restarts as a file of lines: `* SHAPE` begins a shape (16 hexadecimal digits), `AGE PATH` is
//! a path of it (line feeds and backslashes in it escaped), oldest shapes first.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::entry::{self, Entry};
use super::subtree::Subtree;
use crate::cas::Wanted;
use crate::reapi::Digest;
use crate::tree::Tree;

/// Paths of one shape.
const PATHS: usize = 8192;
/// Bytes of them that are learnt of one command, whose paths may be as long as its tree is deep.
const SHAPE_BYTES: usize = 2 << 20;
/// Bytes of all paths.
const BYTES: usize = 8 << 20;
/// A path is forgotten when so many commands in a row did not read it.
const AGE: u8 = 4;
/// Between two writes of what was learnt.
const PAUSE: Duration = Duration::from_secs(30);

/// What commands have read, by their shape.
pub(super) struct Profiles {
    kept: Mutex<Kept>,
    saved: Mutex<Option<Instant>>,
    file: Option<PathBuf>,
}

struct Kept {
    shapes: LruCache<u64, Vec<Remembered>>,
    bytes: usize,
    changed: bool,
}

/// A path, and how many commands have not read it since one did.
type Remembered = (Box<str>, u8);

impl Profiles {
    /// Remembers what `file` holds, if there is one, and writes to it what is learnt. A file that is damaged is as good as
    /// far as it can be read.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let mut kept = Kept {
            shapes: LruCache::unbounded(),
            bytes: 0,
            changed: false,
        };
        let text = file.as_ref().and_then(|file| {
            let found = std::fs::metadata(file).ok()?;
            let fits = usize::try_from(found.len()).is_ok_and(|bytes| bytes <= 4 * BYTES);
            fits.then(|| std::fs::read_to_string(file).ok()).flatten()
        });
        kept.read(&text.unwrap_or_default());
        Profiles {
            kept: Mutex::new(kept),
            saved: Mutex::new(None),
            file,
        }
    }

    /// The contents that a command of the first of these shapes that is known will want, in the order in which it will
    /// want them; those after the first `most` bytes are left out.
    pub(super) fn wanted(&self, shapes: &[u64], root: &Subtree, most: u64) -> Vec<Wanted> {
        let mut kept = self.kept.lock();
        let known = shapes.iter().find(|shape| kept.shapes.contains(shape));
        let Some(paths) = known.and_then(|shape| kept.shapes.get(shape)) else {
            return Vec::new();
        };
        let mut seen = HashSet::new();
        let mut ahead: u64 = 0;
        { paths.iter() }
            .filter_map(|(path, _)| file(root, path))
            .filter(|wanted| !wanted.digest.is_empty() && seen.insert(wanted.digest))
            .take_while(|wanted| {
                ahead = ahead.saturating_add(wanted.digest.size());
                ahead <= most
            })
            .collect()
    }

    /// Remembers what a command of these shapes has read of its tree.
    pub(super) fn learn(&self, shapes: &[u64], tree: &Tree, read: &[Digest]) {
        let read = &read[..read.len().min(PATHS)];
        let paths = tree.paths_within(read, SHAPE_BYTES);
        let read: Vec<&str> = { read.iter() }
            .filter_map(|digest| paths.get(digest).map(String::as_str))
            .collect();
        if read.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        shapes.iter().for_each(|shape| kept.learn(*shape, &read));
        kept.changed = true;
        kept.shrink();
    }

    /// Writes what was learnt if it was not written lately. Blocks.
    pub(super) fn save_now_and_then(&self) -> std::io::Result<()> {
        let mut saved = self.saved.lock();
        if saved.is_some_and(|saved| saved.elapsed() < PAUSE) {
            return Ok(());
        }
        *saved = Some(Instant::now());
        self.save()
    }

    /// Writes what was learnt since the last time. Blocks.
    pub(super) fn save(&self) -> std::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let text = {
            let mut kept = self.kept.lock();
            if !std::mem::take(&mut kept.changed) {
                return Ok(());
            }
            kept.text()
        };
        let temporary = file.with_extension("new");
        let mut out = std::fs::File::create(&temporary)?;
        out.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, file)
    }
}

impl Kept {
    fn learn(&mut self, shape: u64, read: &[&str]) {
        let old = self.shapes.pop(&shape).unwrap_or_default();
        self.bytes -= bytes(&old);
        let known: HashSet<&str> = read.iter().copied().collect();
        let mut paths: Vec<Remembered> = read.iter().map(|path| ((*path).into(), 0)).collect();
        let not_read = old.into_iter().filter(|(path, _)| !known.contains(&**path));
        paths.extend(not_read.filter_map(|(path, age)| (age < AGE - 1).then(|| (path, age + 1))));
        paths.truncate(PATHS);
        let mut left = Some(SHAPE_BYTES);
        let fit = { paths.iter() }.take_while(|(path, _)| {
            left = left.and_then(|left| left.checked_sub(path.len()));
            left.is_some()
        });
        let fit = fit.count();
        paths.truncate(fit);
        self.bytes += bytes(&paths);
        self.shapes.put(shape, paths);
    }

    fn shrink(&mut self) {
        while self.bytes > BYTES
            && let Some((_, paths)) = self.shapes.pop_lru()
        {
            self.bytes -= bytes(&paths);
        }
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes * 2);
        for (shape, paths) in self.shapes.iter().rev() {
            text += &format!("* {shape:016x}\n");
            for (path, age) in paths {
                let path = path.replace('\\', "\\\\").replace('\n', "\\n");
                text += &format!("{age} {path}\n");
            }
        }
        text
    }

    fn read(&mut self, text: &str) {
        let mut shape = None;
        let mut read: HashMap<u64, Vec<Remembered>> = HashMap::new();
        let mut order = Vec::new();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("*", name)) => {
                    shape = u64::from_str_radix(name, 16).ok();
                    order.extend(shape);
                }
                Some((age, path)) => {
                    if let (Some(shape), Ok(age)) = (shape, age.parse()) {
                        let paths = read.entry(shape).or_default();
                        if paths.len() < PATHS {
                            paths.push((unescaped(path).into(), age));
                        }
                    }
                }
                None => {}
            }
        }
        for shape in order {
            if let Some(paths) = read.remove(&shape) {
                self.bytes += bytes(&paths);
                self.shapes.put(shape, paths);
            }
        }
        self.shrink();
    }
}

fn unescaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next().map(|c| if c == 'n' { '\n' } else { c })),
            other => text.push(other),
        }
    }
    text
}

/// What paths occupy.
fn bytes(paths: &[Remembered]) -> usize {
    paths.iter().map(|(path, _)| path.len() + 40).sum()
}

/// The file at a path; links are not followed.
fn file(root: &Subtree, path: &str) -> Option<Wanted> {
    let mut at = root;
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    for name in above.split('/').filter(|name| !name.is_empty()) {
        at = at.child(name)?;
    }
    match entry::at(&at.directory, entry::find(&at.directory, name)?)? {
        Entry::File(index) => {
            let file = at.directory.files.get(index)?;
            Some(Wanted {
                digest: file.digest,
                executable: file.executable,
            })
        }
        _ => None,
    }
}

/// Where what was learnt is kept, beside the directory of the input roots.
pub(super) fn beside(dir: &Path) -> PathBuf {
    dir.with_file_name("input-profiles")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            shapes: LruCache::unbounded(),
            bytes: 0,
            changed: false,
        }
    }

    fn paths(kept: &mut Kept, shape: u64) -> Vec<String> {
        let paths = kept.shapes.get(&shape).unwrap();
        paths.iter().map(|(path, _)| path.to_string()).collect()
    }

    #[test]
    fn what_is_read_comes_first_and_what_is_no_longer_read_goes() {
        let mut kept = kept();
        kept.learn(1, &["a", "b"]);
        for _ in 0..AGE - 1 {
            kept.learn(1, &["c", "a"]);
            assert_eq!(paths(&mut kept, 1), ["c", "a", "b"]);
        }
        kept.learn(1, &["c", "a"]);
        assert_eq!(paths(&mut kept, 1), ["c", "a"]);
    }

    #[test]
    fn it_is_kept_over_restarts_whatever_the_paths_are() {
        let mut one = kept();
        one.learn(7, &["src/a b.c", "line\nfeed", "back\\slash\\n", "ü"]);
        one.learn(8, &["x"]);
        let mut other = kept();
        other.read(&one.text());
        assert_eq!(paths(&mut other, 7), paths(&mut one, 7));
        assert_eq!(paths(&mut other, 8), ["x"]);
        assert_eq!(other.bytes, one.bytes);
        // Damaged: as good as can be.
        let text = one.text();
        for end in 0..text.len() {
            if text.is_char_boundary(end) {
                kept().read(&text[..end]);
            }
        }
        other.read("* 9\n255 old\n");
        other.learn(9, &["new"]);
        assert_eq!(paths(&mut other, 9), ["new"]);
        kept().read("0 orphan\n* not-a-number\n1 x\n*\n\n300 y\n");
    }

    #[test]
    fn one_command_does_not_push_out_what_others_have_read() {
        let mut kept = kept();
        kept.learn(1, &["a"]);
        let long = "p".repeat(SHAPE_BYTES / 2 - 10);
        for tree in 0..3 {
            let paths = ["x", "y", "z"].map(|name| format!("{tree}{name}{long}"));
            kept.learn(2, &paths.each_ref().map(|path| &**path));
            kept.shrink();
        }
        assert_eq!(paths(&mut kept, 1), ["a"]);
        assert_eq!(paths(&mut kept, 2).len(), 2);
    }

    #[test]
    fn it_is_bounded() {
        let mut kept = kept();
        let long = "p".repeat(1000);
        for shape in 0..20_000 {
            kept.learn(shape, &[&long]);
            kept.shrink();
            assert!(kept.bytes <= BYTES);
        }
        assert!(kept.shapes.contains(&19_999) && !kept.shapes.contains(&0));
        let many: Vec<String> = (0..PATHS + 10).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        kept.learn(1, &many);
        assert_eq!(paths(&mut kept, 1).len(), PATHS);
    }
}
