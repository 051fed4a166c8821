//! `NVFP4`: 64 codes of type E2M1 in groups of 16. `w = e2m1(code) · scale`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | 4 bytes: the scales of the groups, of type E4M3 without a sign; 0 and NaN stand for 0 |
//! | 4 | 32 bytes: of each group 8 bytes, the first 8 codes in their lower halves, the others in their upper halves |
//!
//! The numbers are those of the codec [`nvfp4`](crate::codec::float::nvfp4), but without a scale of the matrix: groups with
//! weights below 0.1 have coarse scales. The name of the scheme is `gguf-nvfp4`, since that of the other is `nvfp4`.

use super::bits::{halves_of, put_halves};
use crate::band::Matrix;
use crate::codec::float::groups::{self, EncodedGroups, GroupScale};
use crate::codec::float::nvfp4::E4m3Scale;
use crate::codec::{Band, Bits, Codec, Context, Effort, Encode, Extent, Metric, PartSpec, RowError, Rows, Scheme};
use crate::dtype::{Dtype, Float, e2m1_values};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Nvfp4Block;

/// The only scheme, with the position in the registry [`CODECS`](crate::codec::CODECS).
const SCHEME: Scheme = Scheme::new(23, 0);

/// Codes per scale.
const GROUP: usize = 16;

/// Codes of a block, and its bytes.
const BLOCK: (usize, usize) = {
    let (codes, bytes) = Dtype::NVFP4.block();
    (codes as usize, bytes as usize)
};

/// Scales of a block.
const SCALES: usize = BLOCK.0 / GROUP;

/// The codes and the scales of the rows of a band, row after row.
#[derive(Default)]
struct BlockRows {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

kernel! {
    fn encode_nvfp4_block<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<EncodedGroups<'_>>,
    ) -> [RowError; BAND_ROWS] {
        groups::encode::<W, E4m3Scale<1>, GROUP>(band, k, effort, out)
    }
}

/// The scale that a byte stands for.
fn scale(byte: u8) -> f32 {
    // The sign is ignored, but not in the byte of NaN.
    if byte == 0x7f { 0.0 } else { E4m3Scale::<1>::scale(byte & 0x7f) }
}

impl Codec for Nvfp4Block {
    fn schemes(&self) -> &'static [Scheme] {
        &[SCHEME]
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "gguf-nvfp4".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "gguf-nvfp4").then_some(SCHEME)
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        GROUP as u64
    }

    fn blocks(&self) -> &'static str {
        "blocks of 64"
    }

    fn fits(&self, _scheme: Scheme, cols: u64) -> bool {
        cols > 0 && cols.is_multiple_of(BLOCK.0 as u64)
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(4)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        vec![PartSpec { kind: "blocks", dtype: Dtype::NVFP4, extent: Extent::PerRow(matrix.cols) }]
    }

    /// The element type of the weights is not stored.
    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        let (dtype, cols) = part("blocks")?;
        (dtype == Dtype::NVFP4).then_some((cols, Float::BF16))
    }

    fn decode(&self, _scheme: Scheme, _of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [blocks] = parts else { unreachable!("a matrix has one part") };
        let values = e2m1_values();
        for (block, out) in blocks.chunks_exact(BLOCK.1).zip(out.chunks_exact_mut(BLOCK.0)) {
            let (scales, codes) = block.split_at(SCALES);
            let groups = codes.chunks_exact(GROUP / 2).zip(out.chunks_exact_mut(GROUP));
            for (&byte, (codes, out)) in scales.iter().zip(groups) {
                let (scale, mut of_group) = (scale(byte), [0; GROUP]);
                halves_of(codes, &mut of_group);
                for (out, code) in out.iter_mut().zip(of_group) {
                    // The sum makes 0 of −0, as in ggml.
                    *out = scale * (values[usize::from(code)] + 0.0);
                }
            }
        }
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }
}

impl Encode for Nvfp4Block {
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let (cols, k) = (band.columns.len(), metric.importance());
        assert!(self.fits(scheme, cols as u64) && k.len() == cols, "encode: shapes");
        let rows: &mut BlockRows = context.scratch.of();
        rows.codes.resize(BAND_ROWS * cols, 0);
        rows.scales.resize(BAND_ROWS * cols / GROUP, 0);
        let out = EncodedGroups { codes: &mut rows.codes, scales: &mut rows.scales };
        let errors = encode_nvfp4_block(context.isa, band.columns, k, context.effort, Some(out));
        let blocks = rows.codes.chunks_exact(BLOCK.0).zip(rows.scales.chunks_exact(SCALES));
        for (codes, scales) in blocks.take(band.rows * cols / BLOCK.0) {
            parts[0].extend_from_slice(scales);
            for codes in codes.chunks_exact(GROUP) {
                let mut bytes = [0; GROUP / 2];
                put_halves(codes, &mut bytes);
                parts[0].extend_from_slice(&bytes);
            }
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
        assert!(cols.is_multiple_of(BLOCK.0) && k.len() == cols, "errors: shapes");
        vec![encode_nvfp4_block(context.isa, band.columns, k, context.effort, None); schemes.len()]
    }
}
