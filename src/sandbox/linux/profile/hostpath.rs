//! What of the host a command may see when its root is made of the host's tools.

use std::fmt;
use std::path::{Path, PathBuf};

/// An absolute path, whose components may hold `*` for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPath(String);

/// What the sandbox makes itself, so that no profile can show the host's.
const OURS: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/tmp",
    "/var/tmp",
    "/etc/passwd",
    "/etc/group",
];

impl HostPath {
    /// Checks a pattern; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<HostPath, String> {
        let Some(relative) = text.strip_prefix('/') else {
            return Err(format!("{text:?} does not begin with /"));
        };
        if relative.is_empty() {
            return Err("/ is the whole host; name the directories that tools need".into());
        }
        if let Some(bad) = text
            .chars()
            .find(|c| "?[]{}".contains(*c) || c.is_control())
        {
            return Err(format!("{text:?} holds {bad:?}; the only wildcard is *"));
        }
        for part in relative.split('/') {
            if matches!(part, "" | "." | "..") {
                return Err(format!("{text:?} holds an empty, . or .. component"));
            }
        }
        let path = Path::new(text);
        if let Some(ours) = OURS.iter().find(|ours| path.starts_with(ours)) {
            return Err(format!(
                "{ours} in a sandbox is always its own, never the host's"
            ));
        }
        Ok(HostPath(text.to_owned()))
    }

    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What there is of it below `root`, as absolute paths without `root`, sorted. Links are named, not followed. A leading dot
    /// must stand in the pattern. What cannot be read counts as not there.
    pub fn expand(&self, root: &Path) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::from("/")];
        for part in self.0[1..].split('/') {
            found = found
                .iter()
                .flat_map(|parent| children(root, parent, part))
                .collect();
        }
        found.sort();
        found
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn children(root: &Path, parent: &Path, part: &str) -> Vec<PathBuf> {
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    if !part.contains('*') {
        let path = parent.join(part);
        let there = std::fs::symlink_metadata(inside(&path)).is_ok();
        return if there { vec![path] } else { Vec::new() };
    }
    let Ok(entries) = std::fs::read_dir(inside(parent)) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let fitting = names.filter(|name| name.to_str().is_some_and(|name| fits(part, name)));
    fitting.map(|name| parent.join(name)).collect()
}

/// Whether a name fits a component with `*` in it.
fn fits(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters_but_not_for_a_leading_dot() {
        for (pattern, name, expected) in [
            ("java*", "java", true),
            ("java*", "java-17-openjdk", true),
            ("java*", "jav", false),
            ("*", "x", true),
            ("*", ".hidden", false),
            (".h*", ".hidden", true),
            ("ld.so.*", "ld.so.cache", true),
            ("ld.so.*", "ld.so", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_names_what_is_there_and_does_not_follow_links() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc/java-17", "etc/java-21", "etc/ssh", "usr/lib"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", root.path().join("etc/java-link")).unwrap();
        let expand = |text: &str| HostPath::parse(text).unwrap().expand(root.path());
        let names = ["/etc/java-17", "/etc/java-21", "/etc/java-link"];
        assert_eq!(expand("/etc/java*"), names.map(PathBuf::from));
        assert_eq!(expand("/usr"), [PathBuf::from("/usr")]);
        assert_eq!(expand("/opt"), Vec::<PathBuf>::new());
        assert_eq!(expand("/etc/*/x"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_pattern_cannot_name_the_whole_host_or_what_the_sandbox_makes() {
        for text in [
            "",
            "usr",
            "/",
            "/usr/../etc",
            "//usr",
            "/usr/",
            "/proc",
            "/sys/fs",
            "/dev/shm",
            "/tmp/x",
            "/etc/[a-z]",
            "/etc/passwd",
        ] {
            assert!(HostPath::parse(text).is_err(), "{text:?}");
        }
    }
}
