//! Encoding bands of weights, and what the encoding costs.
//!
//! One encoder measures and writes: a curve's point is of the grids and codes that a file's bytes are of (but for weights in
//! the middle between two codes, see [`GridEncoder::errors`]).

use half::{bf16, f16};

use super::{Affine, BITS, CLIP_GRID, Channels, GROUP_SIZES, GroupBuffers};
use crate::codec::affine;
use crate::codec::{Effort, RowError};
use crate::dtype::Float;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// The codes and grids of the [`BAND_ROWS`] rows of a band, one row after the other. A weight is `code * scale + bias`.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// A code for each weight.
    pub codes: Vec<u8>,
    /// Weight per step of the code, for each group.
    pub scales: Vec<f32>,
    /// Weight of code 0, for each group.
    pub biases: Vec<f32>,
}

impl Encoded {
    /// Makes room for rows of `cols` weights in groups of `group_size`.
    fn resize(&mut self, cols: usize, group_size: usize) {
        self.codes.resize(BAND_ROWS * cols, 0);
        self.scales.resize(BAND_ROWS * cols / group_size, 0.0);
        self.biases.resize(BAND_ROWS * cols / group_size, 0.0);
    }
}

/// Encodes bands of matrices whose scales are stored as `store`.
#[derive(Clone, Copy, Debug)]
pub struct GridEncoder {
    /// The instruction set.
    pub isa: Isa,
    /// How hard to try.
    pub effort: Effort,
}

/// Calls a kernel with the scheme's group size as a constant.
macro_rules! by_group_size {
    ($scheme:expr, $kernel:ident$(::<$element:ty>)?($($arg:expr),* $(,)?)) => {
        match $scheme.group_size() {
            32 => affine::$kernel::<$($element,)? 32>($($arg),*),
            64 => affine::$kernel::<$($element,)? 64>($($arg),*),
            _ => affine::$kernel::<$($element,)? 128>($($arg),*),
        }
    };
}

/// The grids that a search starts from.
fn trials(scheme: Affine) -> &'static [[u16; 2]] {
    CLIP_GRID[BITS.iter().position(|&bits| bits == scheme.bits()).unwrap_or_default()]
}

impl GridEncoder {
    /// Encodes up to [`BAND_ROWS`] rows by `scheme` into `out`: `source` holds them as they are stored, `columns` side by
    /// side. `k` weighs the columns; none may be negative. Only [`Effort::Normal`] reads `columns` and `k`, and only
    /// [`Effort::Fast`] reads `source`.
    ///
    /// # Panics
    /// If the scheme's groups do not divide the columns, `k` is not as long as they are many, or `source` is not aligned to
    /// its type.
    pub fn encode(
        self,
        scheme: Affine,
        store: Float,
        (source, columns): (&[u8], &[Column]),
        k: &[f32],
        out: &mut Encoded,
    ) {
        let cols = k.len();
        assert!(cols.is_multiple_of(scheme.group_size()), "encode: shapes");
        out.resize(cols, scheme.group_size());
        let max_code = scheme.max_code();
        let Encoded { codes, scales, biases } = out;
        let rows = &mut GroupBuffers { codes, scales, biases };
        let isa = self.isa;
        match (self.effort, store) {
            (Effort::Normal, _) => {
                assert_eq!(columns.len(), cols, "encode: shapes");
                by_group_size!(scheme, encode_search(isa, columns, k, trials(scheme), max_code, store, rows));
            }
            (Effort::Fast, Float::BF16) => {
                let source = bytemuck::cast_slice(source);
                by_group_size!(scheme, encode_plain::<bf16>(isa, source, max_code, store, rows));
            }
            (Effort::Fast, Float::F16) => {
                let source = bytemuck::cast_slice(source);
                by_group_size!(scheme, encode_plain::<f16>(isa, source, max_code, store, rows));
            }
            (Effort::Fast, Float::F32) => {
                let source = bytemuck::cast_slice(source);
                by_group_size!(scheme, encode_plain::<f32>(isa, source, max_code, store, rows));
            }
        }
    }

    /// Squared error of each row of `band` as each of `schemes` would encode it: those of [`encode`](Self::encode) and
    /// [`error`](Self::error), without what is stored. ([`Effort::Fast`] takes either code for a weight in the middle between
    /// two.)
    ///
    /// # Panics
    /// As [`encode`](Self::encode), or if more schemes have the same group size than there are code widths.
    #[must_use]
    pub fn errors(
        self,
        schemes: &[Affine],
        store: Float,
        band: &[Column],
        channels: &Channels<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let mut found = vec![[RowError::default(); BAND_ROWS]; schemes.len()];
        let ranges = if self.effort == Effort::Fast { affine::ranges(self.isa, band) } else { Vec::new() };
        for size in GROUP_SIZES {
            let which: Vec<usize> =
                (0..schemes.len()).filter(|&at| schemes[at].group_size() == usize::from(size)).collect();
            let Some(&first) = which.first() else { continue };
            assert!(band.len().is_multiple_of(usize::from(size)) && channels.k.len() == band.len(), "errors: shapes");
            assert!(which.len() <= affine::MAX_SCHEMES, "errors: a scheme twice");
            let max_codes: Vec<u8> = which.iter().map(|&at| schemes[at].max_code()).collect();
            let trials: Vec<&[[u16; 2]]> = which.iter().map(|&at| trials(schemes[at])).collect();
            let mut rows = vec![[RowError::default(); BAND_ROWS]; which.len()];
            let (scheme, isa) = (schemes[first], self.isa);
            match self.effort {
                Effort::Fast => {
                    by_group_size!(scheme, plain_errors(isa, band, &ranges, channels, &max_codes, store, &mut rows));
                }
                Effort::Normal => {
                    by_group_size!(scheme, search_errors(isa, band, channels.k, &trials, &max_codes, store, &mut rows));
                }
            }
            which.into_iter().zip(rows).for_each(|(at, rows)| found[at] = rows);
        }
        found
    }

    /// Squared error of each row of `band` as `encoded` decodes.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    #[must_use]
    pub fn error(self, scheme: Affine, band: &[Column], k: &[f32], encoded: &Encoded) -> [RowError; BAND_ROWS] {
        let Encoded { codes, scales, biases } = encoded;
        assert!(codes.len() == BAND_ROWS * band.len() && k.len() == band.len(), "error: shapes");
        by_group_size!(scheme, error(self.isa, band, k, codes, scales, biases))
    }
}
