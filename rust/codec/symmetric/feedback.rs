//! Symmetric integers with error feedback: see [`crate::codec::feedback`].
//!
//! The search of [`search`](super::search) gives the starting scale. The group is coded with feedback, its scale is moved
//! by the least-squares change for these codes (closed form), rounded to a stored value, and the group is coded again. The
//! least error wins. A scale for a whole row is that of the search: its codes alone have feedback.

use super::search::{Codes, scale_of};
use super::{Grouping, SymmetricCodec, pack, params};
use crate::band::append;
use crate::codec::affine::grid::group;
use crate::codec::feedback::feed::{CodeGrid, Run, bytes, entered, finish};
use crate::codec::feedback::{Fed, FedBand, Feedback, FeedbackTarget, Group, put_values};
use crate::codec::{Effort, Scheme};
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// Columns of a row with one scale that are coded together.
const ROW_COLUMNS: usize = 32;

/// How often the scale of a group is corrected.
const CORRECTIONS: usize = 2;

/// A stored scale of each row.
#[derive(Clone, Copy)]
struct StoredScale<V> {
    scale: V,
    codes: Codes<V>,
}

impl<V: Simd> StoredScale<V> {
    #[inline(always)]
    fn new(scale: V, half: u8) -> Self {
        Self { scale, codes: Codes::new(scale, half) }
    }
}

impl<V: Simd> CodeGrid<V> for StoredScale<V> {
    #[inline(always)]
    fn code(&self, w: V) -> V {
        self.codes.of(w).1
    }

    #[inline(always)]
    fn decode(&self, code: V) -> V {
        code.mul(self.scale)
    }
}

kernel! {
    /// The scale that the search finds for the columns `w`.
    fn searched_scale<V: Simd in W: Batch>(w: &[Column], k: &[f32], grid: super::Grid) -> Column {
        scale_of::<V, W>(w, k, grid).store()
    }
}

kernel! {
    /// Encodes a group of each row of a band. Writes the codes, and the scales unless they are `given`.
    fn encode_group<V: Simd in W: Batch, const G: usize>(
        of: &Group<'_>, grid: super::Grid, given: bool, scale: &mut Column, codes: &mut [[u8; BAND_ROWS]],
    ) -> Fed {
        let (w, factor, half) = (group::<G, Column>(of.w, 0), of.factor, grid.half);
        let entered = entered::<V, G>(w, of.sums, factor);
        let mut best = V::load(*scale);
        let zero = V::splat(0.0);
        if !given {
            best = scale_of::<V, W>(&entered, &factor.importance, grid);
        }
        let mut tried = StoredScale::new(best, half);
        let mut run = Run::<V, G>::new(&entered, &tried, factor);
        let (mut least, mut found) = (run.loss(0), run.codes);
        for _ in 0..if given { 0 } else { CORRECTIONS } {
            let sums = run.sums(factor);
            let change = sums.error_codes.div(sums.codes_square).select(zero.lt(sums.codes_square), zero);
            let moved = tried.scale.add(change).round_to(grid.store);
            // A scale that changes its sign, or is too small to divide by, is no correction.
            let is_valid = V::splat(1.0).div(moved).abs().lt(V::splat(f32::INFINITY));
            let moved = moved.select(is_valid, tried.scale);
            tried = StoredScale::new(moved.select(zero.lt(moved.mul(tried.scale)), tried.scale), half);
            run = Run::new(&entered, &tried, factor);
            let loss = run.loss(0);
            let is_better = loss.lt(least);
            least = loss.select(is_better, least);
            best = tried.scale.select(is_better, best);
            for (found, code) in found.iter_mut().zip(run.codes) {
                *found = code.select(is_better, *found);
            }
        }
        let mut shifted = found;
        for code in &mut shifted {
            *code = code.add(V::splat(f32::from(half)));
        }
        codes.copy_from_slice(&bytes::<V, G>(&shifted));
        *scale = best.store();
        finish(least, (w, &found), &StoredScale::new(best, half))
    }
}

impl Feedback for SymmetricCodec {
    fn group(&self, scheme: Scheme) -> usize {
        match params(scheme).grouping {
            Grouping::Channel => ROW_COLUMNS,
            Grouping::Group(size) => usize::from(size),
        }
    }

    fn encode_group(
        &self,
        scheme: Scheme,
        target: FeedbackTarget,
        of: &Group<'_>,
        at: usize,
        out: &mut FedBand,
    ) -> Fed {
        let (size, scheme) = (self.group(scheme), params(scheme));
        let is_row = scheme.grouping == Grouping::Channel;
        let grid = scheme.grid(of.row.len(), Effort::High, target.float);
        let groups = if is_row { 1 } else { of.row.len() / size };
        let place = if is_row { 0 } else { at };
        let mut scale = match at {
            0 if is_row => searched_scale(target.isa, of.row, of.importance, grid),
            _ if is_row => std::array::from_fn(|row| out.scales[row]),
            _ => [0.0; BAND_ROWS],
        };
        let mut codes = vec![[0; BAND_ROWS]; size];
        let fed = match size {
            32 => encode_group::<32>(target.isa, of, grid, is_row, &mut scale, &mut codes),
            64 => encode_group::<64>(target.isa, of, grid, is_row, &mut scale, &mut codes),
            _ => encode_group::<128>(target.isa, of, grid, is_row, &mut scale, &mut codes),
        };
        out.put_codes(at * size, &codes);
        put_values(&mut out.scales, (place, groups), scale);
        fed
    }

    fn store(&self, scheme: Scheme, target: FeedbackTarget, rows: usize, band: &FedBand, parts: &mut [Vec<u8>]) {
        let share = |all: usize| all / BAND_ROWS * rows;
        pack::pack(target.isa, params(scheme).bits, &band.codes[..share(band.codes.len())], &mut parts[0]);
        append(target.isa, target.float, &band.scales[..share(band.scales.len())], &mut parts[1]);
    }
}
