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

/// Sums of a tile in registers.
type TileRegisters<W> = [Registers<W>; TILE];

#[inline(always)]
fn load_tile<W: Batch>(sums: &TileSums) -> TileRegisters<W> {
    let mut held = [zero::<W>(); TILE];
    for (held, sums) in held.iter_mut().zip(sums) {
        *held = load(sums);
    }
    held
}

#[inline(always)]
fn store_tile<W: Batch>(held: TileRegisters<W>, sums: &mut TileSums) {
    for (sums, held) in sums.iter_mut().zip(held) {
        store(held, sums);
    }
}

kernel! {
    /// Adds the products of the steps `from..` of `x` with those of `panels`, which are of equal length, to `sums`:
    /// `[tile][panel]`.
    pub(crate) fn accumulate_across<V: Simd in W: Batch>(x: &Tiles, from: usize, panels: &[&[PanelStep]], sums: &mut [TileSums]) {
        let (tiles, steps) = x.block(from);
        for (tile, sums) in tiles.chunks_exact(steps).zip(sums.chunks_exact_mut(panels.len().max(1))) {
            for (panels, sums) in panels.chunks(W::PARTS).zip(sums.chunks_mut(W::PARTS)) {
                if let ([first, second], [first_sums, second_sums]) = (panels, &mut *sums) {
                    let mut held = [load_tile::<W>(first_sums), load_tile::<W>(second_sums)];
                    for ((x, first), second) in tile.iter().zip(first.iter()).zip(second.iter()) {
                        let (first, second) = (load::<W>(first), load::<W>(second));
                        for (at, &x) in x.iter().enumerate() {
                            let x = W::splat(x);
                            add_product(x, first, &mut held[0][at]);
                            add_product(x, second, &mut held[1][at]);
                        }
                    }
                    store_tile(held[0], first_sums);
                    store_tile(held[1], second_sums);
                } else {
                    let mut held = load_tile::<W>(&sums[0]);
                    for (x, w) in tile.iter().zip(panels[0].iter()) {
                        let w = load::<W>(w);
                        for (held, &x) in held.iter_mut().zip(x) {
                            add_product(W::splat(x), w, held);
                        }
                    }
                    store_tile(held, &mut sums[0]);
                }
            }
        }
    }
}

kernel! {
    /// Adds the products of the rows of `w`, one every `stride` numbers, with the steps `from..` of `x` to `sums`:
    /// `[panel][tile]`. The first number of a row belongs to step `from`.
    pub(crate) fn accumulate_along<V: Simd in W: Batch>(w: &[f32], stride: usize, x: &Panels, from: usize, sums: &mut [TileSums]) {
        let (panels, steps) = x.block(from);
        let tiles = w.len().div_ceil(stride * TILE).max(1);
        for (panels, sums) in panels.chunks(steps * W::PARTS).zip(sums.chunks_mut(tiles * W::PARTS)) {
            let ((first, second), (first_sums, second_sums)) = (panels.split_at(steps), sums.split_at_mut(tiles));
            for (at, (tile, sums)) in w.chunks(stride * TILE).zip(first_sums).enumerate() {
                // Missing rows alias row 0; their sums are never read.
                let row = |row: usize| tile.get(row * stride..row * stride + steps).unwrap_or(&tile[..steps]);
                let rows: [&[f32]; TILE] = std::array::from_fn(row);
                if let (Some(second_sums), false) = (second_sums.get_mut(at), second.is_empty()) {
                    let mut held = [load_tile::<W>(sums), load_tile::<W>(second_sums)];
                    for (step, (first, second)) in first.iter().zip(second).enumerate() {
                        let first = load::<W>(&[column(first, 0), column(first, 1)]);
                        let second = load::<W>(&[column(second, 0), column(second, 1)]);
                        for (at, row) in rows.iter().enumerate() {
                            let number = W::splat(row[step]);
                            add_product(number, first, &mut held[0][at]);
                            add_product(number, second, &mut held[1][at]);
                        }
                    }
                    store_tile(held[0], sums);
                    store_tile(held[1], second_sums);
                } else {
                    let mut held = load_tile::<W>(sums);
                    for (step, x) in first.iter().enumerate() {
                        let x = load::<W>(&[column(x, 0), column(x, 1)]);
                        for (held, row) in held.iter_mut().zip(rows) {
                            add_product(W::splat(row[step]), x, held);
                        }
                    }
                    store_tile(held, sums);
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
