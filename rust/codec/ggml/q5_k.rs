//! `Q5_K`: 256 codes of 5 bits in groups of 32. `w = code · (d · scale) − dmin · min`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d` and `dmin`, binary16 |
//! | 4 | 12 bytes: the scales and minima of eight groups, six bits each, see [`put_scales_and_mins`] |
//! | 16 | 32 bytes: bit 4 of the codes, that of code `32 j + i` as bit `j` of byte `i` |
//! | 48 | 128 bytes: of each 64 codes 32 bytes, the first 32 codes in their lower halves, the others in their upper halves |

use super::bits::{
    add_eighths, f16_of, halves_of, put_eighths, put_f16, put_halves, put_scales_and_mins, scales_and_mins_of,
};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::Integers;
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Q5K;

/// Starts of the search, see [`Starts::Clips`].
const CLIPS: [[i16; 2]; 9] =
    [[75, 0], [-225, 75], [0, 225], [-300, -375], [300, 75], [-375, -150], [0, 75], [-75, -225], [-375, -300]];

kernel! {
    fn encode_q5_k<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q5K, true>(band, k, effort, out)
    }
}

impl BlockType for Q5K {
    const NAME: &'static str = "q5_k";
    const POSITION: u8 = 14;
    const DTYPE: Dtype = Dtype::Q5_K;
    const CODE_BITS: u32 = 5;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_q5_k;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        put_f16(from.dmin, &mut out[2..]);
        put_scales_and_mins(&from.scales, &from.mins, &mut out[4..16]);
        put_eighths(&from.codes, 4, &mut out[16..48]);
        for (codes, out) in from.codes.chunks_exact(64).zip(out[48..].chunks_exact_mut(32)) {
            put_halves(codes, out);
        }
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        (into.d, into.dmin) = (f16_of(block), f16_of(&block[2..]));
        scales_and_mins_of(&block[4..16], &mut into.scales, &mut into.mins);
        for (bytes, codes) in block[48..].chunks_exact(32).zip(into.codes.chunks_exact_mut(64)) {
            halves_of(bytes, codes);
        }
        add_eighths(&block[16..48], 4, &mut into.codes);
    }

    fn value(code: u8) -> f32 {
        f32::from(code)
    }
}

impl LinearBlock for Q5K {
    type Levels = Integers<0, 31>;

    const MINIMA: bool = true;
    const SCALES: [f32; 2] = [0.0, 63.0];
    const MAX_MIN: f32 = 63.0;
    const STARTS: Starts = Starts::Clips(&CLIPS);
    const DIVISORS: &'static [[f32; 2]] = &[[63.0, 63.0], [61.0, 63.0], [57.0, 63.0]];
}
