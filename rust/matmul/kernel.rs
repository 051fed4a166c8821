//! Matrix products: `y[t][n] += Σ_i x[t][i] · w[i][n]`.
//!
//! Each element of `y` is the plain loop over `i`, in order, one fused multiply-add per step, and starts from the previous value
//! of `y`. So the result does not depend on how the steps are split into calls, nor on the other rows and columns. The shapes
//! fit the registers: [`TILE`] numbers of one side, each broadcast to all lanes, and [`PANEL`] lanes of the other make twelve
//! sums of eight lanes. With two vectors of lanes and one number in addition, they fill the 16 registers of AVX2, and the 32
//! registers of NEON (four lanes each). AVX-512 holds the sums in six registers, too few for the latency of its multiply-adds:
//! there two panels are processed together. [`STEPS`] steps are processed at a time, so that the operands stay in the L1 cache.
//!
//! Activations are packed once for many products. Weights are not packed: a row of weights is read in place, as lanes where the
//! sum is across rows ([`Tiles`] of `x`, [`accumulate_across`]), and number by number where it is along a row ([`Panels`] of
//! `x`, [`accumulate_along`]).

use std::ops::Range;

use crate::simd::batch::Batch;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Vector};

/// Numbers that are broadcast together.
pub(crate) const TILE: usize = 6;

/// Columns (of eight lanes) that are processed together.
const PANEL_COLUMNS: usize = 2;

/// The same, in lanes.
pub(crate) const PANEL: usize = PANEL_COLUMNS * BAND_ROWS;

/// Steps that are processed at a time.
pub(crate) const STEPS: usize = 128;

/// One step of a panel.
pub(crate) type PanelStep = [Column; PANEL_COLUMNS];

/// Sums of one tile and one panel: `[number of the tile][column of the panel]`.
pub(crate) type TileSums = [[Column; PANEL_COLUMNS]; TILE];

/// Empty sums.
pub(crate) const ZERO_SUMS: TileSums = [[[0.0; BAND_ROWS]; PANEL_COLUMNS]; TILE];

/// Rows of numbers in groups of `N`, packed for [`STEPS`] at a time: `[steps][group][step][row]`. Missing rows are zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedRows<const N: usize> {
    steps: usize,
    groups: usize,
    values: Vec<[f32; N]>,
}

/// Rows whose numbers are broadcast, [`TILE`] rows at a time.
pub(crate) type Tiles = PackedRows<TILE>;

/// Rows that are lanes, [`PANEL`] rows at a time.
pub(crate) type Panels = PackedRows<PANEL>;

impl<const N: usize> PackedRows<N> {
    /// Packs the rows `x`, each `width` long.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    #[must_use]
    pub(crate) fn pack(x: &[f32], width: usize) -> Self {
        assert!(width > 0 && x.len().is_multiple_of(width), "pack: not whole rows");
        let groups = (x.len() / width).div_ceil(N);
        let mut values = vec![[0.0; N]; groups * width];
        for from in (0..width).step_by(STEPS) {
            let steps = (width - from).min(STEPS);
            let block = &mut values[from * groups..(from + steps) * groups];
            for (group, rows) in block.chunks_exact_mut(steps).zip(x.chunks(N * width)) {
                for (at, row) in rows.chunks_exact(width).enumerate() {
                    for (packed, &value) in group.iter_mut().zip(&row[from..from + steps]) {
                        packed[at] = value;
                    }
                }
            }
        }
        Self { steps: width, groups, values }
    }

    /// Packs `columns` of `x`, whose rows are `width` long: each column is one of the rows to pack, and each row a step.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    #[must_use]
    pub(crate) fn pack_columns(x: &[f32], width: usize, columns: Range<usize>) -> Self {
        assert!(width > 0 && x.len().is_multiple_of(width), "pack: not whole rows");
        let (steps, groups) = (x.len() / width, columns.len().div_ceil(N));
        let mut values = vec![[0.0; N]; groups * steps];
        for (block, x) in values.chunks_mut(STEPS * groups.max(1)).zip(x.chunks(STEPS * width)) {
            let steps = x.len() / width;
            for (step, row) in x.chunks_exact(width).enumerate() {
                let (whole, rest) = row[columns.clone()].as_chunks::<N>();
                for (group, numbers) in whole.iter().enumerate() {
                    block[group * steps + step] = *numbers;
                }
                if !rest.is_empty() {
                    block[whole.len() * steps + step][..rest.len()].copy_from_slice(rest);
                }
            }
        }
        Self { steps, groups, values }
    }

    /// The number of groups.
    #[must_use]
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// The groups of at most [`STEPS`] steps from `from` on, a multiple of [`STEPS`]; and the number of these steps.
    fn block(&self, from: usize) -> (&[[f32; N]], usize) {
        assert!(from.is_multiple_of(STEPS) && from < self.steps, "product: steps");
        let steps = (self.steps - from).min(STEPS);
        (&self.values[from * self.groups..(from + steps) * self.groups], steps)
    }
}

/// Column `column` of the columns that `numbers` hold.
#[inline(always)]
fn column<const N: usize>(numbers: &[f32; N], column: usize) -> Column {
    std::array::from_fn(|at| numbers[column * BAND_ROWS + at])
}

/// The columns of a panel in registers: the first `PANEL_COLUMNS / W::PARTS`, rounded up.
type Registers<W> = [W; PANEL_COLUMNS];

#[inline(always)]
fn zero<W: Batch>() -> Registers<W> {
    [W::splat(0.0); PANEL_COLUMNS]
}

#[inline(always)]
fn load<W: Batch>(of: &[Column; PANEL_COLUMNS]) -> Registers<W> {
    let columns = [W::Part::load(of[0]), W::Part::load(of[1])];
    let mut held = zero();
    for (held, parts) in held.iter_mut().zip(columns.chunks(W::PARTS)) {
        *held = W::concat(parts);
    }
    held
}

#[inline(always)]
fn store<W: Batch>(held: Registers<W>, to: &mut [Column; PANEL_COLUMNS]) {
    for (at, column) in to.iter_mut().enumerate() {
        *column = held[at / W::PARTS].extract(at % W::PARTS).store();
    }
}

/// `held += number * lanes`
#[inline(always)]
fn add_product<W: Batch>(number: W, lanes: Registers<W>, held: &mut Registers<W>) {
    for at in 0..PANEL_COLUMNS.div_ceil(W::PARTS) {
        held[at] = number.mul_add(lanes[at], held[at]);
    }
}

/// Panels, or tiles, whose sums are in registers together: where a register holds a whole panel there is room for two, and with
/// fewer sums each would wait for the one before it.
const fn together<W: Batch>() -> usize {
    if W::PARTS < PANEL_COLUMNS { 1 } else { 2 }
}

/// Adds the products of a tile's steps with those of `N` panels to the sums of each.
#[inline(always)]
fn add_steps_across<W: Batch, const N: usize>(
    tile: &[[f32; TILE]],
    panels: [&[PanelStep]; N],
    sums: &mut [TileSums; N],
) {
    let mut held = sums.each_ref().map(|sums| sums.each_ref().map(load::<W>));
    let steps = panels.iter().fold(tile.len(), |steps, panel| steps.min(panel.len()));
    let panels = panels.map(|panel| &panel[..steps]);
    for (step, x) in tile[..steps].iter().enumerate() {
        let lanes = panels.map(|panel| load::<W>(&panel[step]));
        for (row, &x) in x.iter().enumerate() {
            let number = W::splat(x);
            for (held, &lanes) in held.iter_mut().zip(&lanes) {
                add_product(number, lanes, &mut held[row]);
            }
        }
    }
    for (sums, held) in sums.iter_mut().zip(held) {
        for (sums, held) in sums.iter_mut().zip(held) {
            store(held, sums);
        }
    }
}

kernel! {
    /// Adds the products of the steps `from..` of `x` with those of `panels`, which are of equal length, to `sums`:
    /// `[tile][panel]`.
    pub(crate) fn accumulate_across<V: Simd in W: Batch>(x: &Tiles, from: usize, panels: &[&[PanelStep]], sums: &mut [TileSums]) {
        let (tiles, steps) = x.block(from);
        for (tile, sums) in tiles.chunks_exact(steps).zip(sums.chunks_exact_mut(panels.len().max(1))) {
            let (mut single, mut single_sums) = (panels, sums);
            if const { together::<W>() == 2 } {
                let (both, last) = panels.as_chunks::<2>();
                let (both_sums, last_sums) = single_sums.as_chunks_mut::<2>();
                for (&panels, sums) in both.iter().zip(both_sums) {
                    add_steps_across::<W, 2>(tile, panels, sums);
                }
                (single, single_sums) = (last, last_sums);
            }
            for (panel, sums) in single.iter().zip(single_sums) {
                add_steps_across::<W, 1>(tile, [panel], std::array::from_mut(sums));
            }
        }
    }
}

/// Adds the products of the rows of a tile of `w` with the steps of `N` panels to the sums of each.
#[inline(always)]
fn add_steps_along<W: Batch, const N: usize>(
    tile: &[f32],
    stride: usize,
    panels: [&[[f32; PANEL]]; N],
    sums: [&mut TileSums; N],
) {
    let mut held = sums.each_ref().map(|sums| sums.each_ref().map(load::<W>));
    let steps = panels[0].len();
    let panels = panels.map(|panel| &panel[..steps]);
    // Missing rows alias row 0; their sums are never read.
    let row = |row: usize| tile.get(row * stride..row * stride + steps).unwrap_or(&tile[..steps]);
    let rows: [&[f32]; TILE] = std::array::from_fn(row);
    for step in 0..steps {
        let lanes = panels.map(|panel| load::<W>(&[column(&panel[step], 0), column(&panel[step], 1)]));
        for (at, row) in rows.iter().enumerate() {
            let number = W::splat(row[step]);
            for (held, &lanes) in held.iter_mut().zip(&lanes) {
                add_product(number, lanes, &mut held[at]);
            }
        }
    }
    for (sums, held) in sums.into_iter().zip(held) {
        for (sums, held) in sums.iter_mut().zip(held) {
            store(held, sums);
        }
    }
}

kernel! {
    /// Adds the products of the rows of `w`, one every `stride` numbers, with the steps `from..` of `x` to `sums`:
    /// `[panel][tile]`. The first number of a row belongs to step `from`.
    pub(crate) fn accumulate_along<V: Simd in W: Batch>(w: &[f32], stride: usize, x: &Panels, from: usize, sums: &mut [TileSums]) {
        let (panels, steps) = x.block(from);
        let tiles = w.len().div_ceil(stride * TILE).max(1);
        let together = const { together::<W>() };
        for (panels, sums) in panels.chunks(together * steps).zip(sums.chunks_mut(together * tiles)) {
            let (panel, second) = panels.split_at(steps);
            let (sums, others) = sums.split_at_mut(tiles);
            if second.is_empty() {
                for (tile, sums) in w.chunks(stride * TILE).zip(sums) {
                    add_steps_along::<W, 1>(tile, stride, [panel], [sums]);
                }
            } else {
                for ((tile, sums), others) in w.chunks(stride * TILE).zip(sums).zip(others) {
                    add_steps_along::<W, 2>(tile, stride, [panel, second], [sums, others]);
                }
            }
        }
    }
}

kernel! {
    /// The same for at most eight rows of `x`, which fill one column. (There are registers for twice the rows of `w`, but not for
    /// the pointers to them.)
    pub(crate) fn accumulate_few<V: Simd>(w: &[f32], stride: usize, x: &Panels, from: usize, sums: &mut [TileSums]) {
        let (panel, steps) = x.block(from);
        let panel = &panel[..steps];
        for (tile, sums) in w.chunks(stride * TILE).zip(sums) {
            let row = |row: usize| tile.get(row * stride..row * stride + steps).unwrap_or(&tile[..steps]);
            let rows: [&[f32]; TILE] = std::array::from_fn(row);
            let mut held = [V::splat(0.0); TILE];
            for (held, sums) in held.iter_mut().zip(sums.iter()) {
                *held = V::load(sums[0]);
            }
            for (step, x) in panel.iter().enumerate() {
                let x = V::load(column(x, 0));
                for (held, row) in held.iter_mut().zip(rows) {
                    *held = V::splat(row[step]).mul_add(x, *held);
                }
            }
            for (sums, held) in sums.iter_mut().zip(held) {
                sums[0] = held.store();
            }
        }
    }
}

/// Writes `values`, at most [`PANEL`] of them, as one step. Missing columns are zero.
#[inline]
pub(crate) fn pack_step(step: &mut PanelStep, values: &[f32]) {
    let flat = step.as_flattened_mut();
    if let Some(values) = values.first_chunk::<PANEL>() {
        flat.copy_from_slice(values);
    } else {
        flat[..values.len()].copy_from_slice(values);
        flat[values.len()..].fill(0.0);
    }
}

/// Copies the sums of [`accumulate_across`] over `panels` panels to the columns `columns` of the rows `y`, each `width` long.
pub(crate) fn unpack_across(sums: &[TileSums], panels: usize, y: &mut [f32], width: usize, columns: &Range<usize>) {
    for (rows, sums) in y.chunks_mut(TILE * width).zip(sums.chunks_exact(panels)) {
        for (at, row) in rows.chunks_exact_mut(width).enumerate() {
            for (part, panel) in row[columns.clone()].chunks_mut(PANEL).zip(sums) {
                let values = panel[at].as_flattened();
                // A copy of known length needs no call.
                if let Some(part) = part.first_chunk_mut::<PANEL>() {
                    part.copy_from_slice(values);
                } else {
                    part.copy_from_slice(&values[..part.len()]);
                }
            }
        }
    }
}

/// Copies the sums of [`accumulate_along`] over `tiles` tiles to the rows `y`, each `width` long.
pub(crate) fn unpack_along(sums: &[TileSums], tiles: usize, y: &mut [f32], width: usize) {
    for (rows, sums) in y.chunks_mut(PANEL * width).zip(sums.chunks_exact(tiles)) {
        for (at, row) in rows.chunks_exact_mut(width).enumerate() {
            for (part, tile) in row.chunks_mut(TILE).zip(sums) {
                for (place, sums) in part.iter_mut().zip(tile) {
                    *place = sums.as_flattened()[at];
                }
            }
        }
    }
}
