//! Products of matrices that are in memory: within a window, and within a head.
//!
//! All row by row, lengths as the names of the arguments say, and each sum as [`crate::probe::matmul::kernel`] does it.

use crate::probe::matmul::kernel::{
    PANEL, PanelStep, Panels, STEPS, TILE, Tiles, ZERO_SUMS, accumulate_across, accumulate_along, lay_step,
    unpack_across, unpack_along,
};
use crate::simd::Isa;

/// `a · bᵀ`: `a` and `b` have rows of `depth`.
pub(in crate::probe) fn by_rows(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    let (rows, columns) = (a.len() / depth, b.len() / depth);
    let mut y = vec![0.0; rows * columns];
    let x = Panels::pack(a, depth);
    let tiles = columns.div_ceil(TILE);
    let mut sums = vec![ZERO_SUMS; x.groups() * tiles];
    for from in (0..depth).step_by(STEPS) {
        accumulate_along(isa, &b[from..], depth, &x, from, &mut sums);
    }
    unpack_along(&sums, tiles, &mut y, columns);
    y
}

/// `a · b`: `a` has rows of `depth`, and `b` so many rows.
pub(in crate::probe) fn by_columns(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    let (rows, columns) = (a.len() / depth, b.len() / depth);
    let mut y = vec![0.0; rows * columns];
    let x = Tiles::pack(a, depth);
    let mut sums = vec![ZERO_SUMS; x.groups()];
    let mut panel = [PanelStep::default(); STEPS];
    for first in (0..columns).step_by(PANEL) {
        let here = first..(first + PANEL).min(columns);
        sums.fill(ZERO_SUMS);
        for from in (0..depth).step_by(STEPS) {
            let panel = &mut panel[..(depth - from).min(STEPS)];
            for (step, row) in panel.iter_mut().zip(b.chunks_exact(columns).skip(from)) {
                lay_step(step, &row[here.clone()]);
            }
            accumulate_across(isa, &x, from, &[panel], &mut sums);
        }
        unpack_across(&sums, 1, &mut y, columns, &here);
    }
    y
}

/// `aᵀ · b`: both have `depth` rows.
pub(in crate::probe) fn by_both(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    by_columns(isa, &transposed(a, depth), b, depth)
}

/// `a`, of so many rows, with rows and columns changed over.
pub(in crate::probe) fn transposed(a: &[f32], rows: usize) -> Vec<f32> {
    let columns = a.len() / rows;
    let mut out = vec![0.0; a.len()];
    for (row, values) in a.chunks_exact(columns).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            out[column * rows + row] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition_for_any_shape() {
        let numbers = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1_000) as f32 / 500.0 - 1.0).collect()
        };
        for (rows, columns, depth) in [(1, 1, 1), (6, 16, 8), (7, 17, 9), (64, 64, 130), (5, 33, 257)] {
            let (a, b) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
            let mut expected = Vec::new();
            for a in a.chunks(depth) {
                for b in b.chunks(depth) {
                    #[expect(clippy::disallowed_methods, reason = "the definition of the product's sums")]
                    let sum = a.iter().zip(b).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum));
                    expected.push(sum);
                }
            }
            for isa in Isa::available() {
                assert_eq!(by_rows(isa, &a, &b, depth), expected, "{rows} {columns} {depth}");
                assert_eq!(by_columns(isa, &a, &transposed(&b, columns), depth), expected);
                assert_eq!(by_both(isa, &transposed(&a, rows), &transposed(&b, columns), depth), expected);
            }
        }
    }
}
