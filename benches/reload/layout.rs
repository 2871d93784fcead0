//! What the load generator and the helper inside an action agree on: where input file number `j`
//! lies, and which bytes a key stands for. Nothing is stored: both sides compute it.

/// The finaliser of SplitMix64: a number that looks random.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Word number `i` of the contents that `key` stands for.
fn word(key: u64, i: u64) -> u64 {
    let z = key ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 32)
}

/// Fills `buffer` with the contents of `key` from byte `offset` on, which is a multiple of 8.
pub(crate) fn fill(key: u64, offset: u64, buffer: &mut [u8]) {
    let mut i = offset / 8;
    let mut chunks = buffer.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word(key, i).to_le_bytes());
        i += 1;
    }
    let rest = chunks.into_remainder();
    let last = word(key, i).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The wrapping sum of little-endian words, the last one padded with zeros.
pub(crate) fn sum(buffer: &[u8]) -> u64 {
    let mut total = 0u64;
    for chunk in buffer.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        total = total.wrapping_add(u64::from_le_bytes(bytes));
    }
    total
}

/// The folders above file `j`, below the input root: three levels, `PER_FOLDER` files in each leaf.
pub(crate) fn folders_of(j: u64, files: u64) -> Vec<String> {
    const LEVELS: u32 = 3;
    const PER_FOLDER: u64 = 20;
    let leaves = files.div_ceil(PER_FOLDER).max(1);
    let mut base = 1u64;
    while base.pow(LEVELS) < leaves {
        base += 1;
    }
    let mut rest = j / PER_FOLDER;
    let mut folders = Vec::new();
    for _ in 0..LEVELS {
        folders.push(format!("d{}", rest % base));
        rest /= base;
    }
    folders.push("in".to_owned());
    folders.reverse();
    folders
}

/// The name of file `j`.
pub(crate) fn file_name(j: u64) -> String {
    format!("f{j:06}.bin")
}

/// How many of `files` an action reads that reads `millionths` of them.
pub(crate) fn read_count(files: u64, millionths: u64) -> u64 {
    (files * millionths).div_ceil(1_000_000).min(files)
}

/// The number of the `i`-th file that is read, of `count`.
pub(crate) fn read_file(i: u64, files: u64, count: u64) -> u64 {
    i * files / count
}

/// The name of output `i`.
pub(crate) fn output_name(i: u64) -> String {
    format!("o{i:06}.bin")
}

/// The contents of output `i` of an action.
pub(crate) fn output_key(seed: u64, i: u64) -> u64 {
    mix(seed ^ mix(i))
}
