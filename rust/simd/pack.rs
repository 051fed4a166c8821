//! Codes to a bit stream: the inner loop of [`codec::affine::pack`](crate::codec::affine::pack), which defines the stream.
//!
//! Both methods have a body in plain Rust. An instruction set overrides those that it is faster at.

use super::convert::CHUNK;
use super::vector::Vector;

/// Packs codes, one a byte, into fewer bits.
pub(crate) trait Pack: Vector {
    /// Packs codes of `BITS` bits into the first `CHUNK / 8 * BITS` bytes of `out`. The other bytes of `out` are unspecified.
    #[inline(always)]
    fn pack_bits<const BITS: usize>(codes: &[u8; CHUNK], out: &mut [u8; CHUNK]) {
        for (at, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
            // Close the gaps between the codes of a pair, between pairs, and between fours.
            let codes = u64::from_le_bytes(*eight);
            let pairs = codes & 0x00ff_00ff_00ff_00ff | (codes & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
            let fours = pairs & 0x0000_ffff_0000_ffff | (pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
            let all = fours & 0x0000_0000_ffff_ffff | (fours & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS);
            out[at * BITS..][..BITS].copy_from_slice(&all.to_le_bytes()[..BITS]);
        }
    }

    /// [`pack_bits`](Self::pack_bits) of four bits, of twice as many codes: the result fills a register.
    #[must_use]
    #[inline(always)]
    fn pack_nibbles(codes: &[u8; 2 * CHUNK]) -> [u8; CHUNK] {
        let mut out = [0; CHUNK];
        for (out, codes) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *out = codes[0] | codes[1] << 4;
        }
        out
    }
}
