//! `IQ4_XS`: 256 codes of 4 bits in groups of 32. `w = value(code) · (d · (scale − 32))`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | the upper two bits of the scales of eight groups, the first in the lowest bits of a little-endian word |
//! | 4 | 4 bytes: the lower four bits of the scales, the even groups in the lower halves |
//! | 8 | 128 bytes: of each group 16 bytes, the first 16 codes in their lower halves, the others in their upper halves |
//!
//! The values are [`NON_LINEAR`].

use super::bits::{f16_of, halves_of, put_f16, put_halves};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::{NON_LINEAR, NonLinear};
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq4Xs;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [1000, 1060, 940, 880, 820];

kernel! {
    fn encode_iq4_xs<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Iq4Xs, false>(band, k, effort, out)
    }
}

impl BlockType for Iq4Xs {
    const NAME: &'static str = "iq4_xs";
    const POSITION: u8 = 16;
    const DTYPE: Dtype = Dtype::IQ4_XS;
    const CODE_BITS: u32 = 4;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_iq4_xs;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        let mut upper = 0;
        for at in 0..4 {
            let [even, odd] = [from.scales[2 * at], from.scales[2 * at + 1]].map(|scale| (scale + 32).cast_unsigned());
            upper |= u16::from(even >> 4 | odd >> 4 << 2) << (4 * at);
            out[4 + at] = even & 15 | odd << 4;
        }
        out[2..4].copy_from_slice(&upper.to_le_bytes());
        for (codes, out) in from.codes.chunks_exact(32).zip(out[8..].chunks_exact_mut(16)) {
            put_halves(codes, out);
        }
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        let upper = u16::from_le_bytes([block[2], block[3]]);
        for (at, scale) in into.scales[..8].iter_mut().enumerate() {
            let lower = block[4 + at / 2] >> (at % 2 * 4) & 15;
            *scale = (lower | ((upper >> (2 * at) & 3) as u8) << 4).cast_signed() - 32;
        }
        for (bytes, codes) in block[8..].chunks_exact(16).zip(into.codes.chunks_exact_mut(32)) {
            halves_of(bytes, codes);
        }
    }

    fn value(code: u8) -> f32 {
        NON_LINEAR[usize::from(code)]
    }
}

impl LinearBlock for Iq4Xs {
    type Levels = NonLinear;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [-32.0, 31.0];
    const MAX_MIN: f32 = 0.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[-32.0, 1.0], [31.0, 1.0]];
}
