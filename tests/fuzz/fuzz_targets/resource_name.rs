//! Whatever the text, parsing a resource name ends without a panic, and what it accepts reads the
//! same once it is rendered.
#![no_main]

use boxwright::reapi::resource::BlobName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|name: &str| {
    if let Ok(read) = BlobName::parse_read(name) {
        assert_eq!(BlobName::parse_read(&read.render()), Ok(read));
    }
    if let Ok(write) = BlobName::parse_write(name) {
        assert_eq!(BlobName::parse_write(&write.render()), Ok(write));
    }
});
