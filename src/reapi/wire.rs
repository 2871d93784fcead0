//! The outermost layer of a serialized message, field by field. A [`Directory`](super::Directory)
//! message is taken apart here rather than by the generated decoder, which would allocate some
//! 150 bytes for every two bytes of an empty node before anything is checked: 64 MiB of those
//! would be gigabytes. Each node is decoded, checked and made compact on its own.

/// One field of a message whose value is length-delimited.
pub(crate) struct Field<'a> {
    /// Its number.
    pub(crate) number: u64,
    /// Its bytes; `None` for fields of another wire type, which only unknown fields may have.
    pub(crate) bytes: Option<&'a [u8]>,
}

/// Takes the next field off the front of `rest`; `Ok(None)` at the end of the message.
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<Field<'a>>, &'static str> {
    if rest.is_empty() {
        return Ok(None);
    }
    let key = varint(rest)?;
    let number = key >> 3;
    if number == 0 || key > u64::from(u32::MAX) {
        return Err("is not a protobuf message: bad field number");
    }
    let bytes = match key & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => {
            take(rest, 8)?;
            None
        }
        2 => {
            let length = varint(rest)?;
            Some(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            None
        }
        _ => return Err("is not a protobuf message: bad wire type"),
    };
    Ok(Some(Field { number, bytes }))
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], &'static str> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (bytes, tail) = rest
        .split_at_checked(length)
        .ok_or("is cut short: a field is longer than the rest of the message")?;
    *rest = tail;
    Ok(bytes)
}

fn varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    for (index, byte) in rest.iter().enumerate().take(10) {
        if index == 9 && *byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(if rest.len() < 10 {
        "is cut short: it ends within a number"
    } else {
        "is not a protobuf message: a number is too long"
    })
}

/// Appends the varint `value`.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_there_and_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(varint(&mut &out[..]), Ok(value));
            assert!(varint(&mut &out[..out.len() - 1]).is_err());
        }
        assert!(varint(&mut &[0xff; 11][..]).is_err());
    }
}
