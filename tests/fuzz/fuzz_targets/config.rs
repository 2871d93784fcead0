//! Whatever the text, parsing a configuration file ends without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = boxwright::config::file::parse(text);
});
