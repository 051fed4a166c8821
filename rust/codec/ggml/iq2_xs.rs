//! `IQ2_XS`: 256 weights in groups of 16, eight at a time coded by one of 512 vectors. See [`super::codebook`].
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 32 little-endian words: the code in the lower nine bits, above it seven signs, the first in the lowest bit |
//! | 66 | 8 bytes: the scales, the even groups in the lower halves |

use super::bits::{f16_of, put_f16};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::codebook::{self, Codebook, CodebookBlock, even_signs, put_scales, scales_of, signs_of};
use super::encode::EncodedBlocks;
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq2Xs;

kernel! {
    fn encode_iq2_xs<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        codebook::encode::<V, W, Iq2Xs>(band, k, effort, out)
    }
}

impl BlockType for Iq2Xs {
    const NAME: &'static str = "iq2_xs";
    const POSITION: u8 = 21;
    const DTYPE: Dtype = Dtype::IQ2_XS;
    const CODE_BITS: u32 = 2;
    const GROUP: usize = 16;
    const KERNEL: BlockKernel = encode_iq2_xs;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        for (codes, out) in from.codes.chunks_exact(8).zip(out[2..66].chunks_exact_mut(2)) {
            let word = Self::vector(codes) | u16::from(signs_of(codes)) << 9;
            out.copy_from_slice(&word.to_le_bytes());
        }
        put_scales(&from.scales, &mut out[66..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        scales_of(&block[66..], &mut into.scales);
        for (codes, word) in into.codes.chunks_exact_mut(8).zip(block[2..66].chunks_exact(2)) {
            let word = u16::from_le_bytes([word[0], word[1]]);
            Self::put_vector(word & 511, even_signs((word >> 9) as u8), codes);
        }
    }

    fn value(code: u8) -> f32 {
        Self::signed(code)
    }

    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * Self::multiple(of.scales[at])
    }
}

impl CodebookBlock for Iq2Xs {
    const CODEBOOK: &'static Codebook = &codebook::IQ2_XS;
    const DIMENSIONS: usize = 8;
    const MAGNITUDES: &'static [f32] = &[8.0, 25.0, 43.0];
    const STEP: f32 = 0.25;
    const EVEN_SIGNS: bool = true;
    const START: f32 = 0.035;
    const TRIED: &'static [(f32, u8)] = &[(1.0, 4), (1.1, 4)];
}
