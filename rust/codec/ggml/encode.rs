//! Encodes bands of rows: chooses the stored numbers of each block, assigns its codes, and sums the errors.

use super::block::{BlockFields, MAX_SCALES, MAX_WEIGHTS};
use super::levels::Levels;
use super::linear::{LinearBlock, RuleBlock};
use super::search;
use super::stored::{GroupFits, StoredBlock};
use super::sums::{GroupLine, GroupSums, GroupWeight};
use crate::codec::affine::grid::RowSums;
use crate::codec::{Effort, RowError};
use crate::simd::batch::Batch;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// How often the stored numbers of a block are fitted to the codes that they give.
const ROUNDS: usize = 1;

/// The blocks of the rows of a band, row after row.
#[derive(Default)]
pub(super) struct EncodedBlocks {
    pub blocks: Vec<BlockFields>,
}

/// The numbers of the codes of a block of each row.
enum Coded<'a, V: Simd> {
    /// The nearest on the stored lines.
    Nearest(&'a StoredBlock<V>),
    /// Those of a rule, where the mask says so.
    Rule(&'a StoredBlock<V>, &'a RuleBlock<V>, V::Mask),
}

impl<V: Simd> Coded<'_, V> {
    /// The errors of the block. Writes its fields to `out`, whose rows have `blocks` blocks, at position `at`.
    #[inline(always)]
    fn finish<B: LinearBlock>(
        &self,
        (w, k): (&[Column], &[f32]),
        mut out: Option<&mut EncodedBlocks>,
        (at, blocks): (usize, usize),
    ) -> (V, V) {
        let (mut weighted, mut plain) = (V::splat(0.0), V::splat(0.0));
        for (group, (w, k)) in w.chunks_exact(B::GROUP).zip(k.chunks_exact(B::GROUP)).enumerate() {
            let line = match self {
                Self::Nearest(stored) => stored.line(group),
                Self::Rule(stored, rule, mask) => rule.line.select(*mask, stored.line(group)),
            };
            let reciprocal = line.reciprocal();
            for (eight, (w, k)) in w.chunks_exact(BAND_ROWS).zip(k.chunks_exact(BAND_ROWS)).enumerate() {
                let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
                for column in 0..BAND_ROWS {
                    let w = V::load(w[column]);
                    let (mut q, mut off) = line.code::<B::Levels>(reciprocal, w);
                    if let Self::Rule(_, rule, mask) = self {
                        q = rule.numbers[eight * BAND_ROWS + column].select(*mask, q);
                        off = q.mul(line.scale).sub(line.min).sub(w);
                    }
                    let square = off.mul(off);
                    weighted = weighted.add(V::splat(k[column]).mul(square));
                    plain = plain.add(square);
                    columns[column] = B::Levels::code(q).to_bytes();
                }
                if let Some(out) = &mut out {
                    let first = group * B::GROUP + eight * BAND_ROWS;
                    for (row, codes) in V::transpose_u8(columns).into_iter().enumerate() {
                        out.blocks[row * blocks + at].codes[first..][..BAND_ROWS].copy_from_slice(&codes);
                    }
                }
            }
        }
        if let Some(out) = out {
            self.put(out, (at, blocks));
        }
        (weighted, plain)
    }

    /// Writes all but the codes.
    #[inline(always)]
    fn put(&self, out: &mut EncodedBlocks, (at, blocks): (usize, usize)) {
        let (mut stored, line) = match self {
            Self::Nearest(stored) => (**stored, None),
            Self::Rule(stored, rule, mask) => (**stored, Some((rule.line, *mask))),
        };
        if let Some((line, mask)) = line {
            stored.d = line.scale.select(mask, stored.d);
            stored.dmin = line.min.select(mask, stored.dmin);
        }
        let (d, dmin) = (stored.d.store(), stored.dmin.store());
        let fields = |row: usize| row * blocks + at;
        for row in 0..BAND_ROWS {
            (out.blocks[fields(row)].d, out.blocks[fields(row)].dmin) = (d[row], dmin[row]);
        }
        for group in 0..MAX_SCALES {
            let (scales, mins) = (stored.scales[group].store(), stored.mins[group].to_bytes());
            for row in 0..BAND_ROWS {
                let block = &mut out.blocks[fields(row)];
                (block.scales[group], block.mins[group]) = (scales[row] as i8, mins[row]);
            }
        }
    }
}

impl<V: Simd> RuleBlock<V> {
    /// The weighted error.
    #[inline(always)]
    fn error(&self, w: &[Column], k: &[f32]) -> V {
        let mut error = V::splat(0.0);
        for ((&w, &k), q) in w.iter().zip(k).zip(self.numbers) {
            let off = q.mul(self.line.scale).sub(self.line.min).sub(V::load(w));
            error = error.add(V::splat(k).mul(off.mul(off)));
        }
        error
    }

    /// The block that stores its line.
    #[inline(always)]
    fn stored(&self) -> StoredBlock<V> {
        let one = V::splat(1.0);
        let GroupLine { scale, min } = self.line;
        StoredBlock { d: scale, dmin: min, scales: [one; MAX_SCALES], mins: [one; MAX_SCALES] }
    }
}

/// The lines of the groups of a block: of the first start, or of the best.
#[inline(always)]
fn lines<V: Simd, W: Batch<Part = V>, B: LinearBlock, const MINIMA: bool>(
    (w, k): (&[Column], &[f32]),
    weights: &[GroupWeight; MAX_SCALES],
    search: bool,
) -> GroupFits<V> {
    let zero = V::splat(0.0);
    let mut fits =
        GroupFits { lines: [GroupLine { scale: zero, min: zero }; MAX_SCALES], sums: [GroupSums::zero(); MAX_SCALES] };
    for (at, (w, k)) in w.chunks_exact(B::GROUP).zip(k.chunks_exact(B::GROUP)).enumerate() {
        (fits.lines[at], fits.sums[at]) = if search {
            search::best::<V, W, B, MINIMA>(w, k, weights[at])
        } else {
            search::first::<V, B, MINIMA>(w, k, weights[at])
        };
    }
    fits
}

/// Encodes a block of each row.
#[inline(always)]
fn encode_block<V: Simd, W: Batch<Part = V>, B: LinearBlock, const MINIMA: bool>(
    (w, k): (&[Column], &[f32]),
    effort: Effort,
    out: Option<&mut EncodedBlocks>,
    place: (usize, usize),
) -> (V, V) {
    let rule = B::rule::<V>(w);
    if let (Effort::Fast, Some(rule)) = (effort, &rule) {
        let stored = rule.stored();
        let zero = V::splat(0.0);
        return Coded::Rule(&stored, rule, zero.lt(V::splat(1.0))).finish::<B>((w, k), out, place);
    }
    let mut weights = [GroupWeight { sum: 0.0, reciprocal: 0.0 }; MAX_SCALES];
    for (weight, k) in weights.iter_mut().zip(k.chunks_exact(B::GROUP)) {
        *weight = GroupWeight::new(k);
    }
    let quick = match &rule {
        Some(rule) => rule.stored(),
        None => lines::<V, W, B, MINIMA>((w, k), &weights, false).round::<B, MINIMA>(&weights),
    };
    if effort == Effort::Fast {
        return Coded::Nearest(&quick).finish::<B>((w, k), out, place);
    }
    let (mut best, mut least) = (quick, quick.measure::<B, MINIMA>(w, k).0);
    let mut tried = lines::<V, W, B, MINIMA>((w, k), &weights, true).choose::<B, MINIMA>(&weights);
    for round in 0..=ROUNDS {
        let (error, fits) = tried.measure::<B, MINIMA>(w, k);
        let is_better = error.lt(least);
        best = tried.select(is_better, &best);
        least = error.select(is_better, least);
        if round < ROUNDS {
            tried = fits.improve::<B, MINIMA>(&tried, &weights);
        }
    }
    match &rule {
        Some(rule) => {
            let by_rule = rule.error(w, k).lt(least);
            Coded::Rule(&best, rule, by_rule).finish::<B>((w, k), out, place)
        }
        None => Coded::Nearest(&best).finish::<B>((w, k), out, place),
    }
}

/// Encodes a band, and returns the errors of its rows. Writes the blocks to `out`, if any.
///
/// `k` weighs the columns; none may be negative.
#[inline(always)]
pub(super) fn encode<V: Simd, W: Batch<Part = V>, B: LinearBlock, const MINIMA: bool>(
    band: &[Column],
    k: &[f32],
    effort: Effort,
    mut out: Option<&mut EncodedBlocks>,
) -> [RowError; BAND_ROWS] {
    const { assert!(B::SIZE.0 <= MAX_WEIGHTS && MINIMA == B::MINIMA) };
    let blocks = band.len() / B::SIZE.0;
    let mut sums = RowSums::ZERO;
    for (at, block) in band.chunks_exact(B::SIZE.0).zip(k.chunks_exact(B::SIZE.0)).enumerate() {
        sums.add(encode_block::<V, W, B, MINIMA>(block, effort, out.as_deref_mut(), (at, blocks)));
    }
    sums.rows()
}
