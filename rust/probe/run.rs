//! The order of a run: tokens, forward, the head, back.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::activations::Activations;
use super::attention::Span;
use super::embedding::embedded;
use super::generate::generate;
use super::head::{LogitTrace, back_through_head, visited_bytes};
use super::layer::{LayerTrace, LoadedLayer};
use super::moments::Moments;
use super::tokens::{self, WINDOW};
use super::vocabulary::Vocabulary;
use super::{MatrixKey, Session};
use crate::arch::{Layer, Runnable};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, View};
use crate::error::{Error, Result};
use crate::pass::energy;
use crate::progress::Stage;

/// Tokens that every expert should have seen.
pub(crate) const EXPERT_TOKENS: u64 = 16;

/// More tokens than requested are drawn until every expert has seen [`EXPERT_TOKENS`], up to this multiple.
const MOST_DRAWN: usize = 8;

/// The first tokens of a window: they have little context, and an error in one of them affects many later ones.
const BEGINNING: usize = 8;

/// Assumed length of a text in windows: a text has one beginning, and so has every window.
const LONGER: f64 = 8.0;

/// Bytes of weights up to which a model writes its windows by default. In larger models, reading the weights again for
/// every token of a text takes longer than the rest of the probe.
pub(crate) const WRITTEN_BYTES: u64 = 16 << 30;

/// Where the tokens of a window come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Written by the model, unless it is larger than `WRITTEN_BYTES`.
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
    /// Number of tokens, rounded up to whole windows.
    pub tokens: usize,
    /// Where the tokens come from.
    pub mode: Mode,
    /// Random gradients for each token.
    pub draws: usize,
    /// Whether to keep the logits and the gradients at them.
    pub seeing: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { tokens: 512, mode: Mode::Auto, draws: 1, seeing: false }
    }
}

impl Options {
    /// The same options with the mode that [`Mode::Auto`] stands for.
    #[must_use]
    pub fn of(self, model: &Runnable<'_>) -> Self {
        let mode = match self.mode {
            Mode::Auto if model.body_bytes() <= WRITTEN_BYTES => Mode::Written,
            Mode::Auto => Mode::Random,
            mode => mode,
        };
        Self { mode, ..self }
    }
}

/// What a run has measured.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The moments of every matrix that tokens were multiplied with: of the embedding only where it is the head, too.
    pub(crate) moments: BTreeMap<MatrixKey, Moments>,
    /// Of the embedding as a table: for each channel the squares of the gradients, summed over tokens and draws, and those
    /// of the windows' first tokens separately; weighted as if windows were parts of longer texts.
    pub(crate) lookups: [Vec<f64>; 2],
    /// The tokens that may be drawn.
    pub(crate) vocabulary: Vocabulary,
    /// The tokens that the model was run on, window after window.
    pub tokens: Vec<u32>,
    /// Where the tokens come from; never [`Mode::Auto`].
    pub(crate) mode: Mode,
    /// Random gradients for each token.
    pub(crate) draws: usize,
    /// Tokens of each expert, by layer.
    pub(crate) loads: BTreeMap<usize, Vec<u64>>,
    /// Multiply-adds.
    pub multiply_adds: u64,
    /// The logits and the gradients at them, if they were asked for.
    pub(crate) trace: Option<LogitTrace>,
}

/// Runs `model` on tokens of its own vocabulary.
///
/// # Errors
/// [`Error::Unrunnable`] if its numbers overflow, [`Error::NonFinite`], and those of reading.
pub fn probe(pass: Pass<'_>, model: &Runnable<'_>, options: Options) -> Result<Probe> {
    let options = options.of(model);
    let vocabulary = Vocabulary::of(pass.checkpoint, model.vocabulary())?;
    let session = Session::new(pass, model);
    let mut run = Run::new(&session, &vocabulary, options);
    let asked = options.tokens.div_ceil(WINDOW).max(1);
    run.forward(asked)?;
    while run.windows() < MOST_DRAWN * asked && run.least_load().is_some_and(|least| least < EXPERT_TOKENS) {
        run.forward(run.windows())?;
    }
    let (lookups, trace) = run.back()?;
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
        trace,
    })
}

/// A run under way.
struct Run<'s, 'a> {
    session: &'s Session<'a>,
    vocabulary: &'s Vocabulary,
    options: Options,
    tokens: Vec<u32>,
    /// The residual stream before each layer.
    inputs: Vec<Activations>,
    /// The residual stream after the last layer.
    output: Activations,
    /// What layers remember of their forward pass, as far as memory allows.
    traces: BTreeMap<usize, LayerTrace<'a>>,
    loads: BTreeMap<usize, Vec<u64>>,
}

impl<'s, 'a> Run<'s, 'a> {
    fn new(session: &'s Session<'a>, vocabulary: &'s Vocabulary, options: Options) -> Self {
        let output = Activations { width: session.model.width(), values: Vec::new() };
        let inputs = vec![output.clone(); session.model.layers.len()];
        let (tokens, traces, loads) = Default::default();
        Self { session, vocabulary, options, tokens, inputs, output, traces, loads }
    }

    fn windows(&self) -> usize {
        self.tokens.len() / WINDOW
    }

    /// Tokens of the expert that saw the fewest, if there are experts.
    fn least_load(&self) -> Option<u64> {
        self.loads.values().flatten().copied().min()
    }

    /// Runs the model on `count` more windows.
    fn forward(&mut self, count: usize) -> Result<()> {
        let Session { pass, model, .. } = *self.session;
        let again = !self.tokens.is_empty();
        // A trace is of the windows of one call. After a second call none is of all windows.
        self.traces.clear();
        let mut tokens = tokens::windows(self.vocabulary, self.windows(), count);
        if self.options.mode == Mode::Written {
            let multiply_adds = generate(pass, model, self.vocabulary, self.tokens.len(), &mut tokens)?;
            self.session.count(multiply_adds);
        }
        pass.progress.begin(Stage::Probe, model.body_bytes());
        let span = Span { windows: count, before: 0, now: WINDOW };
        let mut x = embedded(self.session, &tokens, span)?;
        self.tokens.extend(tokens);
        for (layer, input) in model.layers.iter().zip(&mut self.inputs) {
            input.values.extend_from_slice(&x.values);
            let (next, trace) = LoadedLayer::new(self.session, layer)?.forward(&x, span, None)?;
            if !next.is_finite() {
                return Err(overflow(self.session, layer));
            }
            x = next;
            if let Some(found) = trace.loads() {
                let loads = self.loads.entry(layer.index).or_insert_with(|| vec![0; found.len()]);
                loads.iter_mut().zip(found).for_each(|(sum, found)| *sum += found);
            }
            // The last layers whose traces fit in memory together, as if all were as large as this one.
            let remaining = trace.bytes() as u64 * (model.layers.len() - layer.index) as u64;
            if !again && remaining <= pass.held_bytes {
                self.traces.insert(layer.index, trace);
            }
        }
        self.output.values.extend_from_slice(&x.values);
        Ok(())
    }

    /// Goes back through the model: the squares of the gradients at the embedding, and the logits if they were asked for.
    fn back(&mut self) -> Result<([Vec<f64>; 2], Option<LogitTrace>)> {
        let Session { pass, model, .. } = *self.session;
        let span = Span { windows: self.windows(), before: 0, now: WINDOW };
        let again = |layer: &&Layer<'_>| !self.traces.contains_key(&layer.index);
        let forward: u64 = model.layers.iter().filter(again).map(Layer::bytes).sum();
        let of_head = visited_bytes(self.session, span.count());
        pass.progress.begin(Stage::Gradients, model.body_bytes() + forward + of_head);
        let found = back_through_head(self.session, &self.output, self.options.draws, self.options.seeing)?;
        self.session.add_moments(&model.head(), &found.moments);
        let mut gradients = found.stream;
        for (layer, x) in model.layers.iter().zip(std::mem::take(&mut self.inputs)).rev() {
            let loaded = LoadedLayer::new(self.session, layer)?;
            let trace = match self.traces.remove(&layer.index) {
                Some(trace) => trace,
                None => loaded.forward(&x, span, None)?.1,
            };
            gradients = loaded.back(&x, span, &trace, &gradients)?;
            if !gradients.is_finite() {
                return Err(overflow(self.session, layer));
            }
        }
        let scale = model.conventions.embedding_scale;
        let mut lookups = [vec![0.0; gradients.width], vec![0.0; gradients.width]];
        for row in 0..gradients.count() {
            let is_first = row.is_multiple_of(WINDOW) && self.vocabulary.first().is_some();
            let share = share_of_text(row % WINDOW);
            for (sum, &gradient) in lookups[usize::from(is_first)].iter_mut().zip(gradients.row(row)) {
                let gradient = scale * f64::from(gradient);
                *sum += share * gradient * gradient;
            }
        }
        Ok((lookups, found.trace))
    }
}

/// The error for a layer whose output is not finite: of its weights if one of them is not, else an overflow.
fn overflow(session: &Session<'_>, layer: &Layer<'_>) -> Error {
    let checkpoint = session.pass.checkpoint;
    let views = layer.linears().into_iter().filter_map(|linear| linear.view(checkpoint));
    let matrices: Vec<(View, Matrix)> = views.filter_map(|view| Some((view, view.matrix(checkpoint)?))).collect();
    let ones: Vec<Vec<f32>> = matrices.iter().map(|(view, _)| vec![1.0; view.cols as usize]).collect();
    let asks: Vec<energy::EnergyJob<'_>> =
        matrices.iter().zip(&ones).map(|(&(view, matrix), k)| energy::EnergyJob { view, matrix, k }).collect();
    let place = format!("layer {}", layer.index);
    energy::energies(session.pass, &asks).err().unwrap_or_else(|| session.overflow(&place))
}

/// The weight of position `position` of a window, 1 on average: beginnings are rarer in texts than in windows.
fn share_of_text(position: usize) -> f64 {
    let all = BEGINNING as f64 / LONGER + (WINDOW - BEGINNING) as f64;
    let here = if position < BEGINNING { 1.0 / LONGER } else { 1.0 };
    here * WINDOW as f64 / all
}
