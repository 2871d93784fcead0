//! The program that runs inside the benchmark's actions: it reads a part of the inputs, writes outputs,
//! and says what it read and how much CPU that took. Built static by `benches/run`, so that a sandbox needs nothing of the
//! host.
//!
//! Arguments: FILES READ_MILLIONTHS OUTPUTS OUTPUT_SIZE OUTPUT_SEED

mod layout;

use std::io::Write;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .map(|word| word.parse().expect("a number"))
        .collect();
    let [files, millionths, outputs, size, seed] = numbers[..] else {
        panic!("five arguments are wanted, not {}", numbers.len());
    };
    let count = layout::read_count(files, millionths);
    let (mut sum, mut bytes) = (0u64, 0u64);
    for i in 0..count {
        let j = layout::read_file(i, files, count);
        let path = format!(
            "{}/{}",
            layout::folders_of(j, files).join("/"),
            layout::file_name(j)
        );
        let contents = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        sum = sum.wrapping_add(layout::sum(&contents));
        bytes += contents.len() as u64;
    }
    if outputs > 0 {
        std::fs::create_dir_all("out").expect("folder out");
        let mut contents = vec![0; size as usize];
        for i in 0..outputs {
            layout::fill(layout::output_key(seed, i), 0, &mut contents);
            let path = format!("out/{}", layout::output_name(i));
            let mut file = std::fs::File::create(path).expect("an output file");
            file.write_all(&contents).expect("an output's contents");
        }
    }
    println!("sum={sum:016x} files={count} bytes={bytes} cpu_us={}", cpu_us());
}

/// What this thread has used of a processor; 0 if the kernel does not tell.
fn cpu_us() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next();
    nanoseconds.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) / 1000
}
