//! `Q8_0`: 32 codes of 8 bits with a scale. `w = code · d`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 32 signed bytes, the codes. −128 is not used: some runtimes negate codes |

use super::bits::{f16_of, put_f16};
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
pub(in crate::codec) struct Q8_0;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 6] = [1002, 1026, 1038, 1014, 1008, 996];

kernel! {
    fn encode_q8_0<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q8_0, false>(band, k, effort, out)
    }
}

impl BlockType for Q8_0 {
    const NAME: &'static str = "q8_0";
    const POSITION: u8 = 9;
    const DTYPE: Dtype = Dtype::Q8_0;
    const CODE_BITS: u32 = 8;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q8_0;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        for (out, code) in out[2..].iter_mut().zip(&from.codes) {
            *out = code.wrapping_sub(127);
        }
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        for (code, byte) in into.codes.iter_mut().zip(&block[2..]) {
            *code = byte.wrapping_add(127);
        }
    }

    fn value(code: u8) -> f32 {
        f32::from(code.wrapping_sub(127).cast_signed())
    }
}

impl LinearBlock for Q8_0 {
    type Levels = Integers<-127, 127>;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        Some(rule::bytes(w))
    }
}
