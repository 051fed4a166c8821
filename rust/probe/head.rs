//! The end of the model: from the stream to the distribution of the next token, and back from there.
//!
//! The Fisher matrix of a position's logits is `diag(p) − p pᵀ`. What is sent back is random and has that covariance:
//!
//! ```text
//! u_v = √p_v e_v − p_v Σ_w √p_w e_w,        e_v = ±1
//! ```
//!
//! Labels drawn from `p`, `u = onehot(label) − p`, have it, too, and are rarer and larger where `p` is small: the same
//! expectation from the same passes with more noise (`docs/method.md`, "The probe"). Of the head's own matrix the
//! expectation is known, and nothing needs to be drawn: `E[u_v²] = p_v (1 − p_v)`.

use std::ops::Range;

use super::Session;
use super::matmul::stored::{Direction, Input, Job, Part, products};
use super::moments::Moments;
use super::norm::Loaded;
use super::rows::Rows;
use super::tokens::Signs;
use crate::arch::Linear;
use crate::error::{Error, Result};
use crate::simd::math::{exp_minus, soft_cap};

/// Bytes of logits that are held at a time.
const LOGIT_BYTES: usize = 256 << 20;

/// Logits of some tokens, and what makes distributions of them.
struct Logits {
    /// Behind cap and scale.
    rows: Rows,
    /// The greatest of each row.
    most: Vec<f32>,
    /// The sum of each row's exponentials below it.
    sum: Vec<f64>,
}

/// What one block of tokens gives back.
pub(super) struct Ends {
    /// Gradients at the stream, draw after draw.
    pub(super) stream: Rows,
    /// Of the head's matrix.
    pub(super) moments: Moments,
    /// What was seen at the logits, if it was asked for.
    pub(super) seen: Option<Seen>,
}

/// Logits, and the random gradients there: what a run can be held against another by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// `[token][entry]`
    pub logits: Vec<f32>,
    /// `[token][draw][entry]`
    pub gradients: Vec<f32>,
}

/// The matrix that gives logits.
pub(super) fn head<'a>(session: &Session<'a>) -> Linear<'a> {
    session.decoder.head.unwrap_or(session.decoder.embedding)
}

/// Bytes of weights that [`ends`] reads for `count` tokens.
pub(super) fn visited_bytes(session: &Session<'_>, count: usize) -> u64 {
    let matrix = head(session).matrix;
    2 * matrix.rows * matrix.row_bytes() * count.div_ceil(block(session)) as u64
}

/// Tokens whose logits are held at a time.
fn block(session: &Session<'_>) -> usize {
    (LOGIT_BYTES / (4 * head(session).outputs())).max(1)
}

/// Logits of the rows `x`, which are behind the final norm.
pub(super) fn logits(session: &Session<'_>, x: &Rows) -> Result<Rows> {
    let conventions = &session.decoder.conventions;
    let mut rows = session.linear(&head(session), x)?;
    let scale = conventions.logit_scale as f32;
    if scale != 1.0 {
        rows.values.iter_mut().for_each(|logit| *logit *= scale);
    }
    if let Some(cap) = conventions.logit_cap {
        soft_cap(session.pass.isa, &mut rows.values, cap as f32);
    }
    Ok(rows)
}

/// The stream behind the final norm.
pub(super) fn last_states(session: &Session<'_>, x: &Rows) -> Result<Rows> {
    match session.decoder.final_norm {
        Some(norm) => Loaded::new(session, norm, x.width)?.forward(session, x),
        None => Ok(x.clone()),
    }
}

impl Logits {
    fn of(session: &Session<'_>, x: &Rows) -> Result<Self> {
        let rows = logits(session, x)?;
        if !rows.is_finite() {
            return Err(session.overflow("the head"));
        }
        let tokens: Vec<usize> = (0..rows.count()).collect();
        let found = session.pass.workers.map(session.pass.progress, &tokens, Vec::new, |powers, &token| {
            let row = rows.row(token);
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            powers.clear();
            powers.extend_from_slice(row);
            exp_minus(session.pass.isa, powers, most);
            Ok((most, powers.iter().map(|&power| f64::from(power)).sum::<f64>()))
        })?;
        let (most, sum) = found.into_iter().unzip();
        Ok(Self { rows, most, sum })
    }

    /// Probabilities of the tokens `which` of the vocabulary behind row `row`.
    fn probabilities(&self, session: &Session<'_>, row: usize, which: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&self.rows.row(row)[which]);
        exp_minus(session.pass.isa, out, self.most[row]);
        let inverse = (1.0 / self.sum[row]) as f32;
        for power in out.iter_mut() {
            *power *= inverse;
        }
    }
}

/// Slopes of the logits `row` by what the matrix gives: scale and cap.
fn slope(session: &Session<'_>, logit: f32) -> f32 {
    let conventions = &session.decoder.conventions;
    let scale = conventions.logit_scale as f32;
    conventions.logit_cap.map_or(scale, |cap| {
        let held = logit / cap as f32;
        scale * (1.0 - held * held)
    })
}

/// Goes through the head with the stream `x`, and back with random gradients, `draws` for each token.
pub(super) fn ends(session: &Session<'_>, x: &Rows, draws: usize, seeing: bool) -> Result<Ends> {
    let count = x.count();
    let head = head(session);
    let seen = seeing.then(Seen::default);
    let mut ends = Ends { stream: Rows::zeros(draws * count, x.width), moments: Moments::default(), seen };
    let block = block(session);
    for first in (0..count).step_by(block) {
        let here = first..(first + block).min(count);
        let stream = Rows { width: x.width, values: x.slice(here.start, here.end).to_vec() };
        let states = last_states(session, &stream)?;
        let logits = Logits::of(session, &states)?;
        ends.moments.add(&head_moments(session, &states, &logits)?);
        let sent = Sent::new(session, &logits, draws, first)?;
        if let Some(seen) = &mut ends.seen {
            sent.see(seen);
        }
        let of_states = back(session, &head, &sent)?;
        let found = match session.decoder.final_norm {
            Some(norm) => Loaded::new(session, norm, x.width)?.back(session, &stream, &of_states)?,
            None => of_states,
        };
        for draw in 0..draws {
            for (at, token) in here.clone().enumerate() {
                ends.stream.row_mut(draw * count + token).copy_from_slice(found.row(draw * here.len() + at));
            }
        }
    }
    Ok(ends)
}

/// Gradients at the last states: those at the logits, through the matrix.
fn back(session: &Session<'_>, head: &Linear<'_>, sent: &Sent<'_, '_>) -> Result<Rows> {
    let make = |which: Range<usize>| Rows { width: which.len(), values: sent.gradients(which) };
    let count = sent.draws * sent.logits.rows.count();
    let job = Job { parts: vec![Part { linear: *head, x: Input::Made(&make) }], count };
    let mut found = products(session, Direction::Back, &[job])?;
    found.pop().ok_or_else(|| Error::Bug("the head gave nothing back".to_owned()))
}

/// The random gradients at logits: any range of the vocabulary, when it is needed.
struct Sent<'s, 'a> {
    session: &'s Session<'a>,
    logits: &'s Logits,
    draws: usize,
    /// The first token's number.
    first: usize,
    /// `Σ_w √p_w e_w` of each token and draw.
    along: Vec<Vec<f32>>,
}

impl<'s, 'a> Sent<'s, 'a> {
    fn new(session: &'s Session<'a>, logits: &'s Logits, draws: usize, first: usize) -> Result<Self> {
        let tokens: Vec<usize> = (0..logits.rows.count()).collect();
        let scratch = || (Vec::new(), Vec::new());
        let along = session.pass.workers.map(session.pass.progress, &tokens, scratch, |(p, roots), &token| {
            logits.probabilities(session, token, 0..logits.rows.width, p);
            let of_draw = |draw| {
                Signs::new(draw, first + token).roots(0, p, roots);
                roots.iter().map(|&root| f64::from(root)).sum::<f64>() as f32
            };
            Ok((0..draws).map(of_draw).collect())
        })?;
        Ok(Self { session, logits, draws, first, along })
    }

    /// Adds what there is to see.
    fn see(&self, seen: &mut Seen) {
        let width = self.logits.rows.width;
        seen.logits.extend_from_slice(&self.logits.rows.values);
        let (mut p, mut roots) = (Vec::new(), Vec::new());
        for token in 0..self.logits.rows.count() {
            self.logits.probabilities(self.session, token, 0..width, &mut p);
            for draw in 0..self.draws {
                Signs::new(draw, self.first + token).roots(0, &p, &mut roots);
                let along = self.along[token][draw];
                seen.gradients.extend(roots.iter().zip(&p).map(|(root, p)| root - p * along));
            }
        }
    }

    /// Gradients of the entries `which` by what the matrix gives: `[draw][token][entry]`.
    fn gradients(&self, which: Range<usize>) -> Vec<f32> {
        let (tokens, length) = (self.logits.rows.count(), which.len());
        let mut values = vec![0.0; self.draws * tokens * length];
        let (mut p, mut roots) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            self.logits.probabilities(self.session, token, which.clone(), &mut p);
            let logits = &self.logits.rows.row(token)[which.clone()];
            for draw in 0..self.draws {
                Signs::new(draw, self.first + token).roots(which.start, &p, &mut roots);
                let along = self.along[token][draw];
                let out = &mut values[(draw * tokens + token) * length..][..length];
                for (((out, root), p), &logit) in out.iter_mut().zip(&roots).zip(&p).zip(logits) {
                    *out = slope(self.session, logit) * (root - p * along);
                }
            }
        }
        values
    }
}

/// Of the head's matrix: `Σ_t x_tj² Σ_v E[u_tv²]` and `Σ_t |x_t|² E[u_tv²]`. Its errors at one position are felt at no
/// other, and so the products of different tokens are 0.
fn head_moments(session: &Session<'_>, states: &Rows, logits: &Logits) -> Result<Moments> {
    let vocabulary = logits.rows.width;
    let mut moments = Moments {
        inputs: vec![0.0; states.width],
        outputs: vec![0.0; vocabulary],
        squares: super::moments::squares(states),
        tokens: states.count() as u64,
    };
    let tokens: Vec<usize> = (0..states.count()).collect();
    session.pass.workers.in_order(
        session.pass.progress,
        &tokens,
        || (),
        |(), &token| {
            let mut spread = Vec::new();
            logits.probabilities(session, token, 0..vocabulary, &mut spread);
            for (p, &logit) in spread.iter_mut().zip(logits.rows.row(token)) {
                let slope = slope(session, logit);
                *p *= (1.0 - *p) * slope * slope;
            }
            Ok(spread)
        },
        |&token, spread| {
            let state = states.row(token);
            let all: f64 = spread.iter().map(|&spread| f64::from(spread)).sum();
            let length: f64 = state.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            for (sum, &x) in moments.inputs.iter_mut().zip(state) {
                *sum += f64::from(x) * f64::from(x) * all;
            }
            for (sum, spread) in moments.outputs.iter_mut().zip(spread) {
                *sum += f64::from(spread) * length;
            }
            Ok(())
        },
    )?;
    Ok(moments)
}
