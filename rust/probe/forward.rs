//! Forward passes alone: the logits of windows of any length, in float32 on the weights as they are stored.

use std::ops::Range;

use super::Session;
use super::activations::Activations;
use super::attention::Span;
use super::embedding::embedded;
use super::generate::{TEXT, Texts, generate};
use super::head::{last_states, logits};
use super::layer::LoadedLayer;
use super::run::overflow;
use super::tokens::Seed;
use super::vocabulary::Vocabulary;
use crate::arch::Runnable;
use crate::checkpoint::stream::Pass;
use crate::error::{Error, Result};

/// Texts that are generated together. Their keys and values are in memory.
const TEXTS: usize = 64;

/// A model that is run forward only.
pub(crate) struct Forward<'a> {
    session: Session<'a>,
}

/// Outputs of the final norm, one for each token.
pub(crate) struct States(Activations);

impl States {
    /// The states of all tokens but the last of each window of `window`.
    #[must_use]
    pub(crate) fn predicting(&self, window: usize) -> Self {
        let rows: Vec<usize> = (0..self.0.count()).filter(|row| row % window + 1 < window).collect();
        Self(self.0.picked(&rows))
    }

    /// Number of tokens.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.0.count()
    }
}

impl<'a> Forward<'a> {
    #[must_use]
    pub(crate) fn new(pass: Pass<'a>, model: &'a Runnable<'a>) -> Self {
        Self { session: Session::new(pass, model) }
    }

    #[must_use]
    pub(crate) fn vocabulary(&self) -> usize {
        self.session.model.vocabulary()
    }

    /// Number of multiply-adds so far.
    #[must_use]
    pub(crate) fn multiply_adds(&self) -> u64 {
        self.session.multiply_adds.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The states of `tokens`, which are whole windows of `window` tokens.
    ///
    /// # Errors
    /// [`Error::CannotRun`] if numbers overflow, and those of reading.
    pub(crate) fn states(&self, tokens: &[u32], window: usize) -> Result<States> {
        let span = Span { windows: tokens.len() / window, before: 0, now: window };
        let mut x = embedded(&self.session, tokens, span)?;
        for layer in &self.session.model.layers {
            x = LoadedLayer::new(&self.session, layer, window)?.forward(&x, span, None)?.0;
            if !x.is_finite() {
                return Err(self.named(overflow(&self.session, layer)));
            }
        }
        Ok(States(last_states(&self.session, &x)?))
    }

    /// The logits of the tokens `rows` of `states`: `[token][entry]`.
    ///
    /// # Errors
    /// As [`states`](Self::states).
    pub(crate) fn logits(&self, states: &States, rows: Range<usize>) -> Result<Vec<f32>> {
        let states = Activations { width: states.0.width, values: states.0.slice(rows.start, rows.end).to_vec() };
        let found = logits(&self.session, &states)?;
        if found.is_finite() { Ok(found.values) } else { Err(self.named(self.session.overflow("the head"))) }
    }

    /// `error` with the directory of the checkpoint: several models may be run.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::Unrunnable { model_type, reason } => {
                Error::CannotRun { path: self.session.pass.checkpoint.dir.clone(), model_type, reason }
            }
            error => error,
        }
    }
}

/// `count` tokens that `model` writes: short texts, each from a random token on. They begin with the vocabulary's first
/// token, if there is one, which is not among the tokens. If `written` is false, all tokens are random.
///
/// # Errors
/// Those of reading.
pub(crate) fn write_tokens(
    pass: Pass<'_>,
    model: &Runnable<'_>,
    (seed, written): (Seed, bool),
    count: usize,
) -> Result<Vec<u32>> {
    let vocabulary = &Vocabulary::of(pass.checkpoint, model.vocabulary())?;
    let random: Vec<u32> = (0..count.next_multiple_of(TEXT)).map(|at| seed.token(at, vocabulary.allowed())).collect();
    let mut tokens = Vec::with_capacity(random.len());
    let opening = usize::from(vocabulary.first().is_some());
    let length = TEXT + opening;
    for (batch, random) in random.chunks(TEXTS * TEXT).enumerate() {
        if !written {
            tokens.extend_from_slice(random);
            continue;
        }
        let mut texts: Vec<u32> = random
            .chunks_exact(TEXT)
            .flat_map(|text| vocabulary.first().into_iter().chain(text.iter().copied()))
            .collect();
        let number = batch * TEXTS * length;
        generate(
            pass,
            model,
            &Texts { vocabulary, seed, number, length, given_every: length, without_outliers: false },
            &mut texts,
        )?;
        tokens.extend(texts.chunks_exact(length).flat_map(|text| &text[opening..]));
    }
    tokens.truncate(count);
    Ok(tokens)
}
