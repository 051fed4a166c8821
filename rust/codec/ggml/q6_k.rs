//! `Q6_K`: 256 codes of 6 bits in groups of 16. `w = (code − 32) · (d · scale)`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | 128 bytes: the lower four bits of the codes, of each half of the block the first 64 codes in the lower halves of 64 bytes, the others in the upper halves |
//! | 128 | 64 bytes: the upper two bits of the codes, of each half of the block the codes `i`, `i + 32`, `i + 64` and `i + 96` in byte `i`, from the lowest bits |
//! | 192 | 16 signed bytes: the scales of the groups |
//! | 208 | `d`, binary16 |

use super::bits::{add_quarters, f16_of, halves_of, put_f16, put_halves, put_quarters};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::Integers;
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Q6K;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [1000, 1080, 1120, 965, 1055];

kernel! {
    fn encode_q6_k<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Q6K, false>(band, k, effort, out)
    }
}

impl BlockType for Q6K {
    const NAME: &'static str = "q6_k";
    const POSITION: u8 = 15;
    const DTYPE: Dtype = Dtype::Q6_K;
    const CODE_BITS: u32 = 6;
    const GROUP: usize = 16;
    const KERNEL: BlockKernel = encode_q6_k;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        for (codes, out) in from.codes.chunks_exact(128).zip(out.chunks_exact_mut(64)) {
            put_halves(codes, out);
        }
        put_quarters(|at| from.codes[at] >> 4, &mut out[128..192]);
        out[192..208].copy_from_slice(&from.scales.map(i8::cast_unsigned));
        put_f16(from.d, &mut out[208..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        for (bytes, codes) in block[..128].chunks_exact(64).zip(into.codes.chunks_exact_mut(128)) {
            halves_of(bytes, codes);
        }
        add_quarters(&block[128..192], 4, &mut into.codes);
        for (scale, byte) in into.scales.iter_mut().zip(&block[192..]) {
            *scale = byte.cast_signed();
        }
        into.d = f16_of(&block[208..]);
    }

    fn value(code: u8) -> f32 {
        f32::from(code) - 32.0
    }
}

impl LinearBlock for Q6K {
    type Levels = Integers<-32, 31>;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [-128.0, 127.0];
    const MAX_MIN: f32 = 0.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[-128.0, 1.0], [127.0, 1.0]];
}
