//! Names and paths from outside, made fit for an error message: escaped, and shortened.

/// A name in quotes, control characters escaped, at most about 80 characters of it.
pub(crate) fn name(name: &str) -> String {
    let mut shown: String = name.chars().take(80).collect();
    if shown.len() < name.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// Bytes that may not be UTF-8, the same way.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..160).unwrap_or(bytes).escape_ascii();
    let dots = if bytes.len() > 160 { "..." } else { "" };
    format!("\"{shown}{dots}\"")
}

/// A path without quotes: control characters escaped, the middle of a very long one left out.
pub(crate) fn path(path: &str) -> String {
    const LONGEST: usize = 1024;
    let mut shown = path.to_owned();
    if path.len() > LONGEST {
        let mut head = LONGEST / 2;
        let mut tail = path.len() - LONGEST / 2;
        while !path.is_char_boundary(head) {
            head -= 1;
        }
        while !path.is_char_boundary(tail) {
            tail += 1;
        }
        shown = format!("{}[...]{}", &path[..head], &path[tail..]);
    }
    if shown.chars().any(char::is_control) {
        shown = shown
            .chars()
            .flat_map(|c| {
                let escape = c.is_control().then(|| c.escape_default());
                let plain = (!c.is_control()).then_some(c);
                escape.into_iter().flatten().chain(plain)
            })
            .collect();
    }
    shown
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_stay_short_and_on_one_line() {
        assert_eq!(super::name("a\nb"), r#""a\nb""#);
        assert!(super::name(&"ä".repeat(1 << 20)).len() < 200);
        assert_eq!(super::bytes(b"caf\xe9"), r#""caf\xe9""#);
        assert!(super::bytes(&[0xff; 4096]).len() < 700);
        assert_eq!(super::path("src/a b/\u{1b}[1mü"), "src/a b/\\u{1b}[1mü");
        assert!(super::path(&"ü/".repeat(1 << 20)).len() < 1100);
    }
}
