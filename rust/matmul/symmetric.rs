//! Symmetric matrices that are sums of products, and their triangular factors.
//!
//! Only the lower triangle is stored, in blocks of [`BLOCK`] rows: a block holds its rows up to its own diagonal block.
//! Every element is a sum in a fixed order, so it has the same bits for any number of threads and any division of the
//! terms into calls.

use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::matmul::kernel::{
    PANEL, PanelStep, STEPS, TILE, TileSums, Tiles, ZERO_SUMS, accumulate_across, pack_step, unpack_across,
};
use crate::pool::Workers;
use crate::progress::Progress;
use crate::simd::vector::{BAND_ROWS, Simd};
use crate::simd::{Isa, kernel};

/// Rows of a block: whole tiles and whole panels.
const BLOCK: usize = 96;

/// Terms that are packed together.
pub(crate) const TERMS: usize = 512;

/// Panels that are processed together: with the tiles of a block they stay in the L2 cache.
const PANELS: usize = 8;

/// The threads and instructions of a computation.
#[derive(Clone, Copy)]
pub struct Compute<'a> {
    /// The threads.
    pub workers: &'a Workers,
    /// Checked for cancellation.
    pub progress: &'a Progress,
    /// The instructions.
    pub isa: Isa,
}

/// A symmetric matrix, or a lower triangular one.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct SymmetricMatrix {
    order: usize,
    /// Block after block, each `[row][column]` with the columns up to the end of its diagonal block.
    blocks: Vec<Vec<f32>>,
}

/// Rows `x` and `y` of the terms `Σ_t x_t y_tᵀ`, packed.
struct Terms {
    /// The columns of `x`, for each block of the result.
    tiles: Vec<Tiles>,
    /// The columns of `y`: `[panel][term]`.
    panels: Vec<Vec<PanelStep>>,
    count: usize,
}

impl SymmetricMatrix {
    /// All elements 0.
    #[must_use]
    pub fn zeros(order: usize) -> Self {
        let block = |at: usize| vec![0.0; rows_of_block(order, at) * width_of_block(order, at)];
        Self { order, blocks: (0..order.div_ceil(BLOCK)).map(block).collect() }
    }

    pub(crate) fn order(&self) -> usize {
        self.order
    }

    /// Row `row` up to the diagonal.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        let (block, at) = (row / BLOCK, row % BLOCK);
        let width = width_of_block(self.order, block);
        &self.blocks[block][at * width..][..=row]
    }

    pub(crate) fn diagonal(&self) -> Vec<f32> {
        (0..self.order).map(|row| self.row(row)[row]).collect()
    }

    /// Calls `change` with each row up to the diagonal.
    pub fn for_each_row(&mut self, mut change: impl FnMut(usize, &mut [f32])) {
        for (block, rows) in self.blocks.iter_mut().enumerate() {
            for (at, row) in rows.chunks_exact_mut(width_of_block(self.order, block)).enumerate() {
                let number = block * BLOCK + at;
                change(number, &mut row[..=number]);
            }
        }
    }

    /// Adds `scale` times `other`.
    pub(crate) fn add(&mut self, other: &Self, scale: f32) {
        for (rows, others) in self.blocks.iter_mut().zip(&other.blocks) {
            for (value, other) in rows.iter_mut().zip(others) {
                *value += scale * other;
            }
        }
    }

    /// Adds `Σ_t x_t y_tᵀ`, a symmetric matrix, one term after the other. `x` and `y` have rows of the matrix's order.
    ///
    /// # Errors
    /// Cancellation.
    pub fn add_products(&mut self, compute: Compute<'_>, x: &[f32], y: &[f32]) -> Result<()> {
        let length = TERMS * self.order;
        for (x, y) in x.chunks(length).zip(y.chunks(length)) {
            let terms = Terms::pack(compute, self.order, x, y)?;
            add_terms(compute, &mut self.blocks, self.order, &terms)?;
        }
        Ok(())
    }

    /// The lower triangular `L` with `A = Lᵀ L`, in place of `A`; `None` if the matrix is not positive definite.
    ///
    /// # Errors
    /// Cancellation.
    pub fn factor(mut self, compute: Compute<'_>) -> Result<Option<Self>> {
        for at in (0..self.blocks.len()).rev() {
            let (above, here) = self.blocks.split_at_mut(at);
            let (rows, width) = (rows_of_block(self.order, at), width_of_block(self.order, at));
            let block = &mut here[0];
            if !factor_diagonal(compute.isa, block, rows, width) {
                return Ok(None);
            }
            solve_block(compute, block, rows, width)?;
            if at > 0 {
                // `A_ij -= Σ_m L_mi L_mj` over the rows `m` of the block, the last one first.
                let mut terms: Vec<f32> = Vec::with_capacity(rows * (width - rows));
                for row in block.chunks_exact(width).rev() {
                    terms.extend_from_slice(&row[..width - rows]);
                }
                let negated: Vec<f32> = terms.iter().map(|value| -value).collect();
                let terms = Terms::pack(compute, width - rows, &negated, &terms)?;
                add_terms(compute, above, width - rows, &terms)?;
            }
        }
        Ok(Some(self))
    }
}

fn rows_of_block(order: usize, block: usize) -> usize {
    (order - block * BLOCK).min(BLOCK)
}

fn width_of_block(order: usize, block: usize) -> usize {
    ((block + 1) * BLOCK).min(order)
}

impl Terms {
    fn pack(compute: Compute<'_>, order: usize, x: &[f32], y: &[f32]) -> Result<Self> {
        let count = x.len() / order;
        let blocks: Vec<usize> = (0..order.div_ceil(BLOCK)).collect();
        let tiles = compute.workers.map(
            compute.progress,
            &blocks,
            || (),
            |(), &block| Ok(Tiles::pack_columns(x, order, block * BLOCK..width_of_block(order, block))),
        )?;
        let firsts: Vec<usize> = (0..order).step_by(PANEL).collect();
        let panels = compute.workers.map(
            compute.progress,
            &firsts,
            || (),
            |(), &first| {
                let mut panel = vec![PanelStep::default(); count];
                let end = (first + PANEL).min(order);
                for (step, row) in panel.iter_mut().zip(y.chunks_exact(order)) {
                    pack_step(step, &row[first..end]);
                }
                Ok(panel)
            },
        )?;
        Ok(Self { tiles, panels, count })
    }
}

/// Adds `terms` to the blocks of a matrix of order `order`.
fn add_terms(compute: Compute<'_>, blocks: &mut [Vec<f32>], order: usize, terms: &Terms) -> Result<()> {
    // The longest rows first, so that the threads finish together.
    let tasks: Vec<Mutex<(usize, &mut Vec<f32>)>> = blocks.iter_mut().enumerate().rev().map(Mutex::new).collect();
    compute.workers.map(compute.progress, &tasks, Vec::new, |sums: &mut Vec<TileSums>, task| {
        let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
        let (block, rows) = &mut *task;
        let width = width_of_block(order, *block);
        let tiles = &terms.tiles[*block];
        for first in (0..width).step_by(PANELS * PANEL) {
            let columns = first..(first + PANELS * PANEL).min(width);
            let panels = &terms.panels[first / PANEL..columns.end.div_ceil(PANEL)];
            load_sums(sums, panels.len(), rows, width, columns.start);
            let mut parts: Vec<&[PanelStep]> = Vec::with_capacity(panels.len());
            for from in (0..terms.count).step_by(STEPS) {
                parts.clear();
                parts.extend(panels.iter().map(|panel| &panel[from..(from + STEPS).min(terms.count)]));
                accumulate_across(compute.isa, tiles, from, &parts, sums);
            }
            unpack_across(sums, panels.len(), rows, width, &columns);
        }
        Ok(())
    })?;
    Ok(())
}

/// The inverse of [`unpack_across`]: loads the columns from `first` on of `rows` into sums over `panels` panels.
fn load_sums(sums: &mut Vec<TileSums>, panels: usize, rows: &[f32], width: usize, first: usize) {
    sums.clear();
    sums.resize((rows.len() / width).div_ceil(TILE) * panels, ZERO_SUMS);
    for (rows, sums) in rows.chunks(TILE * width).zip(sums.chunks_exact_mut(panels)) {
        for (at, row) in rows.chunks_exact(width).enumerate() {
            for (part, panel) in row[first..].chunks(PANEL).zip(sums.iter_mut()) {
                pack_step(&mut panel[at], part);
            }
        }
    }
}

kernel! {
    /// Factors the diagonal block of a block of rows; false if it is not positive definite.
    fn factor_diagonal<V: Simd>(block: &mut [f32], rows: usize, width: usize) -> bool {
        let first = width - rows;
        for at in (0..rows).rev() {
            let (above, here) = block.split_at_mut(at * width);
            let row = &mut here[first..=first + at];
            let pivot = row[at];
            // False for NaN, too.
            if !(pivot > 0.0 && pivot.is_finite()) {
                return false;
            }
            let root = pivot.sqrt();
            row.iter_mut().take(at).for_each(|value| *value /= root);
            row[at] = root;
            for (other, above) in above.chunks_exact_mut(width).enumerate() {
                let by = row[other];
                for (value, factor) in above[first..=first + other].iter_mut().zip(row.iter()) {
                    *value -= by * factor;
                }
            }
        }
        true
    }
}

/// Solves `L_bbᵀ X = A_b` for the part of a block of rows left of its diagonal block, in place.
fn solve_block(compute: Compute<'_>, block: &mut [f32], rows: usize, width: usize) -> Result<()> {
    let before = width - rows;
    let step = 4 * PANEL;
    let mut diagonal = Vec::with_capacity(rows * rows);
    for row in block.chunks_exact(width) {
        diagonal.extend_from_slice(&row[before..]);
    }
    let firsts: Vec<usize> = (0..before).step_by(step).collect();
    let held: &[f32] = block;
    let solved = compute.workers.map(
        compute.progress,
        &firsts,
        || (),
        |(), &first| {
            let columns = first..(first + step).min(before);
            let mut part = Vec::with_capacity(rows * columns.len());
            for row in held.chunks_exact(width) {
                part.extend_from_slice(&row[columns.clone()]);
            }
            solve_columns(compute.isa, &mut part, &diagonal, rows);
            Ok(part)
        },
    )?;
    for (first, part) in firsts.into_iter().zip(solved) {
        let columns = first..(first + step).min(before);
        for (row, solved) in block.chunks_exact_mut(width).zip(part.chunks_exact(columns.len())) {
            row[columns.clone()].copy_from_slice(solved);
        }
    }
    Ok(())
}

/// A lower triangular matrix.
#[derive(Clone, Copy)]
struct Triangle<'a> {
    l: &'a [f32],
    rows: usize,
}

/// Two adjacent columns of lanes of some rows, each `stride` numbers long.
struct PanelRows<'a> {
    values: &'a mut [f32],
    stride: usize,
    first: usize,
}

impl PanelRows<'_> {
    #[inline(always)]
    fn load<V: Simd>(&self, row: usize) -> [V; 2] {
        let (lanes, _) = self.values[row * self.stride + self.first..].as_chunks::<BAND_ROWS>();
        [V::load(lanes[0]), V::load(lanes[1])]
    }

    #[inline(always)]
    fn store<V: Simd>(&mut self, row: usize, [first, second]: [V; 2]) {
        let (lanes, _) = self.values[row * self.stride + self.first..].as_chunks_mut::<BAND_ROWS>();
        (lanes[0], lanes[1]) = (first.store(), second.store());
    }

    /// Solves `Lᵀ X = A` for the `H` rows from `start` on. The rows after them are solved.
    #[inline(always)]
    fn solve<V: Simd, const H: usize>(&mut self, Triangle { l, rows }: Triangle<'_>, start: usize) {
        let mut held = [[V::splat(0.0); 2]; H];
        for (at, held) in held.iter_mut().enumerate() {
            *held = self.load(start + at);
        }
        for row in (start + H..rows).rev() {
            let solved = self.load::<V>(row);
            for (held, &by) in held.iter_mut().zip(&l[row * rows + start..][..H]) {
                for (value, solved) in held.iter_mut().zip(solved) {
                    *value = value.sub(V::splat(by).mul(solved));
                }
            }
        }
        for at in (0..H).rev() {
            let factors = &l[(start + at) * rows + start..][..H];
            for value in &mut held[at] {
                *value = value.div(V::splat(factors[at]));
            }
            let solved = held[at];
            self.store(start + at, solved);
            for (held, &by) in held[..at].iter_mut().zip(factors) {
                for (value, solved) in held.iter_mut().zip(solved) {
                    *value = value.sub(V::splat(by).mul(solved));
                }
            }
        }
    }
}

kernel! {
    /// Solves `Lᵀ X = A` in place for the columns of `part`, whole panels; `l` is lower triangular of order `rows`.
    fn solve_columns<V: Simd>(part: &mut [f32], l: &[f32], rows: usize) {
        let stride = part.len() / rows;
        for first in (0..stride).step_by(PANEL) {
            let mut panel = PanelRows { values: part, stride, first };
            let mut end = rows;
            while end > 0 {
                if end >= TILE {
                    end -= TILE;
                    panel.solve::<V, TILE>(Triangle { l, rows }, end);
                } else {
                    end -= 1;
                    panel.solve::<V, 1>(Triangle { l, rows }, end);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1_009) as f32 / 500.0 - 1.0).collect()
    }

    fn with_all(check: impl Fn(Compute<'_>)) {
        for isa in Isa::available() {
            for threads in [1, 3] {
                let workers = Workers::new(std::num::NonZeroUsize::new(threads)).unwrap();
                check(Compute { workers: &workers, progress: &Progress::default(), isa });
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition_however_they_are_cut() {
        with_all(|compute| {
            for order in [1, 17, 96, 200, 289] {
                let x = numbers(order * 141, order);
                let mut whole = SymmetricMatrix::zeros(order);
                whole.add_products(compute, &x, &x).unwrap();
                let mut cut = SymmetricMatrix::zeros(order);
                for part in x.chunks(order * 50) {
                    cut.add_products(compute, part, part).unwrap();
                }
                for row in 0..order {
                    assert_eq!(whole.row(row), cut.row(row));
                    for column in 0..=row {
                        let terms = x.chunks(order).map(|x| f64::from(x[row]) * f64::from(x[column]));
                        let expected: f64 = terms.sum();
                        assert!((f64::from(whole.row(row)[column]) - expected).abs() < 1e-3, "{order} {row} {column}");
                    }
                }
            }
        });
    }

    #[test]
    fn the_factor_multiplies_to_the_matrix() {
        let bits = Mutex::new(Vec::new());
        with_all(|compute| {
            for order in [1, 40, 96, 150, 250] {
                let x = numbers(order * (order + 30), order);
                let mut a = SymmetricMatrix::zeros(order);
                a.add_products(compute, &x, &x).unwrap();
                a.for_each_row(|row, values| values[row] += 5.0);
                let l = a.clone().factor(compute).unwrap().unwrap();
                for row in 0..order {
                    for column in 0..=row {
                        let product: f64 =
                            (row..order).map(|m| f64::from(l.row(m)[row]) * f64::from(l.row(m)[column])).sum();
                        let expected = f64::from(a.row(row)[column]);
                        let scale = f64::from(a.row(row)[row]) + f64::from(a.row(column)[column]);
                        assert!((product - expected).abs() < 2e-6 * scale, "{order} {row} {column}");
                    }
                }
                bits.lock().unwrap().push((order, l.row(order - 1).to_vec(), l.row(order / 2).to_vec()));
            }
        });
        let bits = bits.into_inner().unwrap();
        for found in &bits {
            assert!(bits.iter().filter(|other| other.0 == found.0).all(|other| other == found), "{}", found.0);
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_factor() {
        with_all(|compute| {
            let mut a = SymmetricMatrix::zeros(130);
            a.for_each_row(|row, values| values[row] = if row == 20 { -1.0 } else { 1.0 });
            assert!(a.factor(compute).unwrap().is_none());
        });
    }
}
