//! The block types of GGUF, as ggml defines them. Each is a codec with one scheme, named as ggml names the type.
//!
//! A matrix has one part, `blocks`, in the element type of that name: the blocks of each row, one after the other. A block
//! holds 32, 64 or 256 weights of a row, with all that decodes them, so the element type of the source changes no byte.
//!
//! | module | what |
//! |---|---|
//! | `q4_0` `q4_1` `q5_0` `q5_1` `q8_0` `iq4_nl` | blocks of 32 codes with a scale, and some a minimum |
//! | `q2_k` `q3_k` `q4_k` `q5_k` `q6_k` `iq4_xs` | blocks of 256 codes in groups whose scales and minima are multiples of two numbers |
//! | `iq2_xxs` `iq2_xs` `iq2_s` `iq3_xxs` `iq3_s` | blocks of 256 weights, 4 or 8 at a time coded by a vector of a codebook |
//! | [`codebook`] | the codebooks, and the encoder of these types |
//! | `mxfp4` `nvfp4` | E2M1 codes with a scale that is a power of two, or E4M3 |
//! | [`block`] [`linear`] | what a type says of itself, and to the encoder |
//! | [`levels`] | the numbers that codes stand for |
//! | [`rule`] | the encoder of ggml, for `fast` |
//! | [`sums`] [`search`] [`stored`] [`encode`] | the encoder: sums over groups; real-valued scales and minima; stored ones; bands |
//! | [`bits`] | bytes of blocks |
//!
//! `fast` gives the bytes of ggml's reference encoder for the blocks of 32 codes but `iq4_nl`; for the others the first start of
//! the search, rounded. `normal` searches for the least weighted error, and has this result among its candidates: its error is
//! never larger.

mod bits;
mod block;
mod codebook;
mod encode;
pub(super) mod iq2_s;
pub(super) mod iq2_xs;
pub(super) mod iq2_xxs;
pub(super) mod iq3_s;
pub(super) mod iq3_xxs;
pub(super) mod iq4_nl;
pub(super) mod iq4_xs;
mod levels;
mod linear;
pub(super) mod mxfp4;
pub(super) mod nvfp4;
pub(super) mod q2_k;
pub(super) mod q3_k;
pub(super) mod q4_0;
pub(super) mod q4_1;
pub(super) mod q4_k;
pub(super) mod q5_0;
pub(super) mod q5_1;
pub(super) mod q5_k;
pub(super) mod q6_k;
pub(super) mod q8_0;
mod rule;
mod search;
mod stored;
mod sums;

use super::{Band, Bits, Codec, Context, Encode, Extent, Metric, PartSpec, PassedRows, RowError, Rows, Scheme};
use crate::band::Matrix;
use crate::dtype::{Dtype, Float};
use crate::simd::vector::BAND_ROWS;
use block::{BlockFields, BlockType};
use encode::EncodedBlocks;

/// The only scheme of a type.
const fn scheme<B: BlockType>() -> Scheme {
    Scheme::new(B::POSITION, 0)
}

impl<B: BlockType> Codec for B {
    fn schemes(&self) -> &'static [Scheme] {
        const { &[scheme::<B>()] }
    }

    fn spell(&self, _scheme: Scheme) -> String {
        B::NAME.to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == B::NAME).then_some(scheme::<B>())
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        B::DTYPE.block().0
    }

    fn blocks(&self) -> &'static str {
        match B::SIZE.0 {
            32 => "blocks of 32",
            64 => "blocks of 64",
            _ => "blocks of 256",
        }
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(B::CODE_BITS)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        vec![PartSpec { kind: "blocks", dtype: B::DTYPE, extent: Extent::PerRow(matrix.cols) }]
    }

    /// The element type of the weights is not stored.
    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        let (dtype, cols) = part("blocks")?;
        (dtype == B::DTYPE).then_some((cols, Float::BF16))
    }

    fn decode(&self, _scheme: Scheme, _of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [blocks] = parts else { unreachable!("a matrix has one part") };
        let mut fields = BlockFields::EMPTY;
        for (block, out) in blocks.chunks_exact(B::SIZE.1).zip(out.chunks_exact_mut(B::SIZE.0)) {
            B::unpack(block, &mut fields);
            let groups = out.chunks_exact_mut(B::GROUP).zip(fields.codes.chunks_exact(B::GROUP));
            for (at, (out, codes)) in groups.enumerate() {
                let (scale, min) = (B::scale(&fields, at), fields.dmin * f32::from(fields.mins[at]));
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = scale * B::value(code) - min;
                }
            }
        }
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }

    fn pass_through(&self, _scheme: Scheme, _float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        B::repack(rows, &mut parts[0]);
    }
}

impl<B: BlockType> Encode for B {
    fn encode(
        &self,
        _scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let (cols, k) = (band.columns.len(), metric.importance());
        assert!(cols.is_multiple_of(B::SIZE.0) && k.len() == cols, "encode: shapes");
        let encoded: &mut EncodedBlocks = context.scratch.of();
        let blocks = cols / B::SIZE.0;
        encoded.blocks.resize(BAND_ROWS * blocks, BlockFields::EMPTY);
        let errors = (B::KERNEL)(context.isa, band.columns, k, context.effort, Some(encoded));
        let from = parts[0].len();
        parts[0].resize(from + band.rows * blocks * B::SIZE.1, 0);
        for (fields, out) in encoded.blocks.iter().zip(parts[0][from..].chunks_exact_mut(B::SIZE.1)) {
            B::pack(fields, out);
        }
        errors
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let (cols, k) = (band.columns.len(), metric.importance());
        assert!(cols.is_multiple_of(B::SIZE.0) && k.len() == cols, "errors: shapes");
        vec![(B::KERNEL)(context.isa, band.columns, k, context.effort, None); schemes.len()]
    }
}
