//! `IQ2_XXS`: 256 weights in groups of 32, eight at a time coded by one of 256 vectors. See [`super::codebook`].
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 8 bytes of each group: four codes, and a little-endian word of seven signs of each eight weights from the lowest bit, with the scale in the upper four bits |

use super::bits::{f16_of, put_f16};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::codebook::{self, Codebook, CodebookBlock, add_signs_and_scales, put_signs_and_scales};
use super::encode::EncodedBlocks;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq2Xxs;

kernel! {
    fn encode_iq2_xxs<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        codebook::encode::<V, W, Iq2Xxs>(band, k, effort, out)
    }
}

impl BlockType for Iq2Xxs {
    const NAME: &'static str = "iq2_xxs";
    const POSITION: u8 = 22;
    const DTYPE: Dtype = Dtype::IQ2_XXS;
    const CODE_BITS: u32 = 2;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_iq2_xxs;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        for (codes, out) in from.codes.chunks_exact(32).zip(out[2..].chunks_exact_mut(8)) {
            for (codes, out) in codes.chunks_exact(8).zip(out) {
                *out = Self::vector(codes) as u8;
            }
        }
        put_signs_and_scales(&from.codes, &from.scales, out[2..].chunks_exact_mut(8).map(|out| &mut out[4..]));
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        for (codes, bytes) in into.codes.chunks_exact_mut(32).zip(block[2..].chunks_exact(8)) {
            for (codes, &byte) in codes.chunks_exact_mut(8).zip(bytes) {
                Self::put_vector(u16::from(byte), 0, codes);
            }
        }
        let words = block[2..].chunks_exact(8).map(|bytes| &bytes[4..]);
        add_signs_and_scales(words, &mut into.codes, &mut into.scales);
    }

    fn value(code: u8) -> f32 {
        Self::signed(code)
    }

    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * Self::multiple(of.scales[at])
    }
}

impl CodebookBlock for Iq2Xxs {
    const CODEBOOK: &'static Codebook = &codebook::IQ2_XXS;
    const DIMENSIONS: usize = 8;
    const MAGNITUDES: &'static [f32] = &[8.0, 25.0, 43.0];
    const STEP: f32 = 0.25;
    const EVEN_SIGNS: bool = true;
    const START: f32 = 0.0352;
    const TRIED: &'static [(f32, u8)] = &[(1.0, 4), (1.1, 4)];
}
