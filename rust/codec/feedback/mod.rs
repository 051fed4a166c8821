//! Error feedback: the error of each stored weight is spread over the columns of its row that are still to come.
//!
//! The error of a row is `Δ A Δᵀ`, with the covariance `A` of the layer's inputs and `Δ = w − ŵ`. With the factor
//! `A = Lᵀ L`, `L` lower triangular, it is a sum of squares, one for each column:
//!
//! ```text
//! Δ A Δᵀ = Σ_j k_j e_j²,   e_j = Σ_{i ≤ j} Δ_i l_ji,   l_ji = L_ji / L_jj,   k_j = L_jj²
//! ```
//!
//! Columns are coded in order. `e_j = t_j − ŵ_j` with the *compensated* weight `t_j = w_j + Σ_{i < j} Δ_i l_ji`, which is
//! known when column `j` is reached: the nearest code of `t_j` has the least `e_j²`. That is the update of GPTQ (Frantar et
//! al., 2022), which is written there with the Cholesky factor of `A⁻¹`; no inverse is needed.
//!
//! The sums over the columns of earlier groups are matrix products over a slab of rows ([`encode`]). Within a group a codec
//! searches for the grid with the feedback of its own codes ([`Feedback::encode_group`], [`feed`]).

mod factor;
pub(super) mod feed;

pub use factor::Factor;
pub(super) use feed::{Fed, GroupFactor};

use super::{Band, RowError, Rows, Scheme};
use crate::dtype::Float;
use crate::matmul::kernel::{PANEL, PanelStep, STEPS, TILE, TileSums, Tiles, ZERO_SUMS, accumulate_across};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// Rows that are encoded together: the factor is read once for all of them.
pub const SLAB_ROWS: usize = 64;

/// Columns of a panel of rows.
const PANEL_COLUMNS: usize = PANEL / BAND_ROWS;

/// The encoder of a codec that can feed errors back.
pub trait Feedback: Sync {
    /// Columns that [`encode_group`](Self::encode_group) takes at a time.
    fn group(&self, scheme: Scheme) -> usize;

    /// Encodes group `at` of a band.
    fn encode_group(
        &self,
        scheme: Scheme,
        target: FeedbackTarget,
        group: &Group<'_>,
        at: usize,
        out: &mut FedBand,
    ) -> Fed;

    /// Appends `rows` rows of an encoded band to the parts' data.
    fn store(&self, scheme: Scheme, target: FeedbackTarget, rows: usize, band: &FedBand, parts: &mut [Vec<u8>]);
}

/// How to encode.
#[derive(Clone, Copy, Debug)]
pub struct FeedbackTarget {
    /// The instructions.
    pub isa: Isa,
    /// The type of stored scales.
    pub float: Float,
}

/// A group of the columns of a band.
pub struct Group<'a> {
    /// All columns of the band.
    pub(super) row: &'a [Column],
    /// The columns of the group.
    pub(super) w: &'a [Column],
    /// `Σ_i Δ_i l_ji` over the columns `i` of earlier groups, for each column `j` of the group.
    pub(super) sums: &'a [Column],
    pub(super) factor: &'a GroupFactor,
    /// `k` of all columns.
    pub(super) importance: &'a [f32],
}

/// Codes and grids of a band, row after row.
#[derive(Clone, Debug, Default)]
pub struct FedBand {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) biases: Vec<f32>,
    pub(super) cols: usize,
}

impl FedBand {
    /// Writes the codes of the group that begins at column `first`.
    pub(super) fn put_codes(&mut self, first: usize, codes: &[[u8; BAND_ROWS]]) {
        for (column, codes) in codes.iter().enumerate() {
            for (row, code) in codes.iter().enumerate() {
                self.codes[row * self.cols + first + column] = *code;
            }
        }
    }
}

/// Writes the value of group `at` of each row to `values`, which hold `groups` of them for each row, row after row.
pub(super) fn put_values(values: &mut Vec<f32>, (at, groups): (usize, usize), of_rows: Column) {
    values.resize(BAND_ROWS * groups, 0.0);
    for (row, value) in of_rows.into_iter().enumerate() {
        values[row * groups + at] = value;
    }
}

/// A slab of rows.
pub struct Slab<'a> {
    /// At most [`SLAB_ROWS`] rows, as bands.
    pub bands: &'a [Vec<Column>],
    /// Number of rows.
    pub rows: usize,
}

/// Encodes the rows of `slab` in `scheme`, with the errors fed back, and appends them to the parts' data. Returns the error
/// of each row as stored, weighted by the metric of `factor`.
///
/// # Panics
/// If the rows are not as long as the factor's order, or groups do not divide them.
pub fn encode(
    (scheme, target): (Scheme, FeedbackTarget),
    codec: &dyn Feedback,
    factor: &Factor,
    slab: &Slab<'_>,
    parts: &mut [Vec<u8>],
) -> Vec<[RowError; BAND_ROWS]> {
    let (cols, group) = (factor.order(), codec.group(scheme));
    assert!(slab.bands.iter().all(|band| band.len() == cols) && cols.is_multiple_of(group), "feedback: shapes");
    let empty = || FedBand { codes: vec![0; BAND_ROWS * cols], cols, ..FedBand::default() };
    let mut encoded: Vec<FedBand> = slab.bands.iter().map(|_| empty()).collect();
    let mut errors = vec![[RowError::default(); BAND_ROWS]; slab.bands.len()];
    let mut products = Products::new(slab.bands.len(), cols);
    let mut sums = vec![[0.0; BAND_ROWS]; group];
    for at in 0..cols / group {
        let columns = at * group..(at + 1) * group;
        let within = GroupFactor::new(factor, columns.clone());
        products.sum(target.isa, factor, columns.clone());
        for (number, (band, out)) in slab.bands.iter().zip(&mut encoded).enumerate() {
            products.sums_of(number, &mut sums);
            let w = &band[columns.clone()];
            let of = Group { row: band, w, sums: &sums, factor: &within, importance: factor.importance() };
            let fed = codec.encode_group(scheme, target, &of, at, out);
            for (error, weighted) in errors[number].iter_mut().zip(fed.weighted) {
                error.weighted += f64::from(weighted);
            }
            products.push(number, columns.start, &fed.off);
        }
    }
    let block = scheme.codec().map_or(cols, |codec| codec.block(scheme, cols as u64) as usize);
    for (number, band) in encoded.iter().enumerate() {
        products.add_squares(number, block, &mut errors[number]);
        codec.store(scheme, target, (slab.rows - number * BAND_ROWS).min(BAND_ROWS), band, parts);
    }
    errors
}

/// `w − ŵ` for the rows of `band`, whose stored parts are `parts`.
pub(crate) fn off(scheme: Scheme, float: Float, band: Band<'_>, parts: &[Vec<u8>]) -> Vec<Column> {
    let cols = band.columns.len();
    let mut decoded = vec![0.0; band.rows * cols];
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    if let Some(codec) = scheme.codec() {
        codec.decode(scheme, Rows { cols, float }, &parts, &mut decoded);
    }
    let mut off = band.columns.to_vec();
    for (row, decoded) in decoded.chunks_exact(cols).enumerate() {
        for (off, decoded) in off.iter_mut().zip(decoded) {
            off[row] -= decoded;
        }
    }
    off
}

/// Columns of which [`errors_of`] computes the errors together.
const ERROR_COLUMNS: usize = 32;

/// The errors of rows that are off by `off`, under the metric of `factor`.
pub(crate) fn errors_of(isa: Isa, factor: &Factor, off: &[Vec<Column>]) -> Vec<[RowError; BAND_ROWS]> {
    let cols = factor.order();
    let mut errors = vec![[RowError::default(); BAND_ROWS]; off.len()];
    let mut products = Products::new(off.len(), cols);
    for first in (0..cols).step_by(ERROR_COLUMNS) {
        let columns = first..(first + ERROR_COLUMNS).min(cols);
        products.sum(isa, factor, columns.clone());
        for (number, off) in off.iter().enumerate() {
            let mut sums = vec![[0.0; BAND_ROWS]; columns.len()];
            products.sums_of(number, &mut sums);
            for (at, column) in columns.clone().enumerate() {
                let within = &factor.row(column)[first..=column];
                for (off, by) in off[first..].iter().zip(within) {
                    sums[at].iter_mut().zip(off).for_each(|(sum, off)| *sum += by * off);
                }
                for ((error, sum), off) in errors[number].iter_mut().zip(sums[at]).zip(off[column]) {
                    error.weighted += f64::from(factor.importance()[column]) * f64::from(sum) * f64::from(sum);
                    error.plain += f64::from(off) * f64::from(off);
                }
            }
            products.push(number, first, &off[columns.clone()]);
        }
    }
    errors
}

/// The errors `Δ` of a slab so far, and their products with the factor.
struct Products {
    /// `[panel][column]`
    off: Vec<Vec<PanelStep>>,
    /// `[tile of columns][panel]`
    sums: Vec<TileSums>,
}

impl Products {
    fn new(bands: usize, cols: usize) -> Self {
        let panels = bands.div_ceil(PANEL_COLUMNS);
        Self { off: vec![vec![PanelStep::default(); cols]; panels], sums: Vec::new() }
    }

    /// Computes `Σ_i Δ_i l_ji` over the columns `i` before `columns`, for all rows and the columns `j` of `columns`.
    fn sum(&mut self, isa: Isa, factor: &Factor, columns: std::ops::Range<usize>) {
        self.sums.clear();
        self.sums.resize(columns.len().div_ceil(TILE) * self.off.len(), ZERO_SUMS);
        let before = columns.start;
        if before == 0 {
            return;
        }
        let mut rows = Vec::with_capacity(columns.len() * before);
        for column in columns {
            rows.extend_from_slice(&factor.row(column)[..before]);
        }
        let tiles = Tiles::pack(&rows, before);
        let mut panels: Vec<&[PanelStep]> = Vec::with_capacity(self.off.len());
        for from in (0..before).step_by(STEPS) {
            panels.clear();
            panels.extend(self.off.iter().map(|panel| &panel[from..(from + STEPS).min(before)]));
            accumulate_across(isa, &tiles, from, &panels, &mut self.sums);
        }
    }

    fn sums_of(&self, band: usize, out: &mut [Column]) {
        let (panel, column) = (band / PANEL_COLUMNS, band % PANEL_COLUMNS);
        for (tile, out) in out.chunks_mut(TILE).enumerate() {
            let sums = &self.sums[tile * self.off.len() + panel];
            for (out, sums) in out.iter_mut().zip(sums) {
                *out = sums[column];
            }
        }
    }

    /// Adds the squares of a band's errors to `errors`: in `f32` within a block, as reading them back does, then in `f64`.
    fn add_squares(&self, band: usize, block: usize, errors: &mut [RowError; BAND_ROWS]) {
        for steps in self.off[band / PANEL_COLUMNS].chunks(block) {
            let mut sums = [0.0_f32; BAND_ROWS];
            for step in steps {
                for (sum, off) in sums.iter_mut().zip(step[band % PANEL_COLUMNS]) {
                    *sum += off * off;
                }
            }
            for (error, sum) in errors.iter_mut().zip(sums) {
                error.plain += f64::from(sum);
            }
        }
    }

    fn push(&mut self, band: usize, first: usize, off: &[Column]) {
        let panel = &mut self.off[band / PANEL_COLUMNS][first..];
        for (step, off) in panel.iter_mut().zip(off) {
            step[band % PANEL_COLUMNS] = *off;
        }
    }
}
