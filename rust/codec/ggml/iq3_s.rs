//! `IQ3_S`: 256 weights in groups of 32, four at a time coded by one of 512 vectors. See [`super::codebook`].
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 64 bytes: the lower eight bits of the codes |
//! | 66 | 8 bytes: bit 8 of the codes, that of code `8 i + j` as bit `j` of byte `i` |
//! | 74 | 32 bytes: the signs, the first in the lowest bit |
//! | 106 | 4 bytes: the scales, the even groups in the lower halves |

use super::bits::{f16_of, put_f16};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::codebook::{self, Codebook, CodebookBlock, put_scales, scales_of, signs_of};
use super::encode::EncodedBlocks;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq3S;

kernel! {
    fn encode_iq3_s<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        codebook::encode::<V, W, Iq3S>(band, k, effort, out)
    }
}

impl BlockType for Iq3S {
    const NAME: &'static str = "iq3_s";
    const POSITION: u8 = 18;
    const DTYPE: Dtype = Dtype::IQ3_S;
    const CODE_BITS: u32 = 3;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_iq3_s;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        out[66..74].fill(0);
        for (at, codes) in from.codes.chunks_exact(4).enumerate() {
            let [lower, upper] = Self::vector(codes).to_le_bytes();
            out[2 + at] = lower;
            out[66 + at / 8] |= upper << (at % 8);
        }
        for (codes, out) in from.codes.chunks_exact(8).zip(&mut out[74..106]) {
            *out = signs_of(codes);
        }
        put_scales(&from.scales[..8], &mut out[106..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        scales_of(&block[106..], &mut into.scales[..8]);
        for (at, codes) in into.codes.chunks_exact_mut(4).enumerate() {
            let upper = block[66 + at / 8] >> (at % 8) & 1;
            let negative = block[74 + at / 2] >> (at % 2 * 4);
            Self::put_vector(u16::from_le_bytes([block[2 + at], upper]), negative, codes);
        }
    }

    fn value(code: u8) -> f32 {
        Self::signed(code)
    }

    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * Self::multiple(of.scales[at])
    }
}

impl CodebookBlock for Iq3S {
    const CODEBOOK: &'static Codebook = &codebook::IQ3_S;
    const DIMENSIONS: usize = 4;
    const MAGNITUDES: &'static [f32] = &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    const STEP: f32 = 2.0;
    const EVEN_SIGNS: bool = false;
    const START: f32 = 0.125;
    const TRIED: &'static [(f32, u8)] = &[(1.0, 6), (1.06, 4)];
}
