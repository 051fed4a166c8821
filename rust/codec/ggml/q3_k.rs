//! `Q3_K`: 256 codes of 3 bits in groups of 16. `w = (code − 4) · (d · (scale − 32))`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | 32 bytes: bit 2 of the codes, that of code `32 j + i` as bit `j` of byte `i` |
//! | 32 | 64 bytes: bits 0 and 1 of the codes, of each half of the block the codes `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits |
//! | 96 | 8 bytes: the lower four bits of the scales, that of group `i` in the lower half of byte `i`, of group `i + 8` in the upper half |
//! | 104 | 4 bytes: the upper two bits of the scales, of the groups `i`, `i + 4`, `i + 8` and `i + 12` in byte `i`, from the lowest bits |
//! | 108 | `d`, binary16 |

use super::bits::{add_eighths, add_quarters, f16_of, put_eighths, put_f16, put_halves, put_quarters};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::Integers;
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Q3K;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [840, 620, 1000, 500, 720];

kernel! {
    fn encode_q3_k<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q3K, false>(band, k, effort, out)
    }
}

impl BlockType for Q3K {
    const NAME: &'static str = "q3_k";
    const POSITION: u8 = 12;
    const DTYPE: Dtype = Dtype::Q3_K;
    const CODE_BITS: u32 = 3;
    const GROUP: usize = 16;
    const KERNEL: BlockKernel = encode_q3_k;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_eighths(&from.codes, 2, &mut out[..32]);
        put_quarters(|at| from.codes[at], &mut out[32..96]);
        let scales = from.scales.map(|scale| (scale + 32).cast_unsigned());
        put_halves(&scales, &mut out[96..104]);
        for at in 0..4 {
            out[104 + at] = (0..4).fold(0, |byte, quarter| byte | scales[at + 4 * quarter] >> 4 << (2 * quarter));
        }
        put_f16(from.d, &mut out[108..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.codes.fill(0);
        add_quarters(&block[32..96], 0, &mut into.codes);
        add_eighths(&block[..32], 2, &mut into.codes);
        for (at, scale) in into.scales.iter_mut().enumerate() {
            let lower = block[96 + at % 8] >> (at / 8 * 4) & 15;
            let upper = block[104 + at % 4] >> (at / 4 * 2) & 3;
            *scale = (lower | upper << 4).cast_signed() - 32;
        }
        into.d = f16_of(&block[108..]);
    }

    fn value(code: u8) -> f32 {
        f32::from(code) - 4.0
    }
}

impl LinearBlock for Q3K {
    type Levels = Integers<-4, 3>;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [-32.0, 31.0];
    const MAX_MIN: f32 = 0.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[-32.0, 1.0], [31.0, 1.0]];
}
