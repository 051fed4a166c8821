//! Generates windows with the model: the first token of each text is given, the others are sampled.
//!
//! Every position takes one pass over all weights, for any number of texts in parallel. Texts are therefore short, and a
//! window packs several of them, like the documents of a training set.

use super::Session;
use super::attention::{KeyValueCache, Span};
use super::embedding::embedded;
use super::head::{LANES, largest, last_states, logits};
use super::layer::LoadedLayer;
use super::tokens::{Seed, WINDOW};
use super::vocabulary::Vocabulary;
use crate::arch::{Layer, Mixer, Runnable};
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::progress::Stage;
use crate::simd::Isa;
use crate::simd::math::exp_minus;

/// Tokens of a text.
pub(super) const TEXT: usize = 32;

/// Tokens of the vocabulary whose probabilities are summed up before the sampled one is looked for among them.
const RUN: usize = 512;

/// Bytes of keys and values up to which texts are written together, so that weights are read for all of them.
const CACHE_BYTES: u64 = 384 << 20;

/// Texts that are written together whatever their keys and values take.
const LEAST_TOGETHER: u64 = 32;

/// Energy of a text's last hidden states, relative to the median, above which it is like no real text.
const OUTLIER: f64 = 4.0;

/// Texts to generate, one after the other in a list of tokens.
#[derive(Clone, Copy)]
pub(super) struct Texts<'v> {
    pub(super) vocabulary: &'v Vocabulary,
    pub(super) seed: Seed,
    /// Number of the first token, for the generator.
    pub(super) number: usize,
    /// Tokens of a text. The first is given.
    pub(super) length: usize,
    /// Where the vocabulary has a first token, the second of so many tokens is given, too.
    pub(super) given_every: usize,
    /// Whether texts that no real text is like are replaced by others: see [`replace_outliers`].
    pub(super) without_outliers: bool,
}

impl<'v> Texts<'v> {
    /// The texts of windows of the probe from token `number` of the run on, each of `length` tokens.
    pub(super) fn of_windows(vocabulary: &'v Vocabulary, seed: Seed, number: usize, length: usize) -> Self {
        Self { vocabulary, seed, number, length, given_every: WINDOW, without_outliers: true }
    }
}

/// Bytes of the keys and values of a text of `length` tokens.
fn cache_bytes(model: &Runnable<'_>, length: usize) -> u64 {
    let of_layer = |layer: &Layer<'_>| {
        let Mixer::Attention(attention) = &layer.mixer;
        (2 * attention.heads.keys * attention.heads.size) as u64
    };
    4 * length as u64 * model.layers.iter().map(of_layer).sum::<u64>()
}

/// Texts of `length` tokens that are written together.
fn together(model: &Runnable<'_>, length: usize) -> u64 {
    (CACHE_BYTES / cache_bytes(model, length).max(1)).max(LEAST_TOGETHER)
}

/// Bytes that writing `tokens` tokens holds at most: keys and values, logits, and the numbers of the widest layer.
pub(super) fn held_bytes(model: &Runnable<'_>, tokens: u64) -> u64 {
    let texts = together(model, WINDOW).min(tokens / WINDOW as u64);
    let layer = model.layers.iter().flat_map(Layer::linears).map(|linear| linear.outputs() as u64).max().unwrap_or(0);
    texts * (cache_bytes(model, WINDOW) + 4 * (2 * model.head().outputs() as u64 + 8 * layer))
}

/// Samples all but the given tokens of the `texts` in `tokens`. Returns the number of multiply-adds.
pub(super) fn generate(pass: Pass<'_>, model: &Runnable<'_>, texts: &Texts<'_>, tokens: &mut [u32]) -> Result<usize> {
    let mut session = Session::new(pass, model);
    session.hold()?;
    let layers = model.layers.iter().map(|layer| LoadedLayer::new(&session, layer, texts.length));
    let layers: Vec<LoadedLayer<'_, '_>> = layers.collect::<Result<_>>()?;
    let batch = together(model, texts.length) as usize * texts.length;
    let bytes = model.body_bytes() + model.head().bytes();
    let steps = tokens.len().div_ceil(batch) * (texts.length - 1);
    pass.progress.begin(Stage::Write, bytes * steps as u64);
    for (at, tokens) in tokens.chunks_mut(batch).enumerate() {
        write(&session, &layers, &Texts { number: texts.number + at * batch, ..*texts }, tokens)?;
    }
    drop(layers);
    Ok(session.multiply_adds.into_inner() as usize)
}

/// Samples the tokens of texts that are written together.
fn write(session: &Session<'_>, layers: &[LoadedLayer<'_, '_>], texts: &Texts<'_>, tokens: &mut [u32]) -> Result<()> {
    let &Texts { vocabulary, seed, number, length, given_every, .. } = texts;
    let mut energies = vec![0.0; tokens.len() / length];
    let count = energies.len();
    let mut caches: Vec<KeyValueCache> = layers.iter().map(|layer| layer.cache(count, length)).collect();
    let numbers: Vec<usize> = (0..count).collect();
    for position in 0..length - 1 {
        let span = Span { windows: count, before: position, now: 1 };
        let given: Vec<u32> = tokens.iter().skip(position).step_by(length).copied().collect();
        let mut x = embedded(session, &given, span)?;
        for (layer, cache) in layers.iter().zip(&mut caches) {
            x = layer.forward(&x, span, Some(cache))?.0;
        }
        let states = last_states(session, &x)?;
        if position > 0 {
            for (energy, state) in energies.iter_mut().zip(states.values.chunks_exact(states.width)) {
                *energy += state.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            }
        }
        let found = logits(session, &states)?;
        let pass = session.pass;
        let next = pass.workers.map(pass.progress, &numbers, Vec::new, |powers, &text| {
            let at = text * length + position + 1;
            let is_given = vocabulary.first().is_some() && (number + at) % given_every == 1;
            let share = seed.unit(number + at);
            Ok((!is_given).then(|| sampled(pass.isa, vocabulary, found.row(text), (powers, share))))
        })?;
        for (text, token) in next.into_iter().enumerate() {
            if let Some(token) = token {
                tokens[text * length + position + 1] = token;
            }
        }
    }
    if texts.without_outliers {
        replace_outliers(number / length, length, &energies, tokens);
    }
    Ok(())
}

/// Replaces texts whose last hidden states have more than [`OUTLIER`] times the median energy by their neighbours.
///
/// Some models leave the states of real text when they write, and never find back: they write words of all languages, with
/// one massive channel. A few such texts would be most of a covariance. Compared are texts at the same place in their windows;
/// the first one is number `first` of the run.
fn replace_outliers(first: usize, length: usize, energies: &[f64], tokens: &mut [u32]) {
    let in_window = (WINDOW / length).max(1);
    for place in 0..in_window {
        let alike: Vec<usize> = (0..energies.len()).filter(|text| (first + text) % in_window == place).collect();
        let mut sorted: Vec<f64> = alike.iter().map(|&text| energies[text]).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(&median) = sorted.get(sorted.len() / 2) else { continue };
        let is_usual = |text: &usize| energies[*text] <= OUTLIER * median;
        for (at, &text) in alike.iter().enumerate().filter(|(_, text)| !is_usual(text)) {
            let (before, after) = (alike[..at].iter().rev(), &alike[at..]);
            if let Some(&other) = before.chain(after).find(|text| is_usual(text)) {
                tokens.copy_within(other * length..(other + 1) * length, text * length);
            }
        }
    }
}

/// The token at quantile `share` of the distribution of the vocabulary that `logits` give.
fn sampled(isa: Isa, vocabulary: &Vocabulary, logits: &[f32], (powers, share): (&mut Vec<f32>, f64)) -> u32 {
    let allowed = vocabulary.allowed();
    powers.clear();
    powers.extend(allowed.iter().map(|&token| logits[token as usize]));
    let most = largest(powers);
    exp_minus(isa, powers, most);
    let sums: Vec<f64> = powers.chunks(RUN).map(sum).collect();
    let mut rest = share * sums.iter().sum::<f64>();
    for ((tokens, powers), sum) in allowed.chunks(RUN).zip(powers.chunks(RUN)).zip(sums) {
        if rest >= sum {
            rest -= sum;
            continue;
        }
        for (&token, &power) in tokens.iter().zip(powers) {
            rest -= f64::from(power);
            if rest < 0.0 {
                return token;
            }
        }
    }
    // Reached through rounding only.
    allowed.last().copied().unwrap_or_default()
}

/// The sum of `values`, of as many partial sums as there are lanes.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        lanes.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_like_no_others_are_replaced_by_neighbours_of_their_place_in_the_window() {
        // Two texts to a window; the second ones have 10 times the energy of the first ones.
        let energies = [5.0, 10.0, 1.0, 99.0, 1.2, 12.0, 7.0, 9.0, 1.1, 11.0];
        let texts = |numbers: [u32; 10]| numbers.iter().flat_map(|&number| [number; TEXT]).collect::<Vec<_>>();
        for first in [0, 7] {
            let mut tokens = texts([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
            replace_outliers(first, TEXT, &energies, &mut tokens);
            assert_eq!(tokens, texts([2, 1, 2, 1, 4, 5, 4, 7, 8, 9]));
        }
        let mut tokens = vec![1, 2];
        replace_outliers(0, WINDOW, &[0.0], &mut tokens);
        assert_eq!(tokens, [1, 2]);
    }
}
