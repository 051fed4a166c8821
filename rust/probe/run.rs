//! The order of a run: tokens, forward, the head, back.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::attention::Span;
use super::block::{Layer, Trace};
use super::embedding::embedded;
use super::generate::write_on;
use super::head::{Seen, ends};
use super::moments::Moments;
use super::rows::Rows;
use super::tokens::{self, WINDOW};
use super::vocabulary::Vocabulary;
use super::{Key, Session};
use crate::arch::{Block, Decoder};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, View};
use crate::error::{Error, Result};
use crate::pass::energy;
use crate::progress::Stage;

/// Tokens that every expert should have seen.
pub const EXPERT_TOKENS: u64 = 16;

/// More tokens than asked for are drawn until they have, but at most so many times as many.
const MOST_DRAWN: usize = 8;

/// The first tokens of a window, behind which little has been said yet: an error in one of them reaches far.
const BEGINNING: usize = 8;

/// How many times as long as a window texts are, which have but one beginning.
const LONGER: f64 = 8.0;

/// Bytes of weights up to which a model writes its windows, unless it is told otherwise: beyond, reading the weights again
/// for every token of a text takes longer than all the rest.
pub const WRITTEN_BYTES: u64 = 16 << 30;

/// Where the tokens of a window come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Written by the model, unless it is larger than [`WRITTEN_BYTES`].
    #[default]
    Auto,
    /// All of them from the fixed generator.
    Random,
    /// The first few; the model writes the rest by itself.
    #[serde(rename = "self")]
    Written,
}

/// How a model is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How many tokens, rounded up to whole windows.
    pub tokens: usize,
    /// Where they come from.
    pub mode: Mode,
    /// Random gradients for each.
    pub draws: usize,
    /// Whether to keep what is seen at the logits.
    pub seeing: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { tokens: 512, mode: Mode::Auto, draws: 1, seeing: false }
    }
}

impl Options {
    /// The same with a mode that is one for `decoder`.
    #[must_use]
    pub fn of(self, decoder: &Decoder<'_>) -> Self {
        let mode = match self.mode {
            Mode::Auto if decoder.body_bytes() <= WRITTEN_BYTES => Mode::Written,
            Mode::Auto => Mode::Random,
            mode => mode,
        };
        Self { mode, ..self }
    }
}

/// What a run has found.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The moments of every matrix that tokens went through, but the embedding as it is looked up.
    pub moments: BTreeMap<Key, Moments>,
    /// Of the embedding as it is looked up: for each channel the squares of the gradients there, added up over tokens and
    /// draws, those of the windows' first tokens apart; weighed as if the windows were parts of longer texts.
    pub lookups: [Vec<f64>; 2],
    /// What the tokens were drawn from.
    pub vocabulary: Vocabulary,
    /// Tokens that went through, window after window.
    pub tokens: Vec<u32>,
    /// Where they are from; never [`Mode::Auto`].
    pub mode: Mode,
    /// Random gradients for each.
    pub draws: usize,
    /// Tokens of each expert, by layer.
    pub loads: BTreeMap<usize, Vec<u64>>,
    /// Multiplications with additions.
    pub multiply_adds: u64,
    /// What was seen at the logits, if it was asked for.
    pub seen: Option<Seen>,
}

/// Runs `decoder` on tokens of its own vocabulary.
///
/// # Errors
/// [`Error::Unrunnable`] if its numbers overflow, [`Error::NonFinite`], and those of reading.
pub fn probe(pass: Pass<'_>, decoder: &Decoder<'_>, options: Options) -> Result<Probe> {
    let options = options.of(decoder);
    let vocabulary = Vocabulary::of(pass.checkpoint, decoder.vocabulary())?;
    let session = Session::new(pass, decoder);
    let mut run = Run::new(&session, &vocabulary, options);
    let asked = options.tokens.div_ceil(WINDOW).max(1);
    run.forward(asked)?;
    while run.windows() < MOST_DRAWN * asked && run.least_load().is_some_and(|least| least < EXPERT_TOKENS) {
        run.forward(run.windows())?;
    }
    let (lookups, seen) = run.back()?;
    let Run { tokens, loads, .. } = run;
    let Session { multiply_adds, moments, .. } = session;
    Ok(Probe {
        moments: moments.into_inner().unwrap_or_else(PoisonError::into_inner),
        lookups,
        vocabulary,
        tokens,
        mode: options.mode,
        draws: options.draws,
        loads,
        multiply_adds: multiply_adds.into_inner(),
        seen,
    })
}

/// A run under way.
struct Run<'s, 'a> {
    session: &'s Session<'a>,
    vocabulary: &'s Vocabulary,
    options: Options,
    tokens: Vec<u32>,
    /// What goes into each layer, and then what comes out of the last.
    streams: Vec<Rows>,
    /// What layers remember, if it is held.
    traces: BTreeMap<usize, Trace>,
    loads: BTreeMap<usize, Vec<u64>>,
}

impl<'s, 'a> Run<'s, 'a> {
    fn new(session: &'s Session<'a>, vocabulary: &'s Vocabulary, options: Options) -> Self {
        let streams =
            vec![Rows { width: session.decoder.width(), values: Vec::new() }; session.decoder.blocks.len() + 1];
        let (tokens, traces, loads) = Default::default();
        Self { session, vocabulary, options, tokens, streams, traces, loads }
    }

    fn windows(&self) -> usize {
        self.tokens.len() / WINDOW
    }

    /// Tokens of the expert that saw the fewest, if there are experts.
    fn least_load(&self) -> Option<u64> {
        self.loads.values().flatten().copied().min()
    }

    /// Draws `count` more windows, and goes through the model with them.
    fn forward(&mut self, count: usize) -> Result<()> {
        let Session { pass, decoder, .. } = *self.session;
        let again = !self.tokens.is_empty();
        // Layers remember one run's windows, not those of several.
        self.traces.clear();
        let mut tokens = tokens::windows(self.vocabulary, self.windows(), count);
        if self.options.mode == Mode::Written {
            let steps = write_on(pass, decoder, self.vocabulary, self.tokens.len(), &mut tokens)?;
            self.session.count(steps);
        }
        pass.progress.begin(Stage::Probe, decoder.body_bytes());
        let span = Span { windows: count, before: 0, now: WINDOW };
        let mut x = embedded(self.session, &tokens, span)?;
        self.tokens.extend(tokens);
        for (index, block) in decoder.blocks.iter().enumerate() {
            self.streams[index].values.extend_from_slice(&x.values);
            let (next, trace) = Layer::new(self.session, block)?.forward(&x, span, None)?;
            if !next.is_finite() {
                return Err(overflow(self.session, block));
            }
            x = next;
            if let Some(found) = trace.loads() {
                let loads = self.loads.entry(index).or_insert_with(|| vec![0; found.len()]);
                loads.iter_mut().zip(found).for_each(|(sum, found)| *sum += found);
            }
            // As many layers as fit, from the last one on.
            let like_it = trace.bytes() as u64 * (decoder.blocks.len() - index) as u64;
            if !again && like_it <= self.session.pass.held_bytes {
                self.traces.insert(index, trace);
            }
        }
        self.streams[decoder.blocks.len()].values.extend_from_slice(&x.values);
        Ok(())
    }

    /// Goes back through the model; squares of the gradients at the embedding, of first tokens apart, and what was seen.
    fn back(&mut self) -> Result<([Vec<f64>; 2], Option<Seen>)> {
        let Session { pass, decoder, .. } = *self.session;
        let span = Span { windows: self.windows(), before: 0, now: WINDOW };
        let again = |index: &usize| !self.traces.contains_key(index);
        let forward: u64 = (0..decoder.blocks.len()).filter(again).map(|at| decoder.blocks[at].bytes()).sum();
        let of_head = super::head::visited_bytes(self.session, span.count());
        pass.progress.begin(Stage::Gradients, decoder.body_bytes() + forward + of_head);
        let last = self.streams.pop().ok_or_else(|| Error::Bug("nothing came out of the model".to_owned()))?;
        let found = ends(self.session, &last, self.options.draws, self.options.seeing)?;
        self.session.take(&super::head::head(self.session), &found.moments);
        let mut gradients = found.stream;
        for block in decoder.blocks.iter().rev() {
            let x = self.streams.pop().ok_or_else(|| Error::Bug("a layer saw nothing".to_owned()))?;
            let layer = Layer::new(self.session, block)?;
            let trace = match self.traces.remove(&block.index) {
                Some(trace) => trace,
                None => layer.forward(&x, span, None)?.1,
            };
            gradients = layer.back(&x, span, &trace, &gradients)?;
            if !gradients.is_finite() {
                return Err(overflow(self.session, block));
            }
        }
        let scale = decoder.conventions.embedding_scale;
        let mut lookups = [vec![0.0; gradients.width], vec![0.0; gradients.width]];
        for row in 0..gradients.count() {
            let is_first = row.is_multiple_of(WINDOW) && self.vocabulary.first().is_some();
            let share = share_of_text(row % WINDOW);
            for (sum, &gradient) in lookups[usize::from(is_first)].iter_mut().zip(gradients.row(row)) {
                let gradient = scale * f64::from(gradient);
                *sum += share * gradient * gradient;
            }
        }
        Ok((lookups, found.seen))
    }
}

/// Why the numbers behind a layer are none: the weights, or what they do.
fn overflow(session: &Session<'_>, block: &Block<'_>) -> Error {
    let checkpoint = session.pass.checkpoint;
    let views: Vec<View> = block.linears().iter().filter_map(|linear| linear.view(checkpoint)).collect();
    let matrices: Vec<(View, Matrix)> =
        views.into_iter().filter_map(|view| Some((view, view.matrix(checkpoint)?))).collect();
    let ones: Vec<Vec<f32>> = matrices.iter().map(|(view, _)| vec![1.0; view.cols as usize]).collect();
    let asks: Vec<energy::EnergyJob<'_>> =
        matrices.iter().zip(&ones).map(|(&(view, matrix), k)| energy::EnergyJob { view, matrix, k }).collect();
    let place = format!("layer {}", block.index);
    energy::energies(session.pass, &asks).err().unwrap_or_else(|| session.overflow(&place))
}

/// The weight of what stands at `position` of a window, 1 on average: beginnings are rarer in a text than in windows.
fn share_of_text(position: usize) -> f64 {
    let all = BEGINNING as f64 / LONGER + (WINDOW - BEGINNING) as f64;
    let here = if position < BEGINNING { 1.0 / LONGER } else { 1.0 };
    here * WINDOW as f64 / all
}
