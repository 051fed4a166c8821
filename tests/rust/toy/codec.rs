//! A codec with one scale per row and 8-bit codes: `w = (code − 128) · scale`.

use crate::band::Matrix;
use crate::codec::{
    Band, Bits, CODECS, Codec, Context, Encode, Extent, Metric, PartSpec, RowError, Rows, Scheme, errors_of,
};
use crate::dtype::{Dtype, Float};
use crate::simd::vector::BAND_ROWS;

pub(crate) struct ToyCodec;

/// Its only scheme. The codec is the last of the registry.
static SCHEMES: [Scheme; 1] = [Scheme::new(CODECS.len() as u8 - 1, 0)];

impl Codec for ToyCodec {
    fn schemes(&self) -> &'static [Scheme] {
        &SCHEMES
    }

    fn spell(&self, _scheme: Scheme) -> String {
        "toy8".to_owned()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        (text == "toy8").then_some(SCHEMES[0])
    }

    fn block(&self, _scheme: Scheme, cols: u64) -> u64 {
        cols
    }

    fn blocks(&self) -> &'static str {
        "rows"
    }

    fn code_bits(&self, _scheme: Scheme) -> Bits {
        Bits::whole(8)
    }

    fn parts(&self, _scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        vec![
            PartSpec { kind: "codes", dtype: Dtype::U8, extent: Extent::PerRow(matrix.cols) },
            PartSpec { kind: "scales", dtype: Dtype::F32, extent: Extent::PerRow(1) },
            PartSpec { kind: "shape", dtype: Dtype::I64, extent: Extent::Fixed(vec![2]) },
        ]
    }

    fn row_of(&self, _scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        // The element type of the weights is not stored: they decode to BF16.
        Some((part("codes")?.1, Float::BF16))
    }

    fn fixed(&self, _scheme: Scheme, matrix: Matrix, _part: &str) -> Vec<u8> {
        [matrix.rows.to_le_bytes(), matrix.cols.to_le_bytes()].concat()
    }

    fn decode(&self, _scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let (codes, scales) = (parts[0].chunks_exact(of.cols), parts[1].as_chunks().0);
        for ((out, codes), scale) in out.chunks_exact_mut(of.cols).zip(codes).zip(scales) {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = (f32::from(*code) - 128.0) * f32::from_le_bytes(*scale);
            }
        }
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }
}

impl Encode for ToyCodec {
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let cols = band.columns.len();
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in 0..band.rows {
            let weights = || band.columns.iter().map(|column| column[row]);
            let scale = weights().fold(0.0_f32, |largest, weight| largest.max(weight.abs())) / 127.0;
            let code = |weight: f32| if scale > 0.0 { (weight / scale).round() + 128.0 } else { 128.0 };
            #[expect(clippy::cast_sign_loss, reason = "from 1 to 255")]
            codes.extend(weights().map(|weight| code(weight) as u8));
            scales.extend(scale.to_le_bytes());
        }
        let decoded: &mut Vec<f32> = context.scratch.of();
        decoded.resize(band.rows * cols, 0.0);
        self.decode(scheme, Rows { cols, float: context.float }, &[&codes, &scales], decoded);
        parts[0].extend(codes);
        parts[1].extend(scales);
        errors_of(context.isa, band.columns, metric.importance(), decoded, cols)
    }
}
