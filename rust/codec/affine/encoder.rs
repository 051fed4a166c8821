//! Encodes bands of weights and measures the errors.
//!
//! The same code measures and writes, so the points of a curve describe the written bytes. The only exception are
//! weights halfway between two codes; see [`GridEncoder::errors`].

use half::{bf16, f16};

use super::{Affine, BITS, CLIP_GRID, Channels, GROUP_SIZES, GroupBuffers};
use crate::codec::affine;
use crate::codec::{Effort, RowError};
use crate::dtype::Float;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// The codes, scales and biases of the [`BAND_ROWS`] rows of a band, in row order. A weight is `code * scale + bias`.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// One code per weight.
    pub codes: Vec<u8>,
    /// One scale per group: weight per code step.
    pub scales: Vec<f32>,
    /// One bias per group: the weight of code 0.
    pub biases: Vec<f32>,
}

impl Encoded {
    /// Resizes the buffers for rows of `cols` weights in groups of `group_size`.
    fn resize(&mut self, cols: usize, group_size: usize) {
        self.codes.resize(BAND_ROWS * cols, 0);
        self.scales.resize(BAND_ROWS * cols / group_size, 0.0);
        self.biases.resize(BAND_ROWS * cols / group_size, 0.0);
    }
}

/// Encodes bands with a given ISA and effort.
#[derive(Clone, Copy, Debug)]
pub struct GridEncoder {
    /// Instruction set.
    pub isa: Isa,
    /// Effort of the search.
    pub effort: Effort,
}

/// Calls a kernel with the scheme's group size as a const generic argument.
macro_rules! by_group_size {
    ($scheme:expr, $kernel:ident$(::<$element:ty>)?($($arg:expr),* $(,)?)) => {
        match $scheme.group_size() {
            32 => affine::$kernel::<$($element,)? 32>($($arg),*),
            64 => affine::$kernel::<$($element,)? 64>($($arg),*),
            _ => affine::$kernel::<$($element,)? 128>($($arg),*),
        }
    };
}

/// The clip grid of a scheme: the initial grids of the search.
pub(super) fn clips(scheme: Affine) -> &'static [[u16; 2]] {
    CLIP_GRID[BITS.iter().position(|&bits| bits == scheme.bits()).unwrap_or_default()]
}

impl GridEncoder {
    /// Encodes up to [`BAND_ROWS`] rows in `scheme` into `out`, with scales of type `store`. `source` contains the
    /// stored rows and `columns` the transposed rows. `k` contains the importance of each column, which must not be
    /// negative. [`Effort::Normal`] reads only `columns` and `k`; [`Effort::Fast`] reads only `source`.
    ///
    /// # Panics
    /// If the group size does not divide the number of columns, `k` has another length, or `source` is not aligned to
    /// its element type.
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
            (Effort::Normal | Effort::High, _) => {
                assert_eq!(columns.len(), cols, "encode: shapes");
                by_group_size!(scheme, encode_search(isa, columns, k, clips(scheme), max_code, store, rows));
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

    /// Squared error of each row of `band` for each of `schemes`, without storing anything: the errors that
    /// [`encode`](Self::encode) and [`error`](Self::error) give. With [`Effort::Fast`], a weight halfway between two
    /// codes may count with either code.
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
            let clips: Vec<&[[u16; 2]]> = which.iter().map(|&at| clips(schemes[at])).collect();
            let mut rows = vec![[RowError::default(); BAND_ROWS]; which.len()];
            let (scheme, isa) = (schemes[first], self.isa);
            match self.effort {
                Effort::Fast => {
                    by_group_size!(scheme, plain_errors(isa, band, &ranges, channels, &max_codes, store, &mut rows));
                }
                Effort::Normal | Effort::High => {
                    by_group_size!(scheme, search_errors(isa, band, channels.k, &clips, &max_codes, store, &mut rows));
                }
            }
            which.into_iter().zip(rows).for_each(|(at, rows)| found[at] = rows);
        }
        found
    }

    /// Squared error of each row of `band` against the decoded rows of `encoded`.
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
