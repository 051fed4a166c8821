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
use crate::codec::feedback::feed::{CodeGrid, FeedSums, Run, bytes, entered, finish};
use crate::codec::feedback::{Fed, FedBand, Feedback, FeedbackTarget, Group, GroupFactor, put_values};
use crate::dtype::Float;
use crate::simd::batch::{Batch, MAX_PARTS};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// A correction is rejected if nearly all codes are the same: if the determinant is below this fraction of its first term.
const MIN_DETERMINANT: f32 = 1e-6;

/// A stored grid of each row: scale and bias.
type GridOf<V> = (V, V);

/// Stored grids, ready to code on.
#[derive(Clone, Copy)]
struct StoredGrid<W> {
    scale: W,
    bias: W,
    reciprocal: W,
    max_code: W,
}

impl<W: Batch> StoredGrid<W> {
    /// `grids` in the parts of a register, the last one again where there are fewer.
    #[inline(always)]
    fn new(grids: &[GridOf<W::Part>], max_code: u8) -> Self {
        let [mut scales, mut biases] = [[grids[0].0; MAX_PARTS]; 2];
        for (at, &grid) in grids.iter().enumerate() {
            (scales[at], biases[at]) = grid;
        }
        let scale = W::concat(&scales[..W::PARTS]);
        let reciprocal = W::splat(1.0).div(scale);
        Self { scale, bias: W::concat(&biases[..W::PARTS]), reciprocal, max_code: W::splat(f32::from(max_code)) }
    }

    #[inline(always)]
    fn part(&self, at: usize) -> GridOf<W::Part> {
        (self.scale.extract(at), self.bias.extract(at))
    }
}

impl<W: Batch> CodeGrid<W> for StoredGrid<W> {
    #[inline(always)]
    fn code(&self, w: W) -> W {
        w.sub(self.bias).mul(self.reciprocal).code(self.max_code)
    }

    #[inline(always)]
    fn decode(&self, code: W) -> W {
        code.mul(self.scale).add(self.bias)
    }
}

/// The grid `(scale, bias)` after the least-squares correction for the codes of a run, as stored; itself where there is none.
#[inline(always)]
fn corrected<V: Simd>(sums: &FeedSums<V>, factor: &GroupFactor, (scale, bias): GridOf<V>, store: Float) -> GridOf<V> {
    let (ones, zero) = (V::splat(factor.ones_square), V::splat(0.0));
    let product = sums.codes_square.mul(ones);
    let determinant = product.sub(sums.codes_ones.mul(sums.codes_ones));
    let solvable = V::splat(MIN_DETERMINANT).mul(product).lt(determinant);
    let alpha = sums.error_codes.mul(ones).sub(sums.error_ones.mul(sums.codes_ones)).div(determinant);
    let found = scale.add(alpha.select(solvable, zero)).round_to(store);
    // A scale that changes its sign, or is not finite, is no correction.
    let kept = zero.lt(found.mul(scale));
    let found = found.select(kept, scale);
    let moved = found.sub(scale);
    let beta = sums.error_ones.sub(moved.mul(sums.codes_ones)).div(ones);
    let moved_bias = bias.add(beta).round_to(store);
    let is_finite = moved_bias.abs().lt(V::splat(f32::INFINITY));
    (found, moved_bias.select(is_finite, bias))
}

/// The best coding of a group.
struct Best<V, const G: usize> {
    loss: V,
    grid: GridOf<V>,
    codes: [V; G],
}

impl<V: Simd, const G: usize> Best<V, G> {
    /// The coding on the first of `grids`.
    #[inline(always)]
    fn first<W: Batch<Part = V>>((grid, run): &(StoredGrid<W>, Run<W, G>)) -> Self {
        let mut codes = [V::splat(0.0); G];
        for (code, of_run) in codes.iter_mut().zip(&run.codes) {
            *code = of_run.extract(0);
        }
        Self { loss: run.loss(0), grid: grid.part(0), codes }
    }

    /// Takes the codings of two `rounds` where they have less loss. Of equal losses the first counts, grid by grid.
    #[inline(always)]
    fn take<W: Batch<Part = V>>(&mut self, rounds: &[(StoredGrid<W>, Run<W, G>); 2]) {
        let never = V::splat(0.0).lt(V::splat(0.0));
        let mut masks = [[never; 2]; MAX_PARTS];
        for (at, masks) in masks.iter_mut().enumerate().take(W::PARTS) {
            for (mask, (grid, run)) in masks.iter_mut().zip(rounds) {
                let (loss, (scale, bias)) = (run.loss(at), grid.part(at));
                let is_better = loss.lt(self.loss);
                self.loss = loss.select(is_better, self.loss);
                self.grid = (scale.select(is_better, self.grid.0), bias.select(is_better, self.grid.1));
                *mask = is_better;
            }
        }
        for (column, code) in self.codes.iter_mut().enumerate() {
            for (at, masks) in masks.iter().enumerate().take(W::PARTS) {
                for (&mask, (_, run)) in masks.iter().zip(rounds) {
                    *code = run.codes[column].extract(at).select(mask, *code);
                }
            }
        }
    }
}

kernel! {
    /// Encodes a group of each row of a band. Writes the codes, the scales and the biases.
    fn encode_group<V: Simd in W: Batch, const G: usize>(
        of: &Group<'_>, scheme: Affine, store: Float, codes: &mut [[u8; BAND_ROWS]], grids: &mut [Column; 2],
    ) -> Fed {
        let (w, factor, max_code) = (group::<G, Column>(of.w, 0), of.factor, scheme.max_code());
        let entered = entered::<V, G>(w, of.sums, factor);
        let k = group::<G, f32>(&factor.importance, 0);
        let searched = BestGrid::<V>::search::<W, G>(&entered, k, clips(scheme), max_code, store);
        let mut best = None;
        for starts in searched.starts().chunks_exact(W::PARTS) {
            let grid = StoredGrid::<W>::new(starts, max_code);
            let run = Run::<W, G>::new(&entered, &grid, factor);
            let sums = run.sums(factor);
            let mut moved = [grid.part(0); MAX_PARTS];
            for (at, moved) in moved.iter_mut().enumerate().take(W::PARTS) {
                *moved = corrected(&sums.part(at), factor, grid.part(at), store);
            }
            let moved = StoredGrid::<W>::new(&moved[..W::PARTS], max_code);
            let again = Run::<W, G>::new(&entered, &moved, factor);
            let rounds = [(grid, run), (moved, again)];
            let mut best_so_far = match best {
                Some(best) => best,
                None => Best::first(&rounds[0]),
            };
            best_so_far.take(&rounds);
            best = Some(best_so_far);
        }
        let Some(Best { loss, grid, codes: found }) = best else { unreachable!("there are starts") };
        codes.copy_from_slice(&bytes::<V, G>(&found));
        *grids = [grid.0.store(), grid.1.store()];
        finish(loss, (w, &found), &StoredGrid::<V>::new(&[grid], max_code))
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
