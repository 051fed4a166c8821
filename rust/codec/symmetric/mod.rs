//! Symmetric integer codes with a scale per group or per row: `w = code · scale`, codes from `−2^(bits − 1)` to
//! `2^(bits − 1) − 1`.
//!
//! A matrix has three parts: `codes`, I32 `[rows, cols · bits / 32]`, each row one bit stream ([`pack`]) of codes plus
//! `2^(bits − 1)`; `scales`, `[rows, groups]`, in the weights' element type; and `shape`, I64 `[2]`: rows and columns. This
//! is the form `pack-quantized` of compressed-tensors.

mod feedback;
mod search;

use super::affine::{GROUP_SIZES, pack};
use super::feedback::Feedback;
use super::{
    Band, Bits, Codec, Context, Effort, Encode, Extent, Metric, PartSpec, PassedRows, RowError, Rows, SUM_COLUMNS,
    Scheme,
};
use crate::band::{Matrix, append};
use crate::dtype::{Dtype, Float};
use crate::simd::vector::BAND_ROWS;
use search::{EncodedRows, Grid};

/// Code widths, in bits.
const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Rows are divided into whole 32-bit words of codes of any width.
const WORD_CODES: u64 = 32;

/// Position in the registry [`CODECS`](super::CODECS).
const CODEC: u8 = 1;

/// Which weights of a row share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// All of them.
    Channel,
    /// This many adjacent ones.
    Group(u16),
}

/// Codes of `bits` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symmetric {
    pub bits: u8,
    pub grouping: Grouping,
}

impl Symmetric {
    /// The parameters of a scheme, if it belongs to this codec.
    #[must_use]
    pub(crate) fn of(scheme: Scheme) -> Option<Self> {
        let [bits, size] = scheme.params().to_be_bytes();
        let grouping = if size == 0 { Grouping::Channel } else { Grouping::Group(u16::from(size)) };
        let found = Self { bits, grouping };
        (SCHEMES.contains(&scheme) && found.scheme() == scheme).then_some(found)
    }

    /// The scheme with these parameters. Schemes are ordered by bits, then by group size.
    #[must_use]
    pub(crate) const fn scheme(self) -> Scheme {
        let size = match self.grouping {
            Grouping::Channel => 0,
            Grouping::Group(size) => size,
        };
        Scheme::new(CODEC, (self.bits as u16) << 8 | size)
    }

    /// The scheme of 4-bit codes in groups of `size`, if there is one.
    #[must_use]
    pub(crate) fn int4(size: u64) -> Option<Scheme> {
        let size = size.try_into().ok().filter(|size| GROUP_SIZES.contains(size))?;
        Some(Self { bits: 4, grouping: Grouping::Group(size) }.scheme())
    }

    /// Weights per scale in rows of `cols` weights.
    fn group(self, cols: usize) -> usize {
        match self.grouping {
            Grouping::Channel => cols,
            Grouping::Group(size) => usize::from(size),
        }
    }

    /// `2^(bits − 1)`
    fn half(self) -> u8 {
        1 << (self.bits - 1)
    }

    fn grid(self, cols: usize, effort: Effort, store: Float) -> Grid {
        let at = BITS.iter().position(|&bits| bits == self.bits).unwrap_or_default();
        let clips = if effort == Effort::Fast { &[] } else { search::clips(at) };
        Grid { group: self.group(cols), half: self.half(), store, clips }
    }
}

/// All schemes, by bits, then by decreasing group size: by increasing bytes.
static SCHEMES: [Scheme; BITS.len() * (1 + GROUP_SIZES.len())] = {
    const GROUPINGS: usize = 1 + GROUP_SIZES.len();
    let mut schemes = [Scheme::KEPT; BITS.len() * GROUPINGS];
    let mut at = 0;
    while at < schemes.len() {
        let grouping = match at % GROUPINGS {
            0 => Grouping::Channel,
            finer => Grouping::Group(GROUP_SIZES[GROUPINGS - 1 - finer]),
        };
        schemes[at] = Symmetric { bits: BITS[at / GROUPINGS], grouping }.scheme();
        at += 1;
    }
    schemes
};

#[derive(Debug)]
pub(crate) struct SymmetricCodec;

/// The parameters of a scheme of this codec.
fn params(scheme: Scheme) -> Symmetric {
    Symmetric::of(scheme).unwrap_or_else(|| panic!("{scheme:?} is not a scheme of the symmetric codec"))
}

impl Codec for SymmetricCodec {
    fn schemes(&self) -> &'static [Scheme] {
        &SCHEMES
    }

    fn spell(&self, scheme: Scheme) -> String {
        let [bits, size] = scheme.params().to_be_bytes();
        if size == 0 { format!("int{bits}channel") } else { format!("int{bits}g{size}") }
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        SCHEMES.iter().copied().find(|&scheme| self.spell(scheme) == text)
    }

    fn block(&self, scheme: Scheme, cols: u64) -> u64 {
        match params(scheme).grouping {
            // The unit of sums of errors. `fits` accepts more.
            Grouping::Channel => cols.min(SUM_COLUMNS as u64),
            Grouping::Group(size) => u64::from(size),
        }
    }

    fn blocks(&self) -> &'static str {
        "groups of 32, 64 or 128"
    }

    fn fits(&self, scheme: Scheme, cols: u64) -> bool {
        let unit = match params(scheme).grouping {
            Grouping::Channel => WORD_CODES,
            Grouping::Group(size) => u64::from(size),
        };
        cols > 0 && cols.is_multiple_of(unit)
    }

    fn code_bits(&self, scheme: Scheme) -> Bits {
        Bits::whole(u32::from(params(scheme).bits))
    }

    fn parts(&self, scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        let scheme = params(scheme);
        let groups = match scheme.grouping {
            Grouping::Channel => 1,
            Grouping::Group(size) => matrix.cols / u64::from(size),
        };
        let words = matrix.cols * u64::from(scheme.bits) / 32;
        vec![
            PartSpec { kind: "codes", dtype: Dtype::I32, extent: Extent::PerRow(words) },
            PartSpec { kind: "scales", dtype: matrix.float.dtype(), extent: Extent::PerRow(groups) },
            PartSpec { kind: "shape", dtype: Dtype::I64, extent: Extent::Fixed(vec![2]) },
        ]
    }

    fn row_of(&self, scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        let float = Float::of(part("scales")?.0)?;
        Some((part("codes")?.1.checked_mul(32)? / u64::from(params(scheme).bits), float))
    }

    fn fixed(&self, _scheme: Scheme, matrix: Matrix, _part: &str) -> Vec<u8> {
        [matrix.rows.to_le_bytes(), matrix.cols.to_le_bytes()].concat()
    }

    fn decode(&self, scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let scheme = params(scheme);
        let [packed, stored, _] = parts else { unreachable!("a matrix has three parts") };
        let (group, half) = (scheme.group(of.cols), f32::from(scheme.half()));
        let mut codes = Vec::with_capacity(out.len());
        pack::unpack(scheme.bits, packed, &mut codes);
        let mut scales = vec![0.0; out.len() / group];
        of.float.widen(stored, &mut scales);
        let groups = out.chunks_exact_mut(group).zip(codes.chunks_exact(group));
        for ((out, codes), scale) in groups.zip(scales) {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = (f32::from(code) - half) * scale;
            }
        }
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }

    fn feedback(&self) -> Option<&dyn Feedback> {
        Some(self)
    }

    fn pass_through(&self, _scheme: Scheme, _float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        parts[0].extend_from_slice(rows.codes);
        parts[1].extend_from_slice(rows.scales);
    }
}

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Encode for SymmetricCodec {
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let scheme = params(scheme);
        let (cols, isa, float) = (band.columns.len(), context.isa, context.float);
        let grid = scheme.grid(cols, context.effort, float);
        let groups = cols / grid.group;
        let Buffers { codes, scales } = context.scratch.of();
        codes.resize(BAND_ROWS * cols, 0);
        scales.resize(BAND_ROWS * groups, 0.0);
        let errors = search::encode(isa, band.columns, metric.importance(), grid, Some(EncodedRows { codes, scales }));
        pack::pack(isa, scheme.bits, &codes[..band.rows * cols], &mut parts[0]);
        append(isa, float, &scales[..band.rows * groups], &mut parts[1]);
        errors
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let of = |&scheme: &Scheme| {
            let grid = params(scheme).grid(band.columns.len(), context.effort, context.float);
            search::encode(context.isa, band.columns, metric.importance(), grid, None)
        };
        schemes.iter().map(of).collect()
    }
}
