//! `IQ2_S`: 256 weights in groups of 16, eight at a time coded by one of 1,024 vectors. See [`super::codebook`].
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 32 bytes: the lower eight bits of the codes |
//! | 34 | 32 bytes: the signs, the first in the lowest bit |
//! | 66 | 8 bytes: the upper two bits of the codes, four in a byte, the first in the lowest bits |
//! | 74 | 8 bytes: the scales, the even groups in the lower halves |

use super::bits::{f16_of, put_f16};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::codebook::{self, Codebook, CodebookBlock, put_scales, scales_of, signs_of};
use super::encode::EncodedBlocks;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq2S;

kernel! {
    fn encode_iq2_s<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        codebook::encode::<V, W, Iq2S>(band, k, effort, out)
    }
}

impl BlockType for Iq2S {
    const NAME: &'static str = "iq2_s";
    const POSITION: u8 = 20;
    const DTYPE: Dtype = Dtype::IQ2_S;
    const CODE_BITS: u32 = 2;
    const GROUP: usize = 16;
    const KERNEL: BlockKernel = encode_iq2_s;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        out[66..74].fill(0);
        for (at, codes) in from.codes.chunks_exact(8).enumerate() {
            let [lower, upper] = Self::vector(codes).to_le_bytes();
            out[2 + at] = lower;
            out[34 + at] = signs_of(codes);
            out[66 + at / 4] |= upper << (at % 4 * 2);
        }
        put_scales(&from.scales, &mut out[74..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        scales_of(&block[74..], &mut into.scales);
        for (at, codes) in into.codes.chunks_exact_mut(8).enumerate() {
            let upper = block[66 + at / 4] >> (at % 4 * 2) & 3;
            Self::put_vector(u16::from_le_bytes([block[2 + at], upper]), block[34 + at], codes);
        }
    }

    fn value(code: u8) -> f32 {
        Self::signed(code)
    }

    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * Self::multiple(of.scales[at])
    }
}

impl CodebookBlock for Iq2S {
    const CODEBOOK: &'static Codebook = &codebook::IQ2_S;
    const DIMENSIONS: usize = 8;
    const MAGNITUDES: &'static [f32] = &[8.0, 25.0, 43.0];
    const STEP: f32 = 0.25;
    const EVEN_SIGNS: bool = false;
    const START: f32 = 0.0347;
    const TRIED: &'static [(f32, u8)] = &[(1.0, 4), (1.1, 4)];
}
