//! Greedy packing of small blobs into groups that travel, and are kept in memory, together.

use crate::reapi::Digest;

/// Bytes of one group, message framing included. Well below the 4 MiB that every gRPC peer takes by
/// default, large enough that a call's own cost vanishes, small enough that several groups in
/// flight fit into a few MiB.
pub(super) const GROUP_BYTES: u64 = 2 << 20;

/// What one blob costs in a message beside its bytes: digest (some 80 bytes), status, field
/// headers, rounded up.
pub(super) const BLOB_OVERHEAD: u64 = 160;

/// Blobs of one group: bounds what a server does for one call.
const GROUP_BLOBS: usize = 4096;

/// Splits `items` in order into groups of at most `budget` bytes, framing included; an item that
/// is larger by itself gets a group of its own. Items of one group share a digest function, as the messages
/// that carry them have only one field for it.
pub(super) fn pack<T>(
    items: impl IntoIterator<Item = T>,
    budget: u64,
    digest: impl Fn(&T) -> Digest,
) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    let mut function = None;
    for item in items {
        let digest = digest(&item);
        let cost = digest.size().saturating_add(BLOB_OVERHEAD);
        match groups.last_mut() {
            Some(group)
                if cost <= room
                    && group.len() < GROUP_BLOBS
                    && function == Some(digest.function()) =>
            {
                group.push(item);
                room -= cost;
            }
            _ => {
                groups.push(vec![item]);
                room = budget.saturating_sub(cost);
                function = Some(digest.function());
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::DigestFunction;
    use proptest::prelude::*;

    fn sized(function: DigestFunction, n: usize, size: u64) -> Digest {
        Digest::new(function, function.digest(&n.to_le_bytes()).hash(), size)
    }

    proptest! {
        #[test]
        fn groups_keep_order_budget_and_function(
            sizes in proptest::collection::vec((0u64..5000, any::<bool>()), 0..200),
            budget in 0u64..20_000,
        ) {
            let items: Vec<Digest> = sizes
                .iter()
                .enumerate()
                .map(|(n, (size, blake))| {
                    let function = if *blake { DigestFunction::Blake3 } else { DigestFunction::Sha256 };
                    sized(function, n, *size)
                })
                .collect();
            let groups = pack(items.iter().copied(), budget, |d| *d);
            prop_assert_eq!(groups.concat(), items);
            for group in groups {
                let cost: u64 = group.iter().map(|d| d.size() + BLOB_OVERHEAD).sum();
                prop_assert!(cost <= budget || group.len() == 1);
                prop_assert!(group.iter().all(|d| d.function() == group[0].function()));
            }
        }
    }

    #[test]
    fn groups_have_a_bounded_number_of_blobs() {
        let items = (0..10_000).map(|n| sized(DigestFunction::Sha256, n, 0));
        let groups = pack(items, u64::MAX, |d| *d);
        assert!(groups.iter().all(|g| g.len() <= GROUP_BLOBS));
        assert_eq!(groups.len(), 3);
    }
}
