//! `Q2_K`: 256 codes of 2 bits in groups of 16. `w = code · (d · scale) − dmin · min`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | 16 bytes: the scale of each group in the lower half, its minimum in the upper half |
//! | 16 | 64 bytes: the codes, of each half of the block the codes `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits |
//! | 80 | `d` and `dmin`, binary16 |

use super::bits::{add_quarters, f16_of, put_f16, put_quarters};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::Integers;
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Q2K;

/// Starts of the search, see [`Starts::Clips`].
const CLIPS: [[i16; 2]; 10] = [
    [1200, 1200],
    [0, 2400],
    [2400, 0],
    [0, 400],
    [3200, 2800],
    [400, 3600],
    [3600, -400],
    [400, -400],
    [800, 2000],
    [1600, 400],
];

kernel! {
    fn encode_q2_k<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q2K, true>(band, k, effort, out)
    }
}

impl BlockType for Q2K {
    const NAME: &'static str = "q2_k";
    const POSITION: u8 = 11;
    const DTYPE: Dtype = Dtype::Q2_K;
    const CODE_BITS: u32 = 2;
    const GROUP: usize = 16;
    const KERNEL: BlockKernel = encode_q2_k;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        for ((out, scale), min) in out.iter_mut().zip(from.scales).zip(from.mins) {
            *out = scale.cast_unsigned() | min << 4;
        }
        put_quarters(|at| from.codes[at], &mut out[16..80]);
        put_f16(from.d, &mut out[80..]);
        put_f16(from.dmin, &mut out[82..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        for ((byte, scale), min) in block.iter().zip(&mut into.scales).zip(&mut into.mins) {
            (*scale, *min) = ((byte & 15).cast_signed(), byte >> 4);
        }
        into.codes.fill(0);
        add_quarters(&block[16..80], 0, &mut into.codes);
        (into.d, into.dmin) = (f16_of(&block[80..]), f16_of(&block[82..]));
    }

    fn value(code: u8) -> f32 {
        f32::from(code)
    }
}

impl LinearBlock for Q2K {
    type Levels = Integers<0, 3>;

    const MINIMA: bool = true;
    const SCALES: [f32; 2] = [0.0, 15.0];
    const MAX_MIN: f32 = 15.0;
    const STARTS: Starts = Starts::Clips(&CLIPS);
    const DIVISORS: &'static [[f32; 2]] = &[[15.0, 15.0], [14.0, 15.0], [13.0, 15.0], [12.0, 14.0]];
}
