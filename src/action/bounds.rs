//! How much an Action or a Command may hold of each kind. It is counted in the serialized message: an empty entry is two bytes
//! there and some 50 once decoded, so that 64 MiB of them would take gigabytes before anything is checked.

use crate::reapi::wire::{self, Field};

/// The largest Action message that is read, in bytes. Real ones have a few hundred.
pub(crate) const MAX_ACTION: u64 = 1 << 20;
/// The largest Command message that is read, in bytes: a long link line has a few megabytes.
pub(crate) const MAX_COMMAND: u64 = 64 << 20;

/// Arguments. No kernel starts a program with more: execve takes 6 MiB of strings and of pointers to them.
const ARGUMENTS: usize = 1 << 20;
/// Environment variables, which are held to the same 6 MiB.
const VARIABLES: usize = 1 << 18;
/// Outputs of all three lists.
const OUTPUTS: usize = 1 << 20;
/// Platform properties, and names of node properties.
const PROPERTIES: usize = 1 << 16;

/// Refuses a serialized Command that holds too much of something, and says of what.
pub(super) fn command(mut message: &[u8]) -> Result<(), String> {
    let (mut arguments, mut variables, mut outputs, mut properties, mut names) = (0, 0, 0, 0, 0);
    while let Some(Field { number, bytes }) = wire::next(&mut message)? {
        match (number, bytes) {
            (1, _) => arguments += 1,
            (2, _) => variables += 1,
            (3 | 4 | 7, _) => outputs += 1,
            (5, Some(platform)) => properties += entries(platform)?,
            (8, _) => names += 1,
            _ => {}
        }
    }
    for (count, bound, what) in [
        (arguments, ARGUMENTS, "arguments"),
        (variables, VARIABLES, "environment variables"),
        (outputs, OUTPUTS, "outputs"),
        (properties, PROPERTIES, "platform properties"),
        (names, PROPERTIES, "output_node_properties"),
    ] {
        within(count, bound, what)?;
    }
    Ok(())
}

/// Refuses a serialized Action that holds too many platform properties.
pub(crate) fn action(mut message: &[u8]) -> Result<(), String> {
    let mut properties = 0;
    while let Some(Field { number, bytes }) = wire::next(&mut message)? {
        if let (10, Some(platform)) = (number, bytes) {
            properties += entries(platform)?;
        }
    }
    within(properties, PROPERTIES, "platform properties")
}

fn within(count: usize, bound: usize, what: &str) -> Result<(), String> {
    match count <= bound {
        true => Ok(()),
        false => Err(format!("has {count} {what}; {bound} are allowed")),
    }
}

/// The properties of a serialized Platform.
fn entries(mut platform: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    while let Some(Field { number, .. }) = wire::next(&mut platform)? {
        count += usize::from(number == 1);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` empty entries of a field.
    fn empty(key: u8, count: usize) -> Vec<u8> {
        [key, 0].repeat(count)
    }

    fn platform(key: u8, count: usize) -> Vec<u8> {
        let inner = empty(0x0a, count);
        let mut message = vec![key];
        wire::put_varint(&mut message, inner.len() as u64);
        message.extend(inner);
        message
    }

    #[test]
    fn what_there_is_too_much_of_is_named() {
        for (key, bound, what) in [
            (0x0a, ARGUMENTS, "arguments"),
            (0x12, VARIABLES, "environment variables"),
            (0x1a, OUTPUTS, "outputs"),
            (0x22, OUTPUTS, "outputs"),
            (0x3a, OUTPUTS, "outputs"),
            (0x42, PROPERTIES, "output_node_properties"),
        ] {
            assert_eq!(command(&empty(key, bound)), Ok(()), "{what}");
            let refusal = command(&empty(key, bound + 1)).unwrap_err();
            assert!(refusal.contains(what), "{refusal}");
        }
        assert_eq!(command(&platform(0x2a, PROPERTIES)), Ok(()));
        let refusal = command(&platform(0x2a, PROPERTIES).repeat(2)).unwrap_err();
        assert!(refusal.contains("platform properties"), "{refusal}");
        assert_eq!(action(&platform(0x52, PROPERTIES)), Ok(()));
        let refusal = action(&platform(0x52, PROPERTIES + 1)).unwrap_err();
        assert!(refusal.contains("platform properties"), "{refusal}");
    }
}
