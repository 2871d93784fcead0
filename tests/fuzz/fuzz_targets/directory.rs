//! Whatever the bytes, decoding a Directory message ends without a panic, and what it accepts keeps the
//! promises of its type.
#![no_main]

use boxwright::reapi::DigestFunction;
use boxwright::tree::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let digest = DigestFunction::Sha256.digest(data);
    let Ok(directory) = decode(digest, data) else {
        return;
    };
    let files = directory.files.iter().map(|f| &*f.name);
    let directories = directory.directories.iter().map(|d| &*d.name);
    let symlinks = directory.symlinks.iter().map(|s| &*s.name);
    assert!(files.clone().is_sorted() && directories.clone().is_sorted());
    assert!(symlinks.clone().is_sorted());
    let mut names: Vec<&str> = files.chain(directories).chain(symlinks).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "unique");
    for name in names {
        assert!(!name.is_empty() && name != "." && name != ".." && name.len() <= 255);
        assert!(!name.contains(['/', '\0']));
    }
    for symlink in &directory.symlinks {
        assert!(!symlink.target.is_empty() && symlink.target.len() <= 4095);
        assert!(!symlink.target.contains('\0'));
    }
});
