//! SHA-256, as lower-case hexadecimal.

use sha2::{Digest as _, Sha256};

/// An incremental digest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest(Sha256);

impl Digest {
    /// Adds `bytes`.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds `text`, preceded by its length, so that the digest of `ab`, `c` differs from that of `a`, `bc`.
    pub(crate) fn text(&mut self, text: &str) {
        self.update(&(text.len() as u64).to_le_bytes());
        self.update(text.as_bytes());
    }

    /// The digest of everything that was added.
    #[must_use]
    pub(crate) fn finish(self) -> String {
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        self.0.finalize().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// The digest of `bytes`.
    #[must_use]
    pub(crate) fn of(bytes: &[u8]) -> String {
        let mut digest = Self::default();
        digest.update(bytes);
        digest.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha_256() {
        assert_eq!(Digest::of(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let (mut one, mut other) = (Digest::default(), Digest::default());
        one.text("ab");
        one.text("c");
        other.text("a");
        other.text("bc");
        assert_ne!(one.finish(), other.finish());
    }
}
