//! `MXFP4`: 32 codes of type E2M1 with a scale that is a power of two. `w = e2m1(code) · 2^(e − 127)`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `e`, of type E8M0 |
//! | 1 | 16 bytes: byte `i` holds code `i` in its lower half, code `i + 16` in its upper half |
//!
//! The numbers are those of the codec [`mxfp4`](crate::codec::float::mxfp4), in another order. As in ggml, codes here stand for
//! twice their value, and the scale `d` is half as large. The name of the scheme is `gguf-mxfp4`, since that of the other is
//! `mxfp4`. What a release stores in MXFP4 is passed through: all bits are those of the release, negative zeros, too.

use super::bits::{halves_of, put_halves};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::DoubledE2m1;
use super::linear::{LinearBlock, RuleBlock, Starts};
use super::rule;
use crate::codec::{Effort, PassedRows, RowError};
use crate::dtype::{Dtype, e2m1_values};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

#[derive(Debug)]
pub(in crate::codec) struct Mxfp4Block;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [1000, 750, 850, 1200, 1500];

/// The exponents of the scales that the encoder chooses, as stored in an `f32`: from the least normal number to the largest of
/// which 12 times is finite.
const EXPONENTS: [u32; 2] = [1, 251];

kernel! {
    fn encode_mxfp4_block<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Mxfp4Block, false>(band, k, effort, out)
    }
}

/// The power of two with this exponent in an `f32`.
#[inline(always)]
fn power(exponent: u32) -> f32 {
    f32::from_bits(exponent.clamp(EXPONENTS[0], EXPONENTS[1]) << 23)
}

impl BlockType for Mxfp4Block {
    const NAME: &'static str = "gguf-mxfp4";
    const POSITION: u8 = 17;
    const DTYPE: Dtype = Dtype::MXFP4;
    const CODE_BITS: u32 = 4;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_mxfp4_block;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        // `d` is `2^(e − 128)`. Those of the first two exponents are subnormal.
        let bits = from.d.to_bits();
        out[0] = if bits >> 23 == 0 { (bits >> 22) as u8 } else { (bits >> 23) as u8 + 1 };
        put_halves(&from.codes[..32], &mut out[1..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        let e = u32::from(block[0]);
        into.d = f32::from_bits(if e < 2 { 1 << (21 + e) } else { (e - 1) << 23 });
        halves_of(&block[1..], &mut into.codes[..32]);
    }

    fn repack(rows: PassedRows<'_>, out: &mut Vec<u8>) {
        let (codes, _) = rows.codes.as_chunks::<16>();
        for (block, scale) in codes.iter().zip(rows.scales) {
            out.push(*scale);
            // The source has two codes that follow each other in a byte, so the halves of a block are bytes 0 to 7 and 8 to 15.
            let (first, second) = block.split_at(8);
            for (low, high) in first.iter().zip(second) {
                out.extend([low & 15 | high << 4, low >> 4 | high & 0xf0]);
            }
        }
    }

    fn value(code: u8) -> f32 {
        // The sum makes 0 of −0, as in ggml.
        2.0 * e2m1_values()[usize::from(code)] + 0.0
    }
}

impl LinearBlock for Mxfp4Block {
    type Levels = DoubledE2m1;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0], [1.5, 1.0], [0.7, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        // The largest magnitude becomes at least 8 and less than 16 units of the doubled values, of which 12 is the largest.
        Some(rule::nearest::<V, DoubledE2m1>(w, |largest| {
            let exponent = largest.to_bits() >> 23;
            if largest == 0.0 { f32::from_bits(1 << 21) } else { power(exponent.saturating_sub(3)) }
        }))
    }

    #[inline(always)]
    fn store<V: Simd>(d: V) -> V {
        d.map(|d| power(d.to_bits().wrapping_add(1 << 22) >> 23))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_a_release_are_put_in_the_order_of_blocks() {
        let codes: Vec<u8> = (0..64_u8).map(|at| at.wrapping_mul(7) % 16).collect();
        let bytes: Vec<u8> = codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
        let mut out = Vec::new();
        Mxfp4Block::repack(PassedRows { rows: 1, codes: &bytes, scales: &[120, 255] }, &mut out);
        assert_eq!(out.len(), 34);
        for (at, block) in out.chunks(17).enumerate() {
            let mut expected = [0; 17];
            expected[0] = [120, 255][at];
            put_halves(&codes[32 * at..32 * at + 32], &mut expected[1..]);
            assert_eq!(block, expected);
        }
    }
}
