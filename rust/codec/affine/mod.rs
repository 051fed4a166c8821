//! Affine codes with a scale and a bias per group, as in MLX: `w = code * scale + bias`.
//!
//! A matrix has three parts: `codes`, U32 `[rows, cols · bits / 32]`, each row one bit stream (see [`pack`]); `scales`
//! and `biases`, `[rows, cols / group_size]`, in the weights' element type.
//!
//! | module | what |
//! |---|---|
//! | [`grid`] `channels` | errors and ranges of groups; columns ordered by importance |
//! | [`mlx_rule`] [`search`] | scale and bias by MLX's rule; by minimum weighted error |
//! | [`encoder`] `feedback` | bands to codes, scales and biases; the same with error feedback |
//! | [`pack`] | codes to bytes and back |

pub(crate) mod channels;
pub(crate) mod clip_grid;
pub(crate) mod encoder;
mod feedback;
pub(crate) mod grid;
pub(crate) mod mlx_rule;
pub(crate) mod pack;
pub(crate) mod search;

pub use channels::Channels;
pub(crate) use clip_grid::CLIP_GRID;
pub(crate) use grid::{GroupBuffers, MAX_SCHEMES, error, ranges};
pub(crate) use mlx_rule::{encode_plain, plain_errors};
pub(crate) use search::{encode_search, search_errors};

use super::feedback::Feedback;
use super::{Band, Bits, Codec, Context, Encode, Extent, Metric, PartSpec, PassedRows, RowError, Rows, Scheme};
use crate::band::{Matrix, append};
use crate::dtype::{Dtype, Float};
use crate::simd::vector::BAND_ROWS;
use encoder::{Encoded, GridEncoder};

/// Code widths of MLX's affine mode, in bits.
pub(crate) const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Group sizes of MLX's affine mode, in elements along a row.
pub(crate) const GROUP_SIZES: [u16; 3] = [32, 64, 128];

/// Position in the registry [`CODECS`](super::CODECS).
const CODEC: u8 = 0;

/// Codes of `bits` bits in groups of `group_size` weights along a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Affine {
    bits: u8,
    group_size: u16,
}

impl Affine {
    /// The parameters, or `None` if MLX has no such mode: see [`BITS`] and [`GROUP_SIZES`].
    #[must_use]
    pub fn new(bits: u8, group_size: u16) -> Option<Self> {
        (BITS.contains(&bits) && GROUP_SIZES.contains(&group_size)).then_some(Self { bits, group_size })
    }

    /// The parameters of a scheme, if it belongs to this codec.
    #[must_use]
    pub fn of(scheme: Scheme) -> Option<Self> {
        let [bits, group_size] = scheme.params().to_be_bytes();
        Self::new(bits, u16::from(group_size)).filter(|found| found.scheme() == scheme)
    }

    /// All parameters, by bits, then by decreasing group size: by increasing bytes.
    pub fn all() -> impl Iterator<Item = Self> {
        SCHEMES.iter().filter_map(|&scheme| Self::of(scheme))
    }

    /// The scheme with these parameters. Schemes are ordered by bits, then by group size.
    #[must_use]
    pub const fn scheme(self) -> Scheme {
        Scheme::new(CODEC, (self.bits as u16) << 8 | self.group_size)
    }

    /// Bits per code.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Weights per scale and bias.
    #[must_use]
    pub fn group_size(self) -> usize {
        usize::from(self.group_size)
    }

    /// The largest code, `2^bits - 1`.
    #[must_use]
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// The stored parts of `matrix`.
    #[must_use]
    pub fn parts(self, matrix: Matrix) -> Vec<PartSpec> {
        let groups = Extent::PerRow(matrix.cols / u64::from(self.group_size));
        let grid = |kind| PartSpec { kind, dtype: matrix.float.dtype(), extent: groups.clone() };
        let words = Extent::PerRow(matrix.cols * u64::from(self.bits) / 32);
        vec![PartSpec { kind: "codes", dtype: Dtype::U32, extent: words }, grid("scales"), grid("biases")]
    }

    /// Decodes rows from the data of the three parts into `out`, in row order.
    pub(super) fn decode(self, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        let [packed, scales, biases] = parts else { unreachable!("a matrix has three parts") };
        let mut codes = Vec::with_capacity(out.len());
        pack::unpack(self.bits, packed, &mut codes);
        let mut grids = [scales, biases].map(|stored| (stored, vec![0.0; out.len() / self.group_size()]));
        for (stored, values) in &mut grids {
            of.float.widen(stored, values);
        }
        let [(_, scales), (_, biases)] = grids;
        let grids = scales.into_iter().zip(biases);
        let groups = out.chunks_exact_mut(self.group_size()).zip(codes.chunks_exact(self.group_size()));
        for ((out, codes), (scale, bias)) in groups.zip(grids) {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code) * scale + bias;
            }
        }
    }

    /// Columns and element type of a matrix whose parts have these element types and last dimensions.
    pub(super) fn row_of(self, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        let float = Float::of(part("scales")?.0)?;
        Some((part("codes")?.1.checked_mul(32)? / u64::from(self.bits), float))
    }
}

impl std::fmt::Display for Affine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}g{}", self.bits, self.group_size)
    }
}

impl std::fmt::Debug for Affine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, out)
    }
}

/// All schemes, by bits, then by decreasing group size: by increasing bytes.
static SCHEMES: [Scheme; BITS.len() * GROUP_SIZES.len()] = {
    let mut schemes = [Scheme::KEPT; BITS.len() * GROUP_SIZES.len()];
    let mut at = 0;
    while at < schemes.len() {
        let (bits, size) = (BITS[at / GROUP_SIZES.len()], GROUP_SIZES[GROUP_SIZES.len() - 1 - at % GROUP_SIZES.len()]);
        schemes[at] = Affine { bits, group_size: size }.scheme();
        at += 1;
    }
    schemes
};

#[derive(Debug)]
pub(crate) struct AffineCodec;

/// The parameters of a scheme of this codec.
fn params(scheme: Scheme) -> Affine {
    Affine::of(scheme).unwrap_or_else(|| panic!("{scheme} is not a scheme of the affine codec"))
}

impl Codec for AffineCodec {
    fn schemes(&self) -> &'static [Scheme] {
        &SCHEMES
    }

    fn spell(&self, scheme: Scheme) -> String {
        params(scheme).to_string()
    }

    fn parse(&self, text: &str) -> Option<Scheme> {
        let (bits, group_size) = text.split_once('g')?;
        Affine::new(bits.parse().ok()?, group_size.parse().ok()?).map(Affine::scheme)
    }

    fn block(&self, scheme: Scheme, _cols: u64) -> u64 {
        u64::from(params(scheme).group_size)
    }

    fn blocks(&self) -> &'static str {
        "groups of 32, 64 or 128"
    }

    fn code_bits(&self, scheme: Scheme) -> Bits {
        Bits::whole(u32::from(params(scheme).bits))
    }

    fn parts(&self, scheme: Scheme, matrix: Matrix) -> Vec<PartSpec> {
        params(scheme).parts(matrix)
    }

    fn row_of(&self, scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)> {
        params(scheme).row_of(part)
    }

    fn decode(&self, scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]) {
        params(scheme).decode(of, parts, out);
    }

    fn encoder(&self) -> Option<&dyn Encode> {
        Some(self)
    }

    fn feedback(&self) -> Option<&dyn Feedback> {
        Some(self)
    }

    /// Passes 4-bit integers from −8 to 7 through: their codes are offset by 8, so the biases are −8 times the scales.
    fn pass_through(&self, _scheme: Scheme, float: Float, rows: PassedRows<'_>, parts: &mut [Vec<u8>]) {
        let mut values = vec![0.0; rows.scales.len() / float.bytes()];
        float.widen(rows.scales, &mut values);
        parts[0].extend_from_slice(rows.codes);
        parts[1].extend_from_slice(rows.scales);
        for scale in &mut values {
            *scale *= -8.0;
        }
        float.append(&values, &mut parts[2]);
    }
}

impl Encode for AffineCodec {
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let [codes, scales, biases] = parts else { unreachable!("a matrix has three parts") };
        let (scheme, &mut Context { isa, effort, float, .. }) = (params(scheme), &mut *context);
        let encoder = GridEncoder { isa, effort };
        let encoded: &mut Encoded = context.scratch.of();
        encoder.encode(scheme, float, (band.stored, band.columns), metric.importance(), encoded);
        let share = |all: usize| all / BAND_ROWS * band.rows;
        pack::pack(isa, scheme.bits, &encoded.codes[..share(encoded.codes.len())], codes);
        append(isa, float, &encoded.scales[..share(encoded.scales.len())], scales);
        append(isa, float, &encoded.biases[..share(encoded.biases.len())], biases);
        encoder.error(scheme, band.columns, metric.importance(), encoded)
    }

    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let &mut Context { isa, effort, float, .. } = context;
        let schemes: Vec<Affine> = schemes.iter().map(|&scheme| params(scheme)).collect();
        let Metric::Diagonal(channels) = metric;
        GridEncoder { isa, effort }.errors(&schemes, float, band.columns, channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Affine {
        Affine::new(4, 64).unwrap()
    }

    #[test]
    fn there_are_18_schemes() {
        let all: std::collections::BTreeSet<_> = SCHEMES.iter().map(ToString::to_string).collect();
        assert_eq!(all.len(), 18);
        assert!(SCHEMES.iter().all(|&scheme| Affine::of(scheme).unwrap().scheme() == scheme));
    }

    #[test]
    fn stored_bytes_count_codes_scales_and_biases() {
        let matrix = |float| Matrix { rows: 10, cols: 128, float };
        // 4.5 bits per weight with 16-bit scales and biases, 5 with 32-bit ones.
        assert_eq!(four().scheme().stored_bytes(matrix(Float::BF16)) * 8, 10 * 128 * 9 / 2);
        assert_eq!(four().scheme().stored_bytes(matrix(Float::F32)) * 8, 10 * 128 * 5);
        assert_eq!(Affine::new(3, 32).unwrap().parts(Matrix { rows: 1, cols: 32, float: Float::F16 })[0].bytes(1), 12);
        assert_eq!((four().max_code(), Affine::new(8, 32).unwrap().max_code()), (15, 255));
    }

    #[test]
    fn a_group_must_divide_the_row() {
        let wide = Affine::new(4, 128).unwrap().scheme();
        assert!(wide.fits(256) && !wide.fits(192) && !wide.fits(0) && !wide.fits(172));
    }

    #[test]
    fn a_row_is_known_by_its_parts() {
        for &scheme in &SCHEMES {
            let matrix = Matrix { rows: 3, cols: 384, float: Float::F16 };
            let parts = scheme.parts(matrix);
            let part = |kind: &str| {
                let part = parts.iter().find(|part| part.kind == kind)?;
                let Extent::PerRow(width) = part.extent else { return None };
                Some((part.dtype, width))
            };
            assert_eq!(AffineCodec.row_of(scheme, &part), Some((384, Float::F16)));
        }
    }

    #[test]
    fn integers_pass_through_as_the_code_less_8_times_the_scale() {
        let scheme = Affine::new(4, 32).unwrap().scheme();
        let codes: Vec<u8> = (0..32_u8).map(|at| (at * 2 % 16) | (((at * 2 + 1) % 16) << 4)).collect();
        let (mut scales, mut parts) = (Vec::new(), vec![Vec::new(); 3]);
        Float::BF16.append(&[0.5, -3.0], &mut scales);
        AffineCodec.pass_through(
            scheme,
            Float::BF16,
            PassedRows { rows: 2, codes: &codes, scales: &scales },
            &mut parts,
        );
        let mut decoded = vec![0.0; 64];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        AffineCodec.decode(scheme, Rows { cols: 32, float: Float::BF16 }, &parts, &mut decoded);
        for (at, weight) in decoded.into_iter().enumerate() {
            let scale = if at < 32 { 0.5 } else { -3.0 };
            assert_eq!(weight, ((at % 16) as f32 - 8.0) * scale, "element {at}");
        }
    }
}
