//! A machine for classic BPF, as strict as the kernel's checker: for tests, which ask it what a program makes of a call.

/// One instruction: code, jt, jf, k.
pub(super) type Raw = (u16, u8, u8, u32);

/// The words of `struct seccomp_data`.
pub(super) fn data(number: u32, audit: u32, arguments: &[u64; 6]) -> [u32; 16] {
    let mut words = [
        number,
        audit,
        0x1234_5678,
        0x7fff,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    for (n, argument) in arguments.iter().enumerate() {
        words[4 + 2 * n] = *argument as u32;
        words[5 + 2 * n] = (argument >> 32) as u32;
    }
    words
}

/// What the kernel asks of a program before it takes it: known instructions, jumps that stay inside, an end that returns.
pub(super) fn check(program: &[Raw]) {
    assert!((1..=super::MAX_INSTRUCTIONS).contains(&program.len()));
    for (at, &(code, jt, jf, k)) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        match code {
            0x20 => assert!(k % 4 == 0 && k < 64, "load of {k}"),
            0x05 => assert!((k as usize) < left, "a jump out of the program at {at}"),
            0x15 | 0x25 | 0x35 | 0x45 => assert!(
                usize::from(jt) < left && usize::from(jf) < left,
                "a branch out of the program at {at}"
            ),
            0x54 | 0x06 => {}
            other => panic!("instruction {other:#x} at {at}"),
        }
    }
    assert_eq!(program.last().expect("not empty").0, 0x06);
}

/// The program's result, and how many instructions it took.
pub(super) fn run(program: &[Raw], data: &[u32; 16]) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0_u32, 0);
    loop {
        let (code, jt, jf, k) = program[at];
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        steps += 1;
        at += 1;
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x45 => at += branch(accumulator & k != 0),
            0x54 => accumulator &= k,
            0x06 => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}
