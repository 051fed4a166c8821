//! Generates windows with the model: the first token of each text is given, the others are sampled.
//!
//! Every position takes one pass over all weights, for any number of texts in parallel. Texts are therefore short, and a
//! window packs several of them, like the documents of a training set.

use super::Session;
use super::attention::Span;
use super::embedding::embedded;
use super::head::{last_states, logits};
use super::layer::{KeyValueCache, LoadedLayer};
use super::tokens::{Seed, WINDOW};
use super::vocabulary::Vocabulary;
use crate::arch::Runnable;
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::progress::Stage;
use crate::simd::Isa;
use crate::simd::math::exp_minus;

/// Tokens of a text.
pub(super) const TEXT: usize = 32;

/// Texts to generate, one after the other in a list of tokens.
pub(super) struct Texts<'v> {
    pub(super) vocabulary: &'v Vocabulary,
    pub(super) seed: Seed,
    /// Number of the first token, for the generator.
    pub(super) number: usize,
    /// Tokens of a text. The first is given.
    pub(super) length: usize,
    /// Where the vocabulary has a first token, the second of so many tokens is given, too.
    pub(super) given_every: usize,
}

impl<'v> Texts<'v> {
    /// The texts of windows of the probe from token `number` of the run on, each of `length` tokens.
    pub(super) fn of_windows(vocabulary: &'v Vocabulary, seed: Seed, number: usize, length: usize) -> Self {
        Self { vocabulary, seed, number, length, given_every: WINDOW }
    }
}

/// Samples all but the given tokens of the `texts` in `tokens`. Returns the number of multiply-adds.
pub(super) fn generate(pass: Pass<'_>, model: &Runnable<'_>, texts: &Texts<'_>, tokens: &mut [u32]) -> Result<usize> {
    let &Texts { vocabulary, seed, number, length, given_every } = texts;
    let mut session = Session::new(pass, model);
    session.hold()?;
    let layers =
        model.layers.iter().map(|layer| Ok((LoadedLayer::new(&session, layer, length)?, KeyValueCache::default())));
    let mut layers: Vec<(LoadedLayer<'_, '_>, KeyValueCache)> = layers.collect::<Result<_>>()?;
    let bytes = model.body_bytes() + model.head().bytes();
    pass.progress.begin(Stage::Write, bytes * (length - 1) as u64);
    let texts = tokens.len() / length;
    for position in 0..length - 1 {
        let span = Span { windows: texts, before: position, now: 1 };
        let given: Vec<u32> = tokens.iter().skip(position).step_by(length).copied().collect();
        let mut x = embedded(&session, &given, span)?;
        for (layer, cache) in &mut layers {
            x = layer.forward(&x, span, Some(cache))?.0;
        }
        let found = logits(&session, &last_states(&session, &x)?)?;
        for text in 0..texts {
            let at = text * length + position + 1;
            if vocabulary.first().is_none() || at % given_every != 1 {
                tokens[at] = sampled(pass.isa, vocabulary, found.row(text), seed.unit(number + at));
            }
        }
    }
    Ok(session.multiply_adds.into_inner() as usize)
}

/// The token at quantile `share` of the distribution of the vocabulary that `logits` give.
fn sampled(isa: Isa, vocabulary: &Vocabulary, logits: &[f32], share: f64) -> u32 {
    let mut powers: Vec<f32> = vocabulary.allowed().iter().map(|&token| logits[token as usize]).collect();
    let most = powers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    exp_minus(isa, &mut powers, most);
    let mut rest = share * powers.iter().map(|&power| f64::from(power)).sum::<f64>();
    for (&token, &power) in vocabulary.allowed().iter().zip(&powers) {
        rest -= f64::from(power);
        if rest < 0.0 {
            return token;
        }
    }
    // Reached through rounding only.
    vocabulary.allowed().last().copied().unwrap_or_default()
}
