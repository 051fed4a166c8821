//! The output of the model: from the residual stream to the distribution of the next token, and back.
//!
//! The Fisher matrix of a position's logits is `diag(p) − p pᵀ`. The backward pass starts from random gradients with that
//! covariance:
//!
//! ```text
//! u_v = √p_v e_v − p_v Σ_w √p_w e_w,        e_v = ±1
//! ```
//!
//! Sampled labels, `u = onehot(label) − p`, have the same covariance but a higher variance of the squares where `p` is small:
//! the same expectation from the same passes, with more noise (`docs/method.md`, "The probe"). For the head's own
//! matrix the expectation has a closed form, and nothing is drawn: `E[u_v²] = p_v (1 − p_v)`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Session;
use super::activations::Activations;
use super::moments::Moments;
use super::norm::NormLayer;
use super::stored::{Direction, Input, Operand, product};
use super::tokens::Signs;
use crate::arch::{Linear, Runnable};
use crate::error::Result;
use crate::simd::math::{exp_minus, soft_cap};

/// Partial results of a sum or a maximum over the vocabulary: one alone would wait for each step before the next.
pub(super) const LANES: usize = 16;

/// Bytes of logits in memory at a time.
const LOGIT_BYTES: usize = 256 << 20;

/// Logits of some tokens, with the terms of the softmax.
struct Logits {
    /// Logits after scale and cap.
    rows: Activations,
    /// Maximum of each row.
    most: Vec<f32>,
    /// Sum of the exponentials of each row, relative to its maximum.
    sum: Vec<f64>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HeadGradients {
    /// At the residual stream after the last layer, draw after draw.
    pub(super) stream: Activations,
    pub(super) moments: Moments,
    /// The inputs of the head, if they are kept, each times the root of `Σ_v E[u_v²]` at its token.
    pub(super) states: Option<Activations>,
    /// The logits and the gradients at them, if they were asked for.
    pub(super) trace: Option<LogitTrace>,
}

/// Logits and the random gradients at them, for comparing a run with another implementation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogitTrace {
    /// `[token][entry]`
    pub logits: Vec<f32>,
    /// `[token][draw][entry]`
    pub gradients: Vec<f32>,
}

/// Bytes of weights that [`back_through_head`] reads for `count` tokens.
pub(super) fn visited_bytes(session: &Session<'_>, count: usize) -> u64 {
    let matrix = session.model.head().matrix;
    2 * matrix.rows * matrix.row_bytes() * count.div_ceil(block(session)) as u64
}

/// Bytes that [`back_through_head`] holds at most for `count` tokens: logits, with the powers or gradients of a part of them.
pub(super) fn held_bytes(model: &Runnable<'_>, count: u64) -> u64 {
    let logits = 4 * count * model.head().outputs() as u64;
    2 * logits.min(LOGIT_BYTES as u64) + 6 * 4 * count * model.width() as u64
}

/// Number of tokens whose logits are in memory at a time.
fn block(session: &Session<'_>) -> usize {
    (LOGIT_BYTES / (4 * session.model.head().outputs())).max(1)
}

/// Logits for the rows `x` of outputs of the final norm.
pub(super) fn logits(session: &Session<'_>, x: &Activations) -> Result<Activations> {
    let conventions = &session.model.conventions;
    let mut rows = session.forward_one(session.model.head(), x)?;
    let scale = conventions.logit_scale as f32;
    if scale != 1.0 {
        rows.values.iter_mut().for_each(|logit| *logit *= scale);
    }
    if let Some(cap) = conventions.logit_cap {
        soft_cap(session.pass.isa, &mut rows.values, cap as f32);
    }
    Ok(rows)
}

fn final_norm(session: &Session<'_>, width: usize) -> Result<NormLayer> {
    NormLayer::new(session, session.model.final_norm, width)
}

/// The output of the final norm.
pub(super) fn last_states(session: &Session<'_>, x: &Activations) -> Result<Activations> {
    final_norm(session, x.width)?.forward(session, x)
}

impl Logits {
    fn of(session: &Session<'_>, x: &Activations) -> Result<Self> {
        let rows = logits(session, x)?;
        if !rows.is_finite() {
            return Err(session.overflow("the head"));
        }
        let tokens: Vec<usize> = (0..rows.count()).collect();
        let found = session.pass.workers.map(session.pass.progress, &tokens, Vec::new, |powers, &token| {
            let row = rows.row(token);
            let most = largest(row);
            powers.clear();
            powers.extend_from_slice(row);
            exp_minus(session.pass.isa, powers, most);
            Ok((most, powers.iter().map(|&power| f64::from(power)).sum::<f64>()))
        })?;
        let (most, sum) = found.into_iter().unzip();
        Ok(Self { rows, most, sum })
    }

    /// Probabilities of the tokens `which` of the vocabulary after the token of row `row`.
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

/// The largest of `values`.
pub(super) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        lanes.iter_mut().zip(values).for_each(|(most, value)| *most = most.max(*value));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Derivative of a logit with respect to the output of the matrix: scale and cap.
fn slope(session: &Session<'_>, logit: f32) -> f32 {
    let conventions = &session.model.conventions;
    let scale = conventions.logit_scale as f32;
    conventions.logit_cap.map_or(scale, |cap| {
        let held = logit / cap as f32;
        scale * (1.0 - held * held)
    })
}

/// Runs the head on the residual stream `x`, and back with `draws` random gradients per token.
pub(super) fn back_through_head(
    session: &Session<'_>,
    x: &Activations,
    draws: usize,
    (seeing, keeps_states): (bool, bool),
) -> Result<HeadGradients> {
    let count = x.count();
    let head = session.model.head();
    let trace = seeing.then(LogitTrace::default);
    let states = keeps_states.then(|| Activations { width: x.width, values: Vec::with_capacity(x.values.len()) });
    let stream = Activations::zeros(draws * count, x.width);
    let mut out = HeadGradients { stream, moments: Moments::default(), states, trace };
    let block = block(session);
    for first in (0..count).step_by(block) {
        let here = first..(first + block).min(count);
        let stream = Activations { width: x.width, values: x.slice(here.start, here.end).to_vec() };
        let states = last_states(session, &stream)?;
        let logits = Logits::of(session, &states)?;
        out.moments.add(&head_moments(session, &states, &logits, out.states.as_mut())?);
        let random = RandomGradients::new(session, &logits, draws, first)?;
        if let Some(trace) = &mut out.trace {
            random.add_to(trace);
        }
        let of_states = back(session, head, &random)?;
        let found = final_norm(session, x.width)?.back(session, &stream, &of_states)?;
        for draw in 0..draws {
            for (at, token) in here.clone().enumerate() {
                out.stream.row_mut(draw * count + token).copy_from_slice(found.row(draw * here.len() + at));
            }
        }
    }
    Ok(out)
}

/// Gradients at the input of the head: those at the logits, multiplied with the matrix.
fn back(session: &Session<'_>, head: Linear<'_>, random: &RandomGradients<'_, '_>) -> Result<Activations> {
    let compute = |which: Range<usize>| Activations { width: which.len(), values: random.gradients(which) };
    let count = random.draws * random.logits.rows.count();
    product(session, Direction::Back, count, vec![Operand { linear: head, input: Input::Computed(&compute) }])
}

/// The random gradients at logits, computed for a range of the vocabulary when it is needed.
struct RandomGradients<'s, 'a> {
    session: &'s Session<'a>,
    logits: &'s Logits,
    draws: usize,
    /// Number of the first token.
    first: usize,
    /// `Σ_w √p_w e_w` of each token and draw.
    along: Vec<Vec<f32>>,
}

impl<'s, 'a> RandomGradients<'s, 'a> {
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

    /// Appends the logits and the gradients at them.
    fn add_to(&self, trace: &mut LogitTrace) {
        let width = self.logits.rows.width;
        trace.logits.extend_from_slice(&self.logits.rows.values);
        let (mut p, mut roots) = (Vec::new(), Vec::new());
        for token in 0..self.logits.rows.count() {
            self.logits.probabilities(self.session, token, 0..width, &mut p);
            for draw in 0..self.draws {
                Signs::new(draw, self.first + token).roots(0, &p, &mut roots);
                let along = self.along[token][draw];
                trace.gradients.extend(roots.iter().zip(&p).map(|(root, p)| root - p * along));
            }
        }
    }

    /// Gradients at the outputs `which` of the matrix: `[draw][token][entry]`.
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

/// Moments of the head's matrix: `Σ_t x_tj² Σ_v E[u_tv²]` and `Σ_t |x_t|² E[u_tv²]`. Its error at one position affects no
/// other position, so the products of different tokens are 0.
/// Appends the weighted inputs to `kept`.
fn head_moments(
    session: &Session<'_>,
    states: &Activations,
    logits: &Logits,
    mut kept: Option<&mut Activations>,
) -> Result<Moments> {
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
            if let Some(kept) = &mut kept {
                let root = all.sqrt() as f32;
                kept.values.extend(state.iter().map(|x| root * x));
            }
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
