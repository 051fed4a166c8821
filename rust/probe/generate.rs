//! Windows that the model writes itself: of each text a token is given, and each of the others is drawn from what the model
//! makes of those before it.
//!
//! Every token that a text grows by takes a pass over all weights, whatever the number of texts. So texts are short, and
//! a window holds several, one after the other, as the documents of a training set are packed.

use super::Session;
use super::attention::Span;
use super::block::{Layer, Past};
use super::embedding::embedded;
use super::head::{head, last_states, logits};
use super::tokens::{WINDOW, unit};
use super::vocabulary::Vocabulary;
use crate::arch::Decoder;
use crate::checkpoint::stream::Pass;
use crate::error::Result;
use crate::progress::Stage;
use crate::simd::Isa;
use crate::simd::math::exp_minus;

/// Tokens of a text.
const TEXT: usize = 32;

/// Lets the model write all but the first tokens of the texts in `tokens`, whole windows of which the first token is number
/// `number` of the run; how many multiplications with additions that took.
pub(super) fn write_on(
    pass: Pass<'_>,
    decoder: &Decoder<'_>,
    vocabulary: &Vocabulary,
    number: usize,
    tokens: &mut [u32],
) -> Result<usize> {
    let mut session = Session::new(pass, decoder);
    session.hold()?;
    let layers = decoder.blocks.iter().map(|block| Ok((Layer::new(&session, block)?, Past::default())));
    let mut layers: Vec<(Layer<'_, '_>, Past)> = layers.collect::<Result<_>>()?;
    let last = head(&session).matrix;
    let bytes = decoder.body_bytes() + last.rows * last.row_bytes();
    pass.progress.begin(Stage::Write, bytes * (TEXT - 1) as u64);
    let texts = tokens.len() / TEXT;
    for position in 0..TEXT - 1 {
        let span = Span { windows: texts, before: position, now: 1 };
        let given: Vec<u32> = tokens.iter().skip(position).step_by(TEXT).copied().collect();
        let mut x = embedded(&session, &given, span)?;
        for (layer, past) in &mut layers {
            x = layer.forward(&x, span, Some(past))?.0;
        }
        // A window's first token, and the one behind it, are given.
        let found = logits(&session, &last_states(&session, &x)?)?;
        for text in 0..texts {
            let at = text * TEXT + position + 1;
            if vocabulary.first().is_none() || at % WINDOW != 1 {
                tokens[at] = sampled(pass.isa, vocabulary, found.row(text), unit(number + at));
            }
        }
    }
    Ok(session.multiply_adds.into_inner() as usize)
}

/// The token at `share` of the distribution that `logits` give the vocabulary.
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
    // Rounding alone leads here: the last one.
    vocabulary.allowed().last().copied().unwrap_or_default()
}
