//! Paths that a Command names: cleaned, and held within the input root.
//!
//! REAPI: "The paths are relative to the working directory of the action execution." `..` is legal
//! as long as the path stays within the input root (BuildStream declares `../../../install`); it
//! is resolved by its letters, before anything exists on disk.

/// Cleans `path`, which counts from `base` (clean itself), to segments joined by `/`; "" is the
/// root. The error says what is wrong with the path.
pub(super) fn within_root(base: &str, path: &str) -> Result<String, &'static str> {
    if path.starts_with('/') {
        return Err("is absolute; it must be relative to the input root");
    }
    if path.contains('\0') {
        return Err("contains a NUL byte");
    }
    if path.len() > 4096 {
        return Err("is longer than 4096 bytes");
    }
    let mut segments: Vec<&str> = base.split('/').filter(|s| !s.is_empty()).collect();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or("leaves the input root")?;
            }
            name if name.len() > 255 => return Err("has a name of more than 255 bytes"),
            name => segments.push(name),
        }
    }
    Ok(segments.join("/"))
}

/// The directory that holds `path` (clean); `None` for the root itself.
pub(super) fn parent(path: &str) -> Option<&str> {
    if path.is_empty() {
        return None;
    }
    Some(path.rsplit_once('/').map_or("", |(parent, _)| parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_within_the_root() {
        let ok = |base, path| within_root(base, path).unwrap();
        assert_eq!(ok("", "a/b"), "a/b");
        assert_eq!(ok("w/d", "a"), "w/d/a");
        assert_eq!(
            ok("buildstream/lab/hello.bst", "../../../buildstream-install"),
            "buildstream-install"
        );
        assert_eq!(ok("w", "."), "w");
        assert_eq!(ok("w", ""), "w");
        assert_eq!(ok("w", ".."), "");
        assert_eq!(ok("", "a//b/./c/"), "a/b/c");
        assert_eq!(ok("", "a/../b"), "b");
        assert!(within_root("w", "../..").is_err());
        assert!(within_root("", "a/../../b").is_err());
        assert!(within_root("", "/etc/passwd").is_err());
        assert!(within_root("", "a\0b").is_err());
        assert!(within_root("", &"x".repeat(256)).is_err());
        assert!(within_root("", &"x/".repeat(4000)).is_err());
    }

    #[test]
    fn parents() {
        assert_eq!(parent(""), None);
        assert_eq!(parent("a"), Some(""));
        assert_eq!(parent("a/b/c"), Some("a/b"));
    }
}
