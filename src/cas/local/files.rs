//! Which files a blob has, and what they take on disk.

use super::names::Kind;

/// What a file system takes for a small file at least. Water marks count whole blocks: a cache of
/// small blobs would otherwise fill a disk many times larger than its quota.
const BLOCK: u64 = 4096;

/// What one file with this content takes on disk.
pub(crate) fn disk_size(content: u64) -> u64 {
    content
        .max(1)
        .checked_next_multiple_of(BLOCK)
        .unwrap_or(u64::MAX)
}

/// Which files a blob has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Files(pub(super) u8);

impl Files {
    const UNVERIFIED: u8 = 4;

    pub(super) fn none() -> Self {
        Files(0)
    }
    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }
    pub(super) fn any(self) -> bool {
        self.0 & 3 != 0
    }
    /// The kinds that are there, the plain one first.
    pub(super) fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |&kind| self.has(kind))
    }
    #[must_use]
    pub(super) fn with(self, kind: Kind) -> Self {
        Files(self.0 | Self::bit(kind))
    }
    #[must_use]
    pub(super) fn without(self, kind: Kind) -> Self {
        Files(self.0 & !Self::bit(kind))
    }
    /// Whether the files must be hashed before their first use.
    pub(super) fn unverified(self) -> bool {
        self.0 & Self::UNVERIFIED != 0
    }
    #[must_use]
    pub(super) fn set_unverified(self, yes: bool) -> Self {
        Files(self.0 & !Self::UNVERIFIED | if yes { Self::UNVERIFIED } else { 0 })
    }
    fn bit(kind: Kind) -> u8 {
        match kind {
            Kind::Plain => 1,
            Kind::Executable => 2,
        }
    }
    pub(super) fn count(self) -> u64 {
        u64::from((self.0 & 3).count_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_sizes_are_whole_blocks() {
        for (content, disk) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)] {
            assert_eq!(disk_size(content), disk);
        }
        assert_eq!(disk_size(u64::MAX), u64::MAX);
    }
}
