//! Prequantized forms that a runtime can use directly. Rows are passed through, never encoded.

use super::{Bits, Codec, Extent, PartSpec, PassedRows, Rows, Scheme};
use crate::band::Matrix;
use crate::dtype::{Dtype, Float, e2m1_values, e8m0};

/// MXFP4: E2M1 codes with an E8M0 scale per 32 codes.
#[derive(Debug)]
pub(super) struct Mxfp4;

/// Position in the registry [`CODECS`](super::CODECS).
const MXFP4: u8 = 2;

/// MXFP4 codes per scale.
const MXFP4_BLOCK: u64 = 32;

/// The scheme that passes MXFP4 through.
pub(crate) const MXFP4_SCHEME: Scheme = Scheme::new(MXFP4, 0);

impl Codec for Mxfp4 {
    fn schemes(&self) -> &'static [Scheme] {
        &[]
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "mxfp4".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "mxfp4").then_some(MXFP4_SCHEME)
    }

    fn block(&self, _scheme: Scheme, _cols: u64) -> u64 {
        MXFP4_BLOCK
    }

    fn blocks(&self) -> &'static str {
        "groups of 32"
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(4)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        let per_row = |kind, dtype, width| PartSpec { kind, dtype, extent: Extent::PerRow(width) };
        vec![per_row("codes", Dtype::U32, matrix.cols / 8), per_row("scales", Dtype::U8, matrix.cols / MXFP4_BLOCK)]
    }

    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        Some((part("codes")?.1.checked_mul(8)?, Float::BF16))
    }

    fn decode(&self, _scheme: Scheme, _of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [codes, scales] = parts else { unreachable!("a matrix has two parts") };
        let values = e2m1_values();
        let blocks = out.chunks_exact_mut(MXFP4_BLOCK as usize).zip(codes.chunks_exact(MXFP4_BLOCK as usize / 2));
        for ((out, codes), &scale) in blocks.zip(*scales) {
            for (out, &both) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *out = [both & 15, both >> 4].map(|code| values[usize::from(code)] * e8m0(scale));
            }
        }
    }

    fn pass_through(&self, _scheme: Scheme, _float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        parts[0].extend_from_slice(rows.codes);
        parts[1].extend_from_slice(rows.scales);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes two rows through, and decodes the stored parts.
    fn passed(scheme: Scheme, cols: usize, codes: &[u8], scales: &[u8]) -> Vec<f32> {
        let matrix = Matrix { rows: 2, cols: cols as u64, float: Float::BF16 };
        let codec = scheme.codec().unwrap();
        let specs = codec.parts(scheme, matrix);
        let mut parts = vec![Vec::new(); specs.len()];
        codec.pass_through(scheme, matrix.float, PassedRows { codes, scales }, &mut parts);
        assert!(specs.iter().zip(&parts).all(|(spec, part)| part.len() as u64 == spec.bytes(2)));
        let mut decoded = vec![0.0; 2 * cols];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        codec.decode(scheme, Rows { cols, float: matrix.float }, &parts, &mut decoded);
        decoded
    }

    /// Every code, the low half of a byte first.
    fn codes() -> Vec<u8> {
        (0..32_u8).map(|at| (at * 2 % 16) | (((at * 2 + 1) % 16) << 4)).collect()
    }

    #[test]
    fn mxfp4_decodes_to_e2m1_times_a_power_of_two() {
        let decoded = passed(MXFP4_SCHEME, 32, &codes(), &[128, 126]);
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (at, weight) in decoded.into_iter().enumerate() {
            let (code, scale) = (at % 16, if at < 32 { 2.0 } else { 0.5 });
            let sign = if code < 8 { 1.0 } else { -1.0 };
            assert_eq!(weight, sign * magnitudes[code % 8] * scale, "element {at}");
        }
    }
}
