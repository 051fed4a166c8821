//! Prequantized forms that a runtime can use directly. Rows are passed through, never encoded.

use super::affine::{Affine, AffineCodec};
use super::{Bits, Codec, PartSpec, PassedRows, Rows, Scheme};
use crate::band::Matrix;
use crate::dtype::{Dtype, Float};

/// Integers from −8 to 7 with a scale per group: stored as 4-bit affine codes with biases of −8 scales.
#[derive(Debug)]
pub(super) struct Int4;

/// Position in the registry [`CODECS`](super::CODECS).
const INT4: u8 = 1;

/// The scheme that passes 4-bit integers in groups of `group_size` through, if affine codes have such groups.
#[must_use]
pub(crate) fn int4(group_size: u64) -> Option<Scheme> {
    let group_size = group_size.try_into().ok()?;
    Affine::new(4, group_size).map(|_| Scheme::new(INT4, group_size))
}

/// The affine parameters that store 4-bit integers passed through as `scheme`.
#[must_use]
pub(crate) fn int4_as_affine(scheme: Scheme) -> Option<Affine> {
    Affine::new(4, scheme.params()).filter(|_| int4(u64::from(scheme.params())) == Some(scheme))
}

/// The affine parameters of an [`Int4`] scheme, whose parameter is its group size.
fn affine(scheme: Scheme) -> Affine {
    int4_as_affine(scheme).unwrap_or_else(|| panic!("{scheme} is not a scheme of int4"))
}

impl Codec for Int4 {
    fn schemes(&self) -> &'static [Scheme] {
        &[]
    }

    fn spell(&self, scheme: Scheme) -> String {
        format!("int4g{}", scheme.params())
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        int4(text.strip_prefix("int4g")?.parse().ok()?)
    }

    fn block(&self, scheme: Scheme, _cols: u64) -> u64 {
        u64::from(scheme.params())
    }

    fn blocks(&self) -> &'static str {
        AffineCodec.blocks()
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(4)
    }

    fn parts(&self, scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        affine(scheme).parts(matrix)
    }

    fn row_of(&self, scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        affine(scheme).row_of(part)
    }

    fn decode(&self, scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        affine(scheme).decode(of, parts, out);
    }

    fn pass_through(&self, _scheme: Scheme, float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        let mut values = vec![0.0; rows.scales.len() / float.bytes()];
        float.widen(rows.scales, &mut values);
        parts[0].extend_from_slice(rows.codes);
        parts[1].extend_from_slice(rows.scales);
        // Stored codes are offset by 8.
        for scale in &mut values {
            *scale *= -8.0;
        }
        float.append(&values, &mut parts[2]);
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
    fn integers_decode_to_the_code_less_8_times_the_scale() {
        let mut scales = Vec::new();
        Float::BF16.append(&[0.5, -3.0], &mut scales);
        let decoded = passed(int4(32).unwrap(), 32, &codes(), &scales);
        for (at, weight) in decoded.into_iter().enumerate() {
            let scale = if at < 32 { 0.5 } else { -3.0 };
            assert_eq!(weight, ((at % 16) as f32 - 8.0) * scale, "element {at}");
        }
    }
}
