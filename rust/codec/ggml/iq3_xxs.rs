//! `IQ3_XXS`: 256 weights in groups of 32, four at a time coded by one of 256 vectors. See [`super::codebook`].
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 64 bytes: the codes |
//! | 66 | 8 little-endian words, one of each group: seven signs of each eight weights from the lowest bit, and the scale in the upper four bits |

use super::bits::{f16_of, put_f16};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::codebook::{self, Codebook, CodebookBlock, add_signs_and_scales, put_signs_and_scales};
use super::encode::EncodedBlocks;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq3Xxs;

kernel! {
    fn encode_iq3_xxs<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        codebook::encode::<V, W, Iq3Xxs>(band, k, effort, out)
    }
}

impl BlockType for Iq3Xxs {
    const NAME: &'static str = "iq3_xxs";
    const POSITION: u8 = 19;
    const DTYPE: Dtype = Dtype::IQ3_XXS;
    const CODE_BITS: u32 = 3;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_iq3_xxs;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        for (codes, out) in from.codes.chunks_exact(4).zip(&mut out[2..66]) {
            *out = Self::vector(codes) as u8;
        }
        put_signs_and_scales(&from.codes, &from.scales, out[66..].chunks_exact_mut(4));
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        for (at, codes) in into.codes.chunks_exact_mut(4).enumerate() {
            Self::put_vector(u16::from(block[2 + at]), 0, codes);
        }
        add_signs_and_scales(block[66..].chunks_exact(4), &mut into.codes, &mut into.scales);
    }

    fn value(code: u8) -> f32 {
        Self::signed(code)
    }

    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * Self::multiple(of.scales[at])
    }
}

impl CodebookBlock for Iq3Xxs {
    const CODEBOOK: &'static Codebook = &codebook::IQ3_XXS;
    const DIMENSIONS: usize = 4;
    const MAGNITUDES: &'static [f32] = &[4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    const STEP: f32 = 0.5;
    const EVEN_SIGNS: bool = true;
    const START: f32 = 0.0303;
    const TRIED: &'static [(f32, u8)] = &[(1.0, 6), (1.06, 4)];
}
