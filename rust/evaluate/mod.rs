//! The divergence of models from a reference, on the same tokens.
//!
//! All models run forward layer by layer, some windows at a time. The final states of these windows are in memory; logits
//! are computed for blocks of positions. Nothing depends on the number of threads or the size of a block.

mod divergence;
mod statistics;

use std::ops::Range;

pub use statistics::{Estimate, Quantiles};

use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::probe::forward::{Forward, States};
use divergence::{Scored, Scorer};

/// Tokens that run through a model together.
const BATCH_TOKENS: usize = 1024;

/// Bytes of logits in memory at a time, of the reference and of one model.
const LOGIT_BYTES: usize = 256 << 20;

/// Windows of tokens of equal length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows<'t> {
    pub(crate) tokens: &'t [u32],
    /// Tokens of a window, at least two.
    pub(crate) length: usize,
}

impl<'t> Windows<'t> {
    #[must_use]
    pub(crate) fn count(self) -> usize {
        self.tokens.len() / self.length
    }

    /// Number of tokens that are predicted: all but the first of each window.
    #[must_use]
    pub(crate) fn predictions(self) -> usize {
        self.count() * (self.length - 1)
    }

    /// Windows that run together.
    fn batches(self) -> impl Iterator<Item = Windows<'t>> {
        let windows = (BATCH_TOKENS / self.length).max(1);
        self.tokens.chunks(windows * self.length).map(move |tokens| Windows { tokens, ..self })
    }

    /// The token that follows each position but the last of a window.
    fn following(self) -> Vec<u32> {
        self.tokens.chunks_exact(self.length).flat_map(|window| window[1..].iter().copied()).collect()
    }
}

/// Number of times that `windows` traverse the weights of all layers and those of the head.
#[must_use]
pub(crate) fn traversals(windows: Windows<'_>, vocabulary: usize) -> (u64, u64) {
    let of = |batch: Windows<'_>| batch.predictions().div_ceil(block(vocabulary)) as u64;
    (windows.batches().count() as u64, windows.batches().map(of).sum())
}

/// Positions whose logits are in memory at a time.
fn block(vocabulary: usize) -> usize {
    (LOGIT_BYTES / (2 * 4 * vocabulary)).max(1)
}

/// The measurements of one model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// KL divergence of the model from the reference, in nats per token.
    pub kl: Quantiles,
    /// Perplexity of the reference.
    pub reference_perplexity: Estimate,
    /// Perplexity of the reference in the median window.
    pub reference_perplexity_median: f64,
    /// Perplexity of the model.
    pub perplexity: Estimate,
    /// Perplexity of the model in the median window.
    pub perplexity_median: f64,
    /// Share of positions at which both models prefer the same token.
    pub agreement: Estimate,
}

impl Divergence {
    /// The statistics of `scored` positions, `length` of each window.
    fn of(scored: &[Scored], length: usize) -> Self {
        let values = |of: fn(&Scored) -> f64| -> Vec<f64> { scored.iter().map(of).collect() };
        let [reference, model] = [values(|at| at.reference_nll), values(|at| at.nll)];
        let perplexity = |nll: &[f64]| statistics::mean(nll, length).exponential();
        Self {
            kl: statistics::quantiles(&values(|at| at.kl), length),
            reference_perplexity: perplexity(&reference),
            reference_perplexity_median: statistics::median_window(&reference, length),
            perplexity: perplexity(&model),
            perplexity_median: statistics::median_window(&model, length),
            agreement: statistics::mean(&values(|at| f64::from(u8::from(at.agrees))), length),
        }
    }
}

/// Runs `reference` and `models` on `windows`.
///
/// # Errors
/// [`Error::Unrunnable`](crate::Error::Unrunnable) if numbers overflow, and those of reading.
pub(crate) fn compare(
    pass: Pass<'_>,
    reference: &Forward<'_>,
    models: &[Forward<'_>],
    windows: Windows<'_>,
) -> Result<Vec<Divergence>> {
    let mut scored: Vec<Vec<Scored>> = models.iter().map(|_| Vec::with_capacity(windows.predictions())).collect();
    let block = block(reference.vocabulary());
    for batch in windows.batches() {
        let states = |model: &Forward<'_>| -> Result<States> {
            Ok(model.states(batch.tokens, batch.length)?.predicting(batch.length))
        };
        let expected = states(reference)?;
        let found: Vec<States> = models.iter().map(states).collect::<Result<_>>()?;
        let following = batch.following();
        for from in (0..expected.count()).step_by(block) {
            let rows: Range<usize> = from..(from + block).min(expected.count());
            let logits = reference.logits(&expected, rows.clone())?;
            let scorer = Scorer { pass, reference: &logits, following: &following[rows.clone()] };
            for ((model, states), scored) in models.iter().zip(&found).zip(&mut scored) {
                scored.extend(scorer.score(&model.logits(states, rows.clone())?)?);
            }
        }
    }
    Ok(scored.iter().map(|scored| Divergence::of(scored, windows.length - 1)).collect())
}
