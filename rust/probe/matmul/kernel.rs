//! Matrix products: `y[t][n] += Σ_i x[t][i] · w[i][n]`.
//!
//! Each element of `y` is the plain loop over `i`, in order, one fused multiply-add a step: whatever `y` held is where
//! the loop starts, so it does not matter into how many calls the steps are cut, and rows and columns do not know of each
//! other. The shapes are those of the registers: [`TILE`] numbers of one side, each spread over lanes, and [`PANEL`] lanes
//! of the other are twelve sums of eight lanes, all that AVX2 can hold beside two lanes and one number, and NEON (four
//! lanes a register, and twice as many registers); in AVX-512 they are six. Steps are taken [`STEPS`] at
//! a time: that much of both sides stays in the L1 cache.
//!
//! Activations are packed once for many products, weights are not: a weight's row is read as it is, as lanes where what
//! is summed over lies across rows ([`Tiles`] of `x`, [`accumulate_across`]), number by number where it lies within a row
//! ([`Panels`] of `x`, [`accumulate_along`]).

use std::ops::Range;

use crate::simd::kernel;
use crate::simd::paired::Wide;
use crate::simd::vector::{BAND_ROWS, Column, Vector};

/// Numbers that are spread over lanes together.
pub const TILE: usize = 6;

/// Lanes, of eight numbers each, that are worked on together.
const LANES: usize = 2;

/// The same, as numbers.
pub const PANEL: usize = LANES * BAND_ROWS;

/// Steps that are taken at a time.
pub const STEPS: usize = 128;

/// One step of a panel.
pub type Step = [Column; LANES];

/// Sums of one tile and one panel: `[number of the tile][lane]`.
pub type Sums = [[Column; LANES]; TILE];

/// Sums that nothing was added to.
pub const ZERO: Sums = [[[0.0; BAND_ROWS]; LANES]; TILE];

/// Rows of numbers in groups of `N`, packed for [`STEPS`] at a time: `[steps][group][step][row]`. Rows that are not there
/// are zero.
#[derive(Clone, Debug, Default)]
pub struct Packed<const N: usize> {
    steps: usize,
    groups: usize,
    values: Vec<[f32; N]>,
}

/// Rows of which [`TILE`] numbers are spread over lanes.
pub type Tiles = Packed<TILE>;

/// Rows that are lanes, [`PANEL`] at a time.
pub type Panels = Packed<PANEL>;

impl<const N: usize> Packed<N> {
    /// Packs the rows `x`, each `width` long.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    #[must_use]
    pub fn pack(x: &[f32], width: usize) -> Self {
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

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// How many steps there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The groups of the steps from `from` on, a multiple of [`STEPS`], at most so many; and how many.
    fn block(&self, from: usize) -> (&[[f32; N]], usize) {
        assert!(from.is_multiple_of(STEPS) && from < self.steps, "product: steps");
        let steps = (self.steps - from).min(STEPS);
        (&self.values[from * self.groups..(from + steps) * self.groups], steps)
    }
}

/// A lane's worth of numbers from a longer array.
#[inline(always)]
fn lane<const N: usize>(numbers: &[f32; N], lane: usize) -> Column {
    std::array::from_fn(|at| numbers[lane * BAND_ROWS + at])
}

/// The lanes that are worked on together: as many registers as they take.
type Held<W> = [W; LANES];

#[inline(always)]
fn none<W: Wide>() -> Held<W> {
    [W::splat(0.0); LANES]
}

#[inline(always)]
fn lanes<W: Wide>(of: &[Column; LANES]) -> Held<W> {
    let parts = [W::Part::load(of[0]), W::Part::load(of[1])];
    let mut held = none();
    for (held, parts) in held.iter_mut().zip(parts.chunks(W::PARTS)) {
        *held = W::beside(parts);
    }
    held
}

#[inline(always)]
fn store<W: Wide>(held: Held<W>, to: &mut [Column; LANES]) {
    for (at, lane) in to.iter_mut().enumerate() {
        *lane = held[at / W::PARTS].part(at % W::PARTS).store();
    }
}

/// Adds `number` by `lanes` to `held`.
#[inline(always)]
fn add_product<W: Wide>(number: W, lanes: Held<W>, held: &mut Held<W>) {
    for at in 0..LANES.div_ceil(W::PARTS) {
        held[at] = number.mul_add(lanes[at], held[at]);
    }
}

kernel! {
    /// Adds the product of the steps `from..` of `x` with those that `panels` hold, side by side and equally many each, to
    /// `sums`: `[tile][panel]`.
    pub fn accumulate_across<V: Vector in W: Wide>(x: &Tiles, from: usize, panels: &[&[Step]], sums: &mut [Sums]) {
        let (tiles, steps) = x.block(from);
        for (tile, sums) in tiles.chunks_exact(steps).zip(sums.chunks_exact_mut(panels.len().max(1))) {
            for (panel, sums) in panels.iter().zip(sums) {
                let mut held = [none::<W>(); TILE];
                for (held, sums) in held.iter_mut().zip(sums.iter()) {
                    *held = lanes(sums);
                }
                for (x, w) in tile.iter().zip(panel.iter()) {
                    let w = lanes::<W>(w);
                    for (held, &x) in held.iter_mut().zip(x) {
                        add_product(W::splat(x), w, held);
                    }
                }
                for (sums, held) in sums.iter_mut().zip(held) {
                    store(held, sums);
                }
            }
        }
    }
}

kernel! {
    /// Adds the product of the rows of `w`, one every `stride` numbers, with the steps `from..` of `x` to `sums`:
    /// `[panel][tile]`. Each row's first number belongs to step `from`.
    pub fn accumulate_along<V: Vector in W: Wide>(w: &[f32], stride: usize, x: &Panels, from: usize, sums: &mut [Sums]) {
        let (panels, steps) = x.block(from);
        let tiles = w.len().div_ceil(stride * TILE);
        for (panel, sums) in panels.chunks_exact(steps).zip(sums.chunks_exact_mut(tiles.max(1))) {
            for (tile, sums) in w.chunks(stride * TILE).zip(sums) {
                let mut held = [none::<W>(); TILE];
                for (held, sums) in held.iter_mut().zip(sums.iter()) {
                    *held = lanes(sums);
                }
                // In place of rows that are not there stands the first: what it gives there is for nobody.
                let row = |row: usize| tile.get(row * stride..row * stride + steps).unwrap_or(&tile[..steps]);
                let rows: [&[f32]; TILE] = std::array::from_fn(row);
                for (step, x) in panel.iter().enumerate() {
                    let x = lanes::<W>(&[lane(x, 0), lane(x, 1)]);
                    for (held, row) in held.iter_mut().zip(rows) {
                        add_product(W::splat(row[step]), x, held);
                    }
                }
                for (sums, held) in sums.iter_mut().zip(held) {
                    store(held, sums);
                }
            }
        }
    }
}

kernel! {
    /// The same for no more than eight rows of `x`, which fill one lane. (Twice the rows of `w` at once would have the
    /// registers, but not the pointers.)
    pub fn accumulate_few<V: Vector>(w: &[f32], stride: usize, x: &Panels, from: usize, sums: &mut [Sums]) {
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
                let x = V::load(lane(x, 0));
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

/// Writes `values`, at most [`PANEL`] of them, as one step; columns that are not there are zero.
#[inline]
pub fn lay_step(step: &mut Step, values: &[f32]) {
    let flat = step.as_flattened_mut();
    if let Some(values) = values.first_chunk::<PANEL>() {
        flat.copy_from_slice(values);
    } else {
        flat[..values.len()].copy_from_slice(values);
        flat[values.len()..].fill(0.0);
    }
}

/// Copies what [`accumulate_across`] summed, `panels` side by side, to the columns `columns` of the rows `y`, each `width`
/// long.
pub fn unpack_across(sums: &[Sums], panels: usize, y: &mut [f32], width: usize, columns: &Range<usize>) {
    for (rows, sums) in y.chunks_mut(TILE * width).zip(sums.chunks_exact(panels)) {
        for (at, row) in rows.chunks_exact_mut(width).enumerate() {
            for (part, panel) in row[columns.clone()].chunks_mut(PANEL).zip(sums) {
                part.copy_from_slice(&panel[at].as_flattened()[..part.len()]);
            }
        }
    }
}

/// Copies what [`accumulate_along`] summed of `tiles` to the rows `y`, each `width` long: as many columns as that.
pub fn unpack_along(sums: &[Sums], tiles: usize, y: &mut [f32], width: usize) {
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
