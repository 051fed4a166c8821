//! Affine codes with error feedback: see [`crate::codec::feedback`].
//!
//! The search of [`search`](super::search) gives the starting grids, for the group's weights with the errors of earlier groups
//! spread over them and the importance of the factor. Each is coded with feedback, moved by the least-squares change of
//! its scale and bias for these codes (2 × 2, closed form), rounded to stored values (the bias once more, for the rounded
//! scale), and coded again. The least error wins.

use super::encoder::clips;
use super::grid::group;
use super::search::BestGrid;
use super::{Affine, AffineCodec, pack, params};
use crate::band::append;
use crate::codec::Scheme;
use crate::codec::feedback::feed::{CodeGrid, Feed, bytes};
use crate::codec::feedback::{Fed, FedBand, Feedback, FeedbackTarget, Group, GroupFactor, put_values};
use crate::dtype::Float;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// A correction is rejected if nearly all codes are the same: if the determinant is below this fraction of its first term.
const MIN_DETERMINANT: f32 = 1e-6;

/// A stored grid of each row.
#[derive(Clone, Copy)]
struct StoredGrid<V> {
    scale: V,
    bias: V,
    reciprocal: V,
    max_code: V,
}

impl<V: Simd> StoredGrid<V> {
    #[inline(always)]
    fn new((scale, bias): (V, V), max_code: u8) -> Self {
        let reciprocal = V::splat(1.0).div(scale);
        Self { scale, bias, reciprocal, max_code: V::splat(f32::from(max_code)) }
    }
}

impl<V: Simd> CodeGrid<V> for StoredGrid<V> {
    #[inline(always)]
    fn code(&self, w: V) -> V {
        w.sub(self.bias).mul(self.reciprocal).code(self.max_code)
    }

    #[inline(always)]
    fn decode(&self, code: V) -> V {
        code.mul(self.scale).add(self.bias)
    }
}

/// `grid` after the least-squares correction for the codes of the last run, as stored; itself where there is none.
#[inline(always)]
fn corrected<V: Simd, const G: usize>(
    feed: &Feed<V, G>,
    factor: &GroupFactor,
    grid: StoredGrid<V>,
    store: Float,
) -> (V, V) {
    let sums = feed.sums(factor);
    let (ones, zero) = (V::splat(factor.ones_square), V::splat(0.0));
    let product = sums.codes_square.mul(ones);
    let determinant = product.sub(sums.codes_ones.mul(sums.codes_ones));
    let solvable = V::splat(MIN_DETERMINANT).mul(product).lt(determinant);
    let alpha = sums.error_codes.mul(ones).sub(sums.error_ones.mul(sums.codes_ones)).div(determinant);
    let scale = grid.scale.add(alpha.select(solvable, zero)).round_to(store);
    // A scale that changes its sign, or is not finite, is no correction.
    let kept = zero.lt(scale.mul(grid.scale));
    let scale = scale.select(kept, grid.scale);
    let moved = scale.sub(grid.scale);
    let beta = sums.error_ones.sub(moved.mul(sums.codes_ones)).div(ones);
    let bias = grid.bias.add(beta).round_to(store);
    let is_finite = bias.abs().lt(V::splat(f32::INFINITY));
    (scale, bias.select(is_finite, grid.bias))
}

kernel! {
    /// Encodes a group of each row of a band. Writes the codes, the scales and the biases.
    fn encode_group<V: Simd in W: Batch, const G: usize>(
        of: &Group<'_>, scheme: Affine, store: Float, codes: &mut [[u8; BAND_ROWS]], grids: &mut [Column; 2],
    ) -> Fed {
        let (w, factor, max_code) = (group::<G, Column>(of.w, 0), of.factor, scheme.max_code());
        let mut feed = Feed::<V, G>::enter(w, of.sums, factor);
        let k = group::<G, f32>(&factor.importance, 0);
        let searched = BestGrid::<V>::search::<W, G>(&feed.entered_columns(), k, clips(scheme), max_code, store);
        let mut best = searched.stored();
        let mut least = V::splat(f32::INFINITY);
        for start in searched.starts() {
            let mut grid = StoredGrid::new(start, max_code);
            for round in 0..2 {
                if round > 0 {
                    grid = StoredGrid::new(corrected(&feed, factor, grid, store), max_code);
                }
                let loss = feed.run(&grid, factor);
                let is_better = loss.lt(least);
                least = loss.select(is_better, least);
                best = (grid.scale.select(is_better, best.0), grid.bias.select(is_better, best.1));
            }
        }
        let grid = StoredGrid::new(best, max_code);
        let loss = feed.run(&grid, factor);
        codes.copy_from_slice(&bytes::<V, G>(&feed.codes));
        *grids = [best.0.store(), best.1.store()];
        feed.finish(loss, w, &grid)
    }
}

impl Feedback for AffineCodec {
    fn group(&self, scheme: Scheme) -> usize {
        params(scheme).group_size()
    }

    fn encode_group(
        &self,
        scheme: Scheme,
        target: FeedbackTarget,
        of: &Group<'_>,
        at: usize,
        out: &mut FedBand,
    ) -> Fed {
        let (scheme, FeedbackTarget { isa, float }) = (params(scheme), target);
        let (size, groups) = (scheme.group_size(), of.row.len() / scheme.group_size());
        let mut codes = vec![[0; BAND_ROWS]; size];
        let mut grids = [[0.0; BAND_ROWS]; 2];
        let fed = match size {
            32 => encode_group::<32>(isa, of, scheme, float, &mut codes, &mut grids),
            64 => encode_group::<64>(isa, of, scheme, float, &mut codes, &mut grids),
            _ => encode_group::<128>(isa, of, scheme, float, &mut codes, &mut grids),
        };
        out.put_codes(at * size, &codes);
        for (values, grid) in [&mut out.scales, &mut out.biases].into_iter().zip(grids) {
            put_values(values, (at, groups), grid);
        }
        fed
    }

    fn store(&self, scheme: Scheme, target: FeedbackTarget, rows: usize, band: &FedBand, parts: &mut [Vec<u8>]) {
        let [codes, scales, biases] = parts else { unreachable!("a matrix has three parts") };
        let FeedbackTarget { isa, float } = target;
        let share = |all: usize| all / BAND_ROWS * rows;
        pack::pack(isa, params(scheme).bits(), &band.codes[..share(band.codes.len())], codes);
        append(isa, float, &band.scales[..share(band.scales.len())], scales);
        append(isa, float, &band.biases[..share(band.biases.len())], biases);
    }
}
