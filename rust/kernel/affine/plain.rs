//! MLX's own rule, bit for bit that of `mx.quantize` on a CPU: the grid is anchored at the group's element of largest
//! magnitude, and stretched so that zero lies on it.

use super::{Codes, MAX_SCHEMES, RowError, RowSums, Rows, group, group_errors, range};
use crate::dtype::Float;
use crate::kernel::kernel;
use crate::kernel::vector::{BYTES, Element, Lane, ROWS, Vector};

/// The least scale the plain rule gives (MLX's constant).
const PLAIN_EPSILON: f32 = 1e-7;

/// Schemes whose errors are summed side by side: as many as the registers hold.
const SIDE_BY_SIDE: usize = 3;

/// Magnitudes of scales from which on a quotient is taken by division. (Those of the plain rule are above 2^−60.)
const ORDINARY: f32 = 1.0e18;

/// The plain rule's grids for `N` code widths of the same group of each row.
#[derive(Clone, Copy)]
pub(super) struct Plain<V: Vector, const N: usize> {
    /// The element of largest magnitude.
    edge: V,
    /// Grids as codes are taken by them, unrounded.
    scale: [V; N],
    bias: [V; N],
    /// And as they are stored.
    pub(super) stored: [(V, V); N],
    divisor: [V::Divisor; N],
    max_code: [V; N],
    /// Whether all grids begin at the edge, and their scales are such that [`Vector::quotient`] may stand for a division.
    is_ordinary: bool,
}

impl<V: Vector, const N: usize> Plain<V, N> {
    #[inline(always)]
    pub(super) fn new((low, high): (V, V), max_codes: &[u8; N], store: Float) -> Self {
        let zero = V::splat(0.0);
        let from_low = high.abs().less(low.abs());
        let (edge, width) = (low.where_or(from_low, high), high.sub(low));
        let mut new = Self {
            edge,
            scale: [zero; N],
            bias: [zero; N],
            stored: [(zero, zero); N],
            divisor: [zero.divisor(); N],
            max_code: [zero; N],
            is_ordinary: true,
        };
        for (at, &max_code) in max_codes.iter().enumerate() {
            let max_code = V::splat(f32::from(max_code));
            let step = width.div(max_code).max(V::splat(PLAIN_EPSILON));
            let step = step.where_or(from_low, zero.sub(step));
            // Codes from the edge to zero: a whole number of them puts zero on the grid.
            let to_zero = edge.div(step).nearest_integer();
            let anchored = zero.less(to_zero.abs());
            let scale = edge.div(to_zero).where_or(anchored, step);
            let bias = edge.where_or(anchored, zero);
            new.is_ordinary &= V::all(anchored) && V::all(scale.abs().less(V::splat(ORDINARY)));
            new.scale[at] = scale;
            new.bias[at] = bias;
            new.stored[at] = (scale.nearest(store), bias.nearest(store));
            new.divisor[at] = scale.divisor();
            new.max_code[at] = max_code;
        }
        new
    }

    /// Codes of `w` on grid `at`, by division.
    #[inline(always)]
    pub(super) fn code(&self, at: usize, w: V) -> V {
        w.sub(self.bias[at]).div(self.scale[at]).code(self.max_code[at])
    }

    /// As [`code`](Self::code), of ordinary grids. The distance from the edge has the sign of the scale, or is 0: no code is
    /// negative.
    #[inline(always)]
    fn ordinary_code(&self, at: usize, w: V) -> V {
        w.sub(self.edge).quotient(self.divisor[at]).capped_code(self.max_code[at])
    }

    /// The errors of `M` of the grids, from `first` on.
    #[inline(always)]
    pub(super) fn errors<const G: usize, const M: usize>(
        &self,
        first: usize,
        w: &[Lane; G],
        k: &[f32; G],
    ) -> [(V, V); M] {
        let mut stored = *self.stored[first..].first_chunk().expect("as many grids");
        if !self.is_ordinary {
            return group_errors(w, k, stored, &PlainCodes::<_, N, G, false> { plain: self, first, w });
        }
        // They all begin at the edge: one register will do.
        let (_, edge) = stored[0];
        for (_, bias) in &mut stored {
            *bias = edge;
        }
        group_errors(w, k, stored, &PlainCodes::<_, N, G, true> { plain: self, first, w })
    }
}

/// Codes as `mx.quantize` takes them by division, on grids from `first` on, which are all ordinary if it says so.
struct PlainCodes<'a, V: Vector, const N: usize, const G: usize, const ORDINARY: bool> {
    plain: &'a Plain<V, N>,
    first: usize,
    w: &'a [Lane; G],
}

impl<V: Vector, const N: usize, const G: usize, const M: usize, const ORDINARY: bool> Codes<V, M>
    for PlainCodes<'_, V, N, G, ORDINARY>
{
    #[inline(always)]
    fn of(&self, column: usize) -> [V; M] {
        let mut codes = [V::load(self.w[column]); M];
        for (at, codes) in (self.first..).zip(&mut codes) {
            *codes = if ORDINARY { self.plain.ordinary_code(at, *codes) } else { self.plain.code(at, *codes) };
        }
        codes
    }
}

/// The least and the greatest element of a group of one row, each in some lane.
#[inline(always)]
fn range_of_row<V: Vector, T: Element, const G: usize>(w: &[T; G]) -> (V, V) {
    let chunks = w.as_chunks::<BYTES>().0;
    let first = T::widened::<V>(&chunks[0]);
    let mut range = (first[0], first[0]);
    for chunk in chunks {
        for w in T::widened::<V>(chunk) {
            range = (w.min(range.0), w.max(range.1));
        }
    }
    range
}

kernel! {
    /// MLX's rule: see the [module](self).
    ///
    /// `source` holds whole groups, row after row, and `out` has room for them: eight groups at a time, whatever row they
    /// are of. (Codes need no sums, so nothing asks for a row a lane; and eight rows a power of two apart fight for the same
    /// lines of the cache.)
    pub fn encode_plain<V: Vector, const G: usize; T: Element>(
        source: &[T], max_code: u8, store: Float, out: &mut Rows<'_>,
    ) {
        let (zero, max) = (V::splat(0.0), V::splat(f32::from(max_code)));
        let groups = source.as_chunks::<G>().0;
        for (at, groups) in groups.chunks(ROWS).enumerate() {
            let [mut low, mut high] = [[zero; ROWS]; 2];
            for (at, w) in groups.iter().enumerate() {
                (low[at], high[at]) = range_of_row(w);
            }
            let grid = Plain::<V, 1>::new((V::least(low), V::greatest(high)), &[max_code], store);
            let [(scales, biases)] = grid.stored;
            let (first, count) = (at * ROWS, groups.len());
            out.scales[first..][..count].copy_from_slice(&scales.store()[..count]);
            out.biases[first..][..count].copy_from_slice(&biases.store()[..count]);

            let (edge, divisors) = (grid.edge.store(), grid.scale[0].divisors());
            let (scale, bias) = (grid.scale[0].store(), grid.bias[0].store());
            let codes = out.codes[first * G..][..count * G].as_chunks_mut::<G>().0;
            for (at, (codes, w)) in codes.iter_mut().zip(groups).enumerate() {
                for (codes, w) in codes.as_chunks_mut::<BYTES>().0.iter_mut().zip(w.as_chunks::<BYTES>().0) {
                    let mut steps = T::widened::<V>(w);
                    for steps in &mut steps {
                        *steps = if grid.is_ordinary {
                            steps.sub(V::splat(edge[at])).quotient(divisors[at]).min(max)
                        } else {
                            steps.sub(V::splat(bias[at])).div(V::splat(scale[at])).clamp(max)
                        };
                    }
                    *codes = V::nearest_bytes(steps);
                }
            }
        }
    }
}

/// Adds the errors of a group by the plain rule with `N` code widths, `M` of them side by side.
#[inline(always)]
fn add_plain<V: Vector, const G: usize, const N: usize, const M: usize>(
    (w, k): (&[Lane; G], &[f32; G]),
    range: (V, V),
    max_codes: &[u8; N],
    store: Float,
    sums: &mut [RowSums],
) {
    let plain = Plain::<V, N>::new(range, max_codes, store);
    for first in (0..N).step_by(M) {
        let errors: [(V, V); M] = plain.errors(first, w, k);
        for at in 0..M {
            sums[first + at].add(errors[at]);
        }
    }
}

kernel! {
    /// The errors of [`encode_plain`] with each of `max_codes`: those of what it would store, without storing it.
    pub fn plain_errors<V: Vector, const G: usize>(
        band: &[Lane], k: &[f32], max_codes: &[u8], store: Float, out: &mut [[RowError; ROWS]],
    ) {
        let mut sums = [RowSums::NONE; MAX_SCHEMES];
        for at in 0..band.len() / G {
            let group = (group::<G, _>(band, at), group::<G, f32>(k, at));
            let range = range::<V, G>(group.0);
            if let Ok(all) = max_codes.try_into() {
                add_plain::<V, G, MAX_SCHEMES, SIDE_BY_SIDE>(group, range, all, store, &mut sums);
            } else {
                for (max_code, sums) in max_codes.iter().zip(&mut sums) {
                    add_plain::<V, G, 1, 1>(group, range, &[*max_code], store, std::slice::from_mut(sums));
                }
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.rows());
    }
}
