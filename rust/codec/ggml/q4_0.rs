//! `Q4_0`: 32 codes of 4 bits with a scale. `w = (code − 8) · d`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 16 bytes: byte `i` holds the lower four bits of code `i` in its lower half, and of code `i + 16` in its upper half |

use super::bits::{f16_of, halves_of, put_f16, put_halves};
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
pub(in crate::codec) struct Q4_0;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [930, 760, 1020, 860, 680];

kernel! {
    fn encode_q4_0<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q4_0, false>(band, k, effort, out)
    }
}

impl BlockType for Q4_0 {
    const NAME: &'static str = "q4_0";
    const POSITION: u8 = 5;
    const DTYPE: Dtype = Dtype::Q4_0;
    const CODE_BITS: u32 = 4;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q4_0;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        put_halves(&from.codes[..32], &mut out[2..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        halves_of(&block[2..], &mut into.codes[..32]);
    }

    fn value(code: u8) -> f32 {
        f32::from(code) - 8.0
    }
}

impl LinearBlock for Q4_0 {
    type Levels = Integers<-8, 7>;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        Some(rule::symmetric(w, 8.0))
    }
}
