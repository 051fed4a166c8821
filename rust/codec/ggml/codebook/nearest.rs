//! The vectors of a codebook with the least weighted error.
//!
//! For a scale `a`, weights `x` with the importance `k`, and magnitudes `q` the error is `Σ k (x − a q)² = Σ k x² − 2 a G` with
//!
//! ```text
//! G = Σ k q (x − ½ a q)
//! ```
//!
//! so the nearest vector is that with the greatest `G`, its *gain*. The sum is one over the elements of both halves, of which a
//! codebook has 64 or 81 each: with these computed, a vector costs one comparison.
//!
//! Several vectors are compared at once: what the next comparison needs is then not the result of the one before.

use super::book::Row;
use super::{CodebookBlock, EIGHT};
use crate::simd::batch::Batch;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// Vectors that are compared at once.
pub(super) const AT_ONCE: usize = 4;

/// More than there are halves; a power of two, so that the compiler needs no bounds.
const HALVES: usize = 128;

/// The most magnitudes of a type, and pairs of them of a type with eight dimensions.
const MAX_MAGNITUDES: usize = 8;
const MAX_PAIRS: usize = 9;

/// Weights to find the nearest vector for.
#[derive(Clone, Copy)]
pub(super) struct WeightVector<'a, W> {
    pub weights: &'a [Column],
    pub importance: &'a [f32],
    pub scale: W,
}

/// The gains of the halves of vectors.
pub(super) struct Gains<W> {
    firsts: [[W; AT_ONCE]; HALVES],
    seconds: [[W; AT_ONCE]; HALVES],
}

/// The gains of the magnitudes of one weight.
#[inline(always)]
fn of_weight<B: CodebookBlock, W: Batch>(x: &Column, k: f32, step: W) -> [W; MAX_MAGNITUDES] {
    let x = W::broadcast(*x);
    let mut gains = [step; MAX_MAGNITUDES];
    for (gain, &magnitude) in gains.iter_mut().zip(B::MAGNITUDES) {
        *gain = x.sub(step.mul(W::splat(magnitude))).mul(W::splat(k * magnitude));
    }
    gains
}

/// The gains of all halves of the vector at position `at`.
#[inline(always)]
fn fill<B: CodebookBlock, W: Batch>((x, k): (&[Column], &[f32]), step: W, at: usize, out: &mut [[W; AT_ONCE]; HALVES]) {
    let base = B::MAGNITUDES.len();
    let (low, high) = (of_weight::<B, W>(&x[0], k[0], step), of_weight::<B, W>(&x[1], k[1], step));
    if B::DIMENSIONS == 4 {
        for (digit, high) in high[..base].iter().enumerate() {
            for (other, low) in low[..base].iter().enumerate() {
                out[(digit * base + other) % HALVES][at] = low.add(*high);
            }
        }
        return;
    }
    let mut pairs = [[step; MAX_PAIRS]; 2];
    for (pairs, (x, k)) in pairs.iter_mut().zip(x.chunks_exact(2).zip(k.chunks_exact(2))) {
        let (low, high) = (of_weight::<B, W>(&x[0], k[0], step), of_weight::<B, W>(&x[1], k[1], step));
        for (digit, high) in high[..base].iter().enumerate() {
            for (other, low) in low[..base].iter().enumerate() {
                pairs[(digit * base + other) % MAX_PAIRS] = low.add(*high);
            }
        }
    }
    let [low, high] = pairs;
    for (digit, high) in high[..base * base].iter().enumerate() {
        for (other, low) in low[..base * base].iter().enumerate() {
            out[(digit * base * base + other) % HALVES][at] = low.add(*high);
        }
    }
}

impl<W: Batch> Gains<W> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { firsts: [[W::splat(0.0); AT_ONCE]; HALVES], seconds: [[W::splat(0.0); AT_ONCE]; HALVES] }
    }

    #[inline(always)]
    fn take<B: CodebookBlock>(&mut self, vectors: &[WeightVector<'_, W>; AT_ONCE]) {
        let half = B::DIMENSIONS / 2;
        for (at, of) in vectors.iter().enumerate() {
            let (x, k, step) = (of.weights, of.importance, of.scale.mul(W::splat(0.5)));
            fill::<B, W>((&x[..half], &k[..half]), step, at, &mut self.firsts);
            fill::<B, W>((&x[half..], &k[half..]), step, at, &mut self.seconds);
        }
    }

    /// The gains of the nearest vectors with the second half at position `at`, of which `row` has all.
    #[inline(always)]
    fn of_row<B: CodebookBlock>(&self, at: usize, row: Row) -> [W; AT_ONCE] {
        let mut most = [W::splat(f32::NEG_INFINITY); AT_ONCE];
        for &first in row.firsts {
            let gains = &self.firsts[usize::from(first) % HALVES];
            for vector in 0..AT_ONCE {
                most[vector] = gains[vector].max(most[vector]);
            }
        }
        let gains = &self.seconds[at % HALVES];
        for vector in 0..AT_ONCE {
            most[vector] = gains[vector].add(most[vector]);
        }
        most
    }

    /// The gains of the nearest vectors.
    #[inline(always)]
    pub(super) fn greatest<B: CodebookBlock>(&mut self, vectors: &[WeightVector<'_, W>; AT_ONCE]) -> [W; AT_ONCE] {
        self.take::<B>(vectors);
        let mut greatest = [W::splat(f32::NEG_INFINITY); AT_ONCE];
        for (at, &row) in B::CODEBOOK.rows.iter().enumerate() {
            let gains = self.of_row::<B>(at, row);
            for vector in 0..AT_ONCE {
                greatest[vector] = gains[vector].max(greatest[vector]);
            }
        }
        greatest
    }
}

impl<V: Simd> Gains<V> {
    /// Writes the magnitudes of the nearest vectors, one after the other.
    #[inline(always)]
    pub(super) fn assign<B: CodebookBlock>(&mut self, vectors: &[WeightVector<'_, V>; AT_ONCE], out: &mut [Column]) {
        self.take::<B>(vectors);
        let (mut greatest, mut seconds) = ([V::splat(f32::NEG_INFINITY); AT_ONCE], [V::splat(0.0); AT_ONCE]);
        for (at, &row) in B::CODEBOOK.rows.iter().enumerate() {
            let gains = self.of_row::<B>(at, row);
            for vector in 0..AT_ONCE {
                let is_more = greatest[vector].lt(gains[vector]);
                greatest[vector] = gains[vector].select(is_more, greatest[vector]);
                seconds[vector] = V::splat(at as f32).select(is_more, seconds[vector]);
            }
        }
        let mut firsts = [[0.0; BAND_ROWS]; HALVES];
        for (vector, out) in out.chunks_exact_mut(B::DIMENSIONS).enumerate() {
            for (stored, first) in firsts.iter_mut().zip(&self.firsts[..B::CODEBOOK.rows.len()]) {
                *stored = first[vector % AT_ONCE].store();
            }
            for (row, second) in seconds[vector % AT_ONCE].to_bytes().into_iter().enumerate() {
                let first = nearest_of(&firsts, row, B::CODEBOOK.rows[usize::from(second)]);
                put::<B>([first, second], row, out);
            }
        }
    }
}

/// The first half with the greatest gain.
#[inline(always)]
fn nearest_of(firsts: &[Column; HALVES], row: usize, of: Row) -> u8 {
    let (mut most, mut found) = (f32::NEG_INFINITY, of.firsts.first().copied().unwrap_or_default());
    for &first in of.firsts {
        let gain = firsts[usize::from(first) % HALVES][row % BAND_ROWS];
        if most < gain {
            (most, found) = (gain, first);
        }
    }
    found
}

/// Writes the magnitudes of a vector to a row of its columns.
#[inline(always)]
fn put<B: CodebookBlock>(halves: [u8; 2], row: usize, out: &mut [Column]) {
    const { assert!(B::DIMENSIONS <= EIGHT) };
    let base = B::MAGNITUDES.len();
    for (half, out) in halves.into_iter().zip(out.chunks_exact_mut(B::DIMENSIONS / 2)) {
        let mut half = usize::from(half);
        for column in out {
            column[row % BAND_ROWS] = B::MAGNITUDES[half % base];
            half /= base;
        }
    }
}
