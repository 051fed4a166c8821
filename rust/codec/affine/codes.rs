//! Codes to bytes.

use crate::simd::kernel;
use crate::simd::vector::BYTES;

/// Codes that fill whole bytes, whatever their width.
pub const CODES: usize = 8;

kernel! {
    /// Appends `codes` to `out`, `BITS` bits each.
    ///
    /// # Panics
    /// If they do not fill whole bytes by eights.
    pub fn squeeze<V: Vector, const BITS: usize>(codes: &[u8], out: &mut Vec<u8>) {
        assert!(codes.len().is_multiple_of(CODES), "pack: not whole bytes");
        let (from, width) = (out.len(), BYTES / CODES * BITS);
        out.resize(from + codes.len() / CODES * BITS, 0);
        let (mut codes, mut out) = (codes, &mut out[from..]);
        if BITS == 4 {
            let (pairs, rest) = codes.as_chunks();
            let (registers, rest_out) = out.split_at_mut(pairs.len() * BYTES);
            for (codes, out) in pairs.iter().zip(registers.as_chunks_mut().0) {
                *out = V::nibbles(codes);
            }
            (codes, out) = (rest, rest_out);
        }
        // Whole registers are written as long as there is room for one: what is too much, the next ones overwrite.
        let fit = (out.len() + width).saturating_sub(BYTES) / width;
        let (registers, rest) = codes.split_at(fit.min(codes.len() / BYTES) * BYTES);
        for (at, codes) in registers.as_chunks().0.iter().enumerate() {
            V::squeeze::<BITS>(codes, out[at * width..].first_chunk_mut().expect("room for a register"));
        }
        let out = &mut out[registers.len() / CODES * BITS..];
        for (codes, out) in rest.chunks(BYTES).zip(out.chunks_mut(width)) {
            let [mut last, mut bytes] = [[0; BYTES]; 2];
            last[..codes.len()].copy_from_slice(codes);
            V::squeeze::<BITS>(&last, &mut bytes);
            out.copy_from_slice(&bytes[..out.len()]);
        }
    }
}
