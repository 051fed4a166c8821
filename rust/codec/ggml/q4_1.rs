//! `Q4_1`: 32 codes of 4 bits with a scale and a minimum. `w = code · d + m`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | `m`, binary16 |
//! | 4 | 16 bytes: byte `i` holds the lower four bits of code `i` in its lower half, and of code `i + 16` in its upper half |

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
pub(in crate::codec) struct Q4_1;

/// Starts of the search, see [`Starts::Clips`].
const CLIPS: [[i16; 2]; 12] = [
    [150, 150],
    [300, -300],
    [-150, 300],
    [-600, -150],
    [600, 150],
    [-300, -450],
    [300, 900],
    [900, 0],
    [-150, -150],
    [0, 900],
    [-600, -600],
    [600, 600],
];

kernel! {
    fn encode_q4_1<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q4_1, true>(band, k, effort, out)
    }
}

impl BlockType for Q4_1 {
    const NAME: &'static str = "q4_1";
    const POSITION: u8 = 6;
    const DTYPE: Dtype = Dtype::Q4_1;
    const CODE_BITS: u32 = 4;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q4_1;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        put_f16(-from.dmin, &mut out[2..]);
        put_halves(&from.codes[..32], &mut out[4..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        into.dmin = -f16_of(&block[2..]);
        into.mins[0] = 1;
        halves_of(&block[4..], &mut into.codes[..32]);
    }

    fn value(code: u8) -> f32 {
        f32::from(code)
    }
}

impl LinearBlock for Q4_1 {
    type Levels = Integers<0, 15>;

    const MINIMA: bool = true;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Clips(&CLIPS);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];

    #[inline(always)]
    fn rule<V: Simd>(w: &[Column]) -> Option<RuleBlock<V>> {
        Some(rule::affine(w, 15.0))
    }
}
