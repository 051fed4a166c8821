//! Codes to bytes.

use super::kernel;
use super::vector::BYTES;

/// Codes that fill whole bytes, whatever their width.
pub const CODES: usize = 8;

kernel! {
    /// Appends `codes` to `out`, `BITS` bits each.
    ///
    /// # Panics
    /// If they do not fill whole bytes by eights.
    pub fn squeeze<V: Vector, const BITS: usize>(codes: &[u8], out: &mut Vec<u8>) {
        assert!(codes.len().is_multiple_of(CODES), "pack: not whole bytes");
        let from = out.len();
        let length = codes.len() / CODES * BITS;
        // Whole registers are written, of which the next ones overwrite what is too much.
        out.resize(from + length + BYTES, 0);
        let (whole, rest) = codes.as_chunks::<BYTES>();
        let mut at = from;
        for codes in whole {
            V::squeeze::<BITS>(codes, out[at..].first_chunk_mut().expect("room for a register"));
            at += BYTES / CODES * BITS;
        }
        if !rest.is_empty() {
            let mut codes = [0; BYTES];
            codes[..rest.len()].copy_from_slice(rest);
            V::squeeze::<BITS>(&codes, out[at..].first_chunk_mut().expect("room for a register"));
        }
        out.truncate(from + length);
    }
}
