//! Softmax attention within windows, forward and back, head by head.
//!
//! `p = softmax(cap(scale · q kᵀ))` over the keys that a query sees, `y = p v`. A sink is one more score of a head in the
//! softmax's sum, without a value. Back: `dv = pᵀ dy`, `dp = dy vᵀ`, `ds = p (dp − Σ p dp)` (times the slope
//! of the cap), `dq = scale · ds k`, `dk = scale · dsᵀ q`.

use std::borrow::Cow;

use super::Session;
use super::activations::Activations;
use crate::arch::rope::RopeTable;
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::matmul::dense::{matmul_nn, matmul_nt, matmul_tn};
use crate::simd::Isa;
use crate::simd::math::{exp_minus, soft_cap};

/// The positions of the windows that are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) windows: usize,
    /// Positions of a window that were computed before.
    pub(super) before: usize,
    /// Positions of a window that are computed now.
    pub(super) now: usize,
}

impl Span {
    /// Number of tokens that are computed.
    pub(super) fn count(self) -> usize {
        self.windows * self.now
    }
}

/// Queries of a window that are processed together, with the keys up to the last of them.
const QUERY_BLOCK: usize = 64;

/// The heads of one layer.
pub(super) struct AttentionHeads {
    pub(super) queries: usize,
    /// Heads of keys and values.
    pub(super) keys: usize,
    pub(super) size: usize,
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
    /// Keys that a query sees, its own included, in a sliding-window layer.
    pub(super) window: Option<usize>,
    /// One score for each head; empty if there are none.
    pub(super) sinks: Vec<f32>,
}

/// The direction in which rotary positions are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotation {
    /// To queries and keys.
    Forward,
    /// To their gradients: by the opposite angles.
    Back,
}

pub(super) struct QkvGradients {
    pub(super) query: Activations,
    pub(super) key: Activations,
    pub(super) value: Activations,
}

/// One window of the query heads that share a key head.
#[derive(Clone, Copy)]
struct HeadGroup {
    window: usize,
    kv_head: usize,
}

/// The keys and values of windows that grow token by token: `[window][head][position]`, with room for whole windows.
#[derive(Default)]
pub(super) struct KeyValueCache {
    /// Positions of a window, those to come included.
    positions: usize,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// The keys and values that queries see.
#[derive(Clone, Copy)]
pub(super) enum HeadKeyValues<'k> {
    /// Those of the positions of a span that begins a window.
    Rows(&'k Activations, &'k Activations),
    Cached(&'k KeyValueCache),
}

/// Softmax of the scores of a [`HeadGroup`], `[query head][query][key]`, and the derivative of the cap at each, if there is
/// a cap.
struct Scores {
    shares: Vec<f32>,
    slopes: Vec<f32>,
}

impl AttentionHeads {
    /// Rotates the heads of `x` by their positions.
    pub(super) fn apply_rope(
        &self,
        pass: Pass<'_>,
        x: &Activations,
        table: &RopeTable,
        span: Span,
        rotation: Rotation,
    ) -> Result<Activations> {
        let tokens = span.count();
        Activations::computed(pass, x.count(), x.width, |row, out| {
            out.copy_from_slice(x.row(row));
            let position = span.before + row % tokens % span.now;
            let at = position * table.pairs..(position + 1) * table.pairs;
            let (cosines, sines) = (&table.cosines[at.clone()], &table.sines[at]);
            for head in out.chunks_exact_mut(self.size) {
                for (pair, (&cosine, &sine)) in cosines.iter().zip(sines).enumerate() {
                    let (a, b) = if table.adjacent { (2 * pair, 2 * pair + 1) } else { (pair, pair + table.pairs) };
                    let sine = if rotation == Rotation::Back { -sine } else { sine };
                    (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[b] * cosine + head[a] * sine);
                }
            }
        })
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.queries / self.keys
    }

    fn groups(&self, windows: usize) -> Vec<HeadGroup> {
        let of = |window| (0..self.keys).map(move |kv_head| HeadGroup { window, kv_head });
        (0..windows).flat_map(of).collect()
    }

    /// The heads `first..first + heads` of the rows `from..from + count`: `[head][row]`.
    fn gather(&self, x: &Activations, (from, count): (usize, usize), (first, heads): (usize, usize)) -> Vec<f32> {
        let mut values = Vec::with_capacity(heads * count * self.size);
        for head in first..first + heads {
            for row in from..from + count {
                values.extend_from_slice(&x.row(row)[head * self.size..(head + 1) * self.size]);
            }
        }
        values
    }

    /// The inverse of [`gather`](Self::gather).
    fn scatter(&self, values: &[f32], x: &mut Activations, (from, count): (usize, usize), first: usize) {
        for (head, values) in values.chunks_exact(count * self.size).enumerate() {
            for (row, values) in values.chunks_exact(self.size).enumerate() {
                let at = (first + head) * self.size;
                x.row_mut(from + row)[at..at + self.size].copy_from_slice(values);
            }
        }
    }

    fn scores(&self, isa: Isa, query: &[f32], key: &[f32], span: Span, first_head: usize) -> Scores {
        let keys = span.before + span.now;
        let mut scores = matmul_nt(isa, query, key, self.size);
        for score in &mut scores {
            *score *= self.scale;
        }
        let mut slopes = Vec::new();
        if let Some(cap) = self.cap {
            soft_cap(isa, &mut scores, cap);
            slopes = scores.iter().map(|score| 1.0 - (score / cap) * (score / cap)).collect();
        }
        for (at, row) in scores.chunks_exact_mut(keys).enumerate() {
            let last = span.before + at % span.now;
            let first = self.window.map_or(0, |window| (last + 1).saturating_sub(window));
            let sink = self.sinks.get(first_head + at / span.now).copied();
            row[..first].fill(0.0);
            row[last + 1..].fill(0.0);
            let seen = &mut row[first..=last];
            let most = seen.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
            exp_minus(isa, seen, most);
            let mut sum: f64 = seen.iter().map(|&share| f64::from(share)).sum();
            if let Some(sink) = sink {
                let mut sink = [sink];
                exp_minus(isa, &mut sink, most);
                sum += f64::from(sink[0]);
            }
            let inverse = (1.0 / sum) as f32;
            for share in seen.iter_mut() {
                *share *= inverse;
            }
        }
        Scores { shares: scores, slopes }
    }

    /// An empty cache for `windows` windows of `positions` tokens.
    pub(super) fn cache(&self, windows: usize, positions: usize) -> KeyValueCache {
        let empty = || vec![0.0; windows * self.keys * positions * self.size];
        KeyValueCache { positions, key: empty(), value: empty() }
    }

    /// Adds the keys and values of the positions of `span` to `cache`.
    pub(super) fn grow(&self, cache: &mut KeyValueCache, key: &Activations, value: &Activations, span: Span) {
        for (all, now) in [(&mut cache.key, key), (&mut cache.value, value)] {
            for (window, heads) in all.chunks_exact_mut(self.keys * cache.positions * self.size).enumerate() {
                for (head, rows) in heads.chunks_exact_mut(cache.positions * self.size).enumerate() {
                    let places = rows.chunks_exact_mut(self.size).skip(span.before);
                    for (place, row) in places.zip(window * span.now..(window + 1) * span.now) {
                        place.copy_from_slice(&now.row(row)[head * self.size..(head + 1) * self.size]);
                    }
                }
            }
        }
    }

    /// The keys and the values of the first `seen` of the `keys` positions that there are.
    fn seen<'k>(
        &self,
        of: HeadKeyValues<'k>,
        HeadGroup { window, kv_head }: HeadGroup,
        (seen, keys): (usize, usize),
    ) -> [Cow<'k, [f32]>; 2] {
        match of {
            HeadKeyValues::Rows(key, value) => {
                [key, value].map(|x| Cow::Owned(self.gather(x, (window * keys, seen), (kv_head, 1))))
            }
            HeadKeyValues::Cached(cache) => {
                let from = (window * self.keys + kv_head) * cache.positions * self.size;
                [&cache.key, &cache.value].map(|all| Cow::Borrowed(&all[from..from + seen * self.size]))
            }
        }
    }

    /// The outputs for the queries of `span`, from the keys and values of these positions and all before.
    pub(super) fn forward(
        &self,
        session: &Session<'_>,
        query: &Activations,
        past: HeadKeyValues<'_>,
        span: Span,
    ) -> Result<Activations> {
        let (keys, group) = (span.before + span.now, self.group());
        let blocks = (0..span.now).step_by(QUERY_BLOCK);
        let blocks: Vec<(HeadGroup, usize)> =
            self.groups(span.windows).into_iter().flat_map(|of| blocks.clone().map(move |from| (of, from))).collect();
        // A block has the form of a window that was computed up to it.
        let block = |from: usize| Span { before: span.before + from, now: (span.now - from).min(QUERY_BLOCK), ..span };
        let mut out = Activations::zeros(span.count(), self.queries * self.size);
        session.count(2 * self.queries * self.size * span.count() * keys);
        session.pass.workers.in_order(
            session.pass.progress,
            &blocks,
            || (),
            |(), &(of, from)| {
                let (block, HeadGroup { window, kv_head }) = (block(from), of);
                let seen = block.before + block.now;
                let query = self.gather(query, (window * span.now + from, block.now), (kv_head * group, group));
                let [key, value] = self.seen(past, of, (seen, keys));
                let scores = self.scores(session.pass.isa, &query, &key, block, kv_head * group);
                Ok(matmul_nn(session.pass.isa, &scores.shares, &value, seen))
            },
            |&(of, from), values| {
                self.scatter(&values, &mut out, (of.window * span.now + from, block(from).now), of.kv_head * group);
                Ok(())
            },
        )?;
        Ok(out)
    }

    /// Gradients at queries, keys and values from those at the output, several for each token.
    pub(super) fn back(
        &self,
        session: &Session<'_>,
        [query, key, value]: [&Activations; 3],
        gradients: &Activations,
        span: Span,
    ) -> Result<QkvGradients> {
        let (group, now, isa) = (self.group(), span.now, session.pass.isa);
        let draws = gradients.count() / span.count();
        let rows = |width| Activations::zeros(gradients.count(), width * self.size);
        let mut out = QkvGradients { query: rows(self.queries), key: rows(self.keys), value: rows(self.keys) };
        session.count((1 + 4 * draws) * self.queries * self.size * span.count() * now);
        session.pass.workers.in_order(
            session.pass.progress,
            &self.groups(span.windows),
            || (),
            |(), &HeadGroup { window, kv_head }| {
                let query = self.gather(query, (window * now, now), (kv_head * group, group));
                let [key, value] = [key, value].map(|x| self.gather(x, (window * now, now), (kv_head, 1)));
                let Scores { shares, slopes } = self.scores(isa, &query, &key, span, kv_head * group);
                let mut found = Vec::with_capacity(draws);
                for draw in 0..draws {
                    let from = draw * span.count() + window * now;
                    let gradient = self.gather(gradients, (from, now), (kv_head * group, group));
                    let of_value = matmul_tn(isa, &shares, &gradient, group * now);
                    let mut of_scores = matmul_nt(isa, &gradient, &value, self.size);
                    for (row, shares) in of_scores.chunks_exact_mut(now).zip(shares.chunks_exact(now)) {
                        let both = row.iter().zip(shares);
                        let mean = both.map(|(of, share)| f64::from(*of) * f64::from(*share)).sum::<f64>() as f32;
                        for (of, share) in row.iter_mut().zip(shares) {
                            *of = share * (*of - mean) * self.scale;
                        }
                    }
                    for (of, slope) in of_scores.iter_mut().zip(&slopes) {
                        *of *= slope;
                    }
                    let of_query = matmul_nn(isa, &of_scores, &key, now);
                    let of_key = matmul_tn(isa, &of_scores, &query, group * now);
                    found.push((of_query, of_key, of_value));
                }
                Ok(found)
            },
            |of, found| {
                for (draw, (query, key, value)) in found.iter().enumerate() {
                    let rows = (draw * span.count() + of.window * now, now);
                    self.scatter(query, &mut out.query, rows, of.kv_head * group);
                    self.scatter(key, &mut out.key, rows, of.kv_head);
                    self.scatter(value, &mut out.value, rows, of.kv_head);
                }
                Ok(())
            },
        )?;
        Ok(out)
    }
}
