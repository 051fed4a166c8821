//! Products of matrices in memory, of one window or one head. All matrices are row-major. The order of every sum is that of
//! [`crate::matmul::kernel`].

use crate::matmul::kernel::{
    PANEL, PanelStep, Panels, STEPS, TILE, Tiles, ZERO_SUMS, accumulate_across, accumulate_along, pack_step,
    unpack_across, unpack_along,
};
use crate::simd::Isa;

/// Panels that are processed together.
const PANELS: usize = 2;

/// `a · bᵀ`; the rows of both have `depth` numbers.
#[must_use]
pub fn matmul_nt(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
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

/// `a · b`: `a` has rows of `depth` numbers, and `b` has `depth` rows.
#[must_use]
pub fn matmul_nn(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    let (rows, columns) = (a.len() / depth, b.len() / depth);
    let mut y = vec![0.0; rows * columns];
    let x = Tiles::pack(a, depth);
    let mut sums = Vec::new();
    let mut panels = [[PanelStep::default(); STEPS]; PANELS];
    for first in (0..columns).step_by(PANELS * PANEL) {
        let here = first..(first + PANELS * PANEL).min(columns);
        let count = here.len().div_ceil(PANEL);
        sums.clear();
        sums.resize(x.groups() * count, ZERO_SUMS);
        for from in (0..depth).step_by(STEPS) {
            let steps = (depth - from).min(STEPS);
            for (at, row) in b.chunks_exact(columns).skip(from).take(steps).enumerate() {
                for (panel, part) in panels.iter_mut().zip(row[here.clone()].chunks(PANEL)) {
                    pack_step(&mut panel[at], part);
                }
            }
            let parts: [&[PanelStep]; PANELS] = [&panels[0][..steps], &panels[1][..steps]];
            accumulate_across(isa, &x, from, &parts[..count], &mut sums);
        }
        unpack_across(&sums, count, &mut y, columns, &here);
    }
    y
}

/// `aᵀ · b`; both have `depth` rows.
pub(crate) fn matmul_tn(isa: Isa, a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    matmul_nn(isa, &transposed(a, depth), b, depth)
}

/// `aᵀ`; `a` has `rows` rows.
pub(crate) fn transposed(a: &[f32], rows: usize) -> Vec<f32> {
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
                assert_eq!(matmul_nt(isa, &a, &b, depth), expected, "{rows} {columns} {depth}");
                assert_eq!(matmul_nn(isa, &a, &transposed(&b, columns), depth), expected);
                assert_eq!(matmul_tn(isa, &transposed(&a, rows), &transposed(&b, columns), depth), expected);
            }
        }
    }
}
