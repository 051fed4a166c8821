//! `Q5_1`: 32 codes of 5 bits with a scale and a minimum. `w = code · d + m`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | `m`, binary16 |
//! | 4 | bit 4 of the 32 codes, the first code in the lowest bit of a little-endian word |
//! | 8 | 16 bytes: byte `i` holds the lower four bits of code `i` in its lower half, and of code `i + 16` in its upper half |

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
pub(in crate::codec) struct Q5_1;

/// Starts of the search, see [`Starts::Clips`].
const CLIPS: [[i16; 2]; 9] =
    [[75, 0], [-225, 75], [0, 225], [-300, -375], [300, 75], [-375, -150], [0, 75], [-75, -225], [-375, -300]];

kernel! {
    fn encode_q5_1<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q5_1, true>(band, k, effort, out)
    }
}

impl BlockType for Q5_1 {
    const NAME: &'static str = "q5_1";
    const POSITION: u8 = 8;
    const DTYPE: Dtype = Dtype::Q5_1;
    const CODE_BITS: u32 = 5;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q5_1;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        put_f16(-from.dmin, &mut out[2..]);
        let codes = from.codes.first_chunk().expect("a block");
        out[4..8].copy_from_slice(&fifth_bits(codes).to_le_bytes());
        put_halves(&from.codes[..32], &mut out[8..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        into.dmin = -f16_of(&block[2..]);
        into.mins[0] = 1;
        halves_of(&block[8..], &mut into.codes[..32]);
        let upper = u32::from_le_bytes(*block[4..].first_chunk().expect("four bytes"));
        for (at, code) in into.codes[..32].iter_mut().enumerate() {
            *code |= (upper >> at & 1) as u8 * 16;
        }
    }

    fn value(code: u8) -> f32 {
        f32::from(code)
    }
}

impl LinearBlock for Q5_1 {
    type Levels = Integers<0, 31>;

    const MINIMA: bool = true;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Clips(&CLIPS);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        Some(rule::affine(w, 31.0))
    }
}
