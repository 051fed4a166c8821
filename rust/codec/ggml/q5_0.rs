//! `Q5_0`: 32 codes of 5 bits with a scale. `w = (code − 16) · d`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | bit 4 of the 32 codes, the first code in the lowest bit of a little-endian word |
//! | 6 | 16 bytes: byte `i` holds the lower four bits of code `i` in its lower half, and of code `i + 16` in its upper half |

use super::bits::{f16_of, fifth_bits, halves_of, put_f16, put_halves};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::Integers;
use super::linear::{LinearBlock, RuleBlock, Starts};
use super::rule;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

#[derive(Debug)]
pub(in crate::codec) struct Q5_0;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 6] = [980, 1120, 910, 1020, 850, 960];

kernel! {
    fn encode_q5_0<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q5_0, false>(band, k, effort, out)
    }
}

impl BlockType for Q5_0 {
    const NAME: &'static str = "q5_0";
    const POSITION: u8 = 7;
    const DTYPE: Dtype = Dtype::Q5_0;
    const CODE_BITS: u32 = 5;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q5_0;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        let codes = from.codes.first_chunk().expect("a block");
        out[2..6].copy_from_slice(&fifth_bits(codes).to_le_bytes());
        put_halves(&from.codes[..32], &mut out[6..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        halves_of(&block[6..], &mut into.codes[..32]);
        let upper = u32::from_le_bytes(*block[2..].first_chunk().expect("four bytes"));
        for (at, code) in into.codes[..32].iter_mut().enumerate() {
            *code |= (upper >> at & 1) as u8 * 16;
        }
    }

    fn value(code: u8) -> f32 {
        f32::from(code) - 16.0
    }
}

impl LinearBlock for Q5_0 {
    type Levels = Integers<-16, 15>;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        Some(rule::symmetric(w, 16.0))
    }
}
