//! The runs that error feedback needs.
//!
//! The probe ([`probe`]) runs the model forward and back on few tokens. It keeps the gradients of the residual stream after
//! each layer, and measures the conditional importance of every input: what its error costs if the inputs after it make up
//! for what they can. Plans are made with it.
//!
//! The visit ([`visit`]) runs the model forward on many more tokens, one layer after the other, with the kept gradients
//! through each layer for the first of them. After each layer it hands over the factor of each matrix's covariance, and
//! forgets it: memory holds the covariances of one layer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::activations::Activations;
use super::attention::Span;
use super::collector::LayerCollector;
use super::covariance::{FisherTerms, InputSums, fisher_share};
use super::embedding::embedded;
use super::ends::EndSums;
use super::generate::{Texts, generate};
use super::head::last_states;
use super::layer::LoadedLayer;
use super::memory::chunk_windows;
use super::moments::MomentCollector;
use super::run::{self, Manner, Mode, Options, Probe, overflow};
use super::tokens::{self, Seed, WINDOW};
use super::visitor::{Collected, LayerInput, OutputGradients, TokenRows, Visitor, packed, unpacked};
use super::vocabulary::Vocabulary;
use super::{MatrixKey, Session, key};
use crate::arch::{Ffn, Layer, Linear, Runnable};
use crate::checkpoint::stream::Pass;
use crate::codec::feedback::Factor;
use crate::error::Result;
use crate::pool::lock;
use crate::progress::Stage;

/// Tokens with gradients for each token that is asked for.
pub(crate) const GRADIENT_TOKENS: usize = 4;

/// Tokens of the visit for each token with gradients.
pub(crate) const MORE_TOKENS: usize = 4;

/// Tokens of a text that the model writes: a whole window.
const TEXT: usize = WINDOW;

/// Tokens with gradients that an expert must have seen.
const LEAST_GRADIENTS: usize = 32;

/// What the visit needs of the probe's run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Recording {
    tokens: Vec<u32>,
    /// Gradients of the residual stream after each layer, draw after draw.
    gradients: Vec<Activations>,
    mode: Mode,
    seed: Seed,
    ends: EndSums,
}

impl Recording {
    /// Gradients for each recorded token.
    fn draws(&self) -> usize {
        self.gradients.first().map_or(1, |gradients| gradients.count() / self.tokens.len())
    }
}

/// The probe, and what error feedback needs of it.
pub(crate) struct FeedbackProbe {
    pub(crate) probe: Probe,
    /// The conditional importance of the inputs of each matrix, relative to their mean variance.
    pub(crate) importance: BTreeMap<MatrixKey, Vec<f32>>,
    pub(crate) recording: Recording,
}

/// Probes `model`, and records what [`visit`] needs.
///
/// # Errors
/// As [`run::probe`].
pub(crate) fn probe(pass: Pass<'_>, model: &Runnable<'_>, options: Options) -> Result<FeedbackProbe> {
    let options = Options { tokens: GRADIENT_TOKENS * options.tokens, ..options };
    let collector = ImportanceCollector::default();
    let (probe, gradients, ends) =
        run::run(pass, model, options, &collector, Manner { text: TEXT, keeps_gradients: true })?;
    let session = Session::new(pass, model);
    let ends = EndSums::of(&session, &ends, probe.draws)?;
    for (key, factor) in &ends.factors(&session, None)? {
        collector.importance.insert(key.clone(), Some(factor.importance().to_vec()));
    }
    let seed = Seed::of_probe(options.seed);
    let recording = Recording { tokens: probe.tokens.clone(), gradients, mode: probe.mode, seed, ends };
    let probe = Probe { moments: collector.moments.0.into_inner().into_iter().chain(probe.moments).collect(), ..probe };
    let importance = collector.importance.into_inner();
    let importance = importance.into_iter().filter_map(|(key, found)| Some((key, found?))).collect();
    Ok(FeedbackProbe { probe, importance, recording })
}

/// Collects moments and conditional importance.
#[derive(Default)]
struct ImportanceCollector {
    moments: MomentCollector,
    importance: Collected<Option<Vec<f32>>>,
    /// The inputs of the router that was seen last.
    pool: Mutex<Option<(MatrixKey, InputSums)>>,
}

impl Visitor for ImportanceCollector {
    fn gradients(
        &self,
        session: &Session<'_>,
        input: LayerInput<'_, '_>,
        layers: &[OutputGradients<'_, '_>],
    ) -> Result<()> {
        self.moments.gradients(session, input, layers)?;
        let mut pool = lock(&self.pool);
        let pooled = input.pool.and_then(|router| pool.as_ref().filter(|(of, _)| *of == key(&router)));
        let sums = match (input.rows, pooled) {
            (TokenRows::All, _) => {
                let mut sums = InputSums::zeros(input.x.width);
                sums.add(session, input.x, input.rows)?;
                sums
            }
            (TokenRows::Routed(tokens), Some((_, sums))) if tokens.len() >= LEAST_GRADIENTS => sums.clone(),
            (TokenRows::Routed(_), _) => return Ok(()),
        };
        if let [(linear, _)] = layers
            && is_router(session.model, linear)
        {
            *pool = Some((key(linear), sums.clone()));
        }
        let share = fisher_share(input.rows, input.x.count());
        let mut sums = Some(sums);
        for (at, (linear, gradients)) in layers.iter().enumerate() {
            let mut fisher = FisherTerms::default();
            fisher.add(session, input.x, input.rows, gradients)?;
            // The last matrix needs no copy.
            let own = if at + 1 == layers.len() { sums.take() } else { sums.clone() };
            let Some(a) = own.map(|own| own.with(session, input.x, fisher, share)).transpose()?.flatten() else {
                continue;
            };
            if let Some(factor) = Factor::of(session.compute(), a)? {
                self.importance.change(linear, |found| *found = Some(factor.importance().to_vec()));
            }
        }
        Ok(())
    }

    fn drain(&self) -> Result<Vec<u8>> {
        packed(&(self.moments.drain()?, self.importance.drain()?))
    }

    fn restore(&self, drained: &[u8]) -> Result<()> {
        let (moments, importance): (Vec<u8>, Vec<u8>) = unpacked(drained)?;
        self.moments.restore(&moments)?;
        self.importance.restore(&importance)
    }
}

/// Whether `linear` is the router of a mixture.
fn is_router(model: &Runnable<'_>, linear: &Linear<'_>) -> bool {
    let is_it = |layer: &Layer<'_>| match &layer.ffn {
        Ffn::Dense(_) => false,
        Ffn::Mixture(experts) => key(&experts.router) == key(linear),
    };
    model.layers.iter().any(is_it)
}

/// The bytes that a visit counts besides those of the layers, and whether it is to find the factor of a matrix.
pub(crate) type Wanted<'w> = (u64, &'w dyn Fn(&Linear<'_>) -> bool);

/// Runs `model` forward on the recorded windows and on those that follow. Calls `each` with every matrix of a layer that tokens
/// went through, then with embedding and head, and the factor of its covariance; `None` if that says nothing. Passes over
/// layers without a wanted matrix.
///
/// # Errors
/// As [`run::probe`], and those of `each`.
pub(crate) fn visit(
    (pass, model): (Pass<'_>, &Runnable<'_>),
    recording: &Recording,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(Linear<'_>, Option<&Factor>) -> Result<()>,
) -> Result<()> {
    visit_by(chunk_windows(model, recording.draws()), (pass, model), recording, wanted, each)
}

/// [`visit`] with `step` windows at a time, which does not change what it finds.
pub(crate) fn visit_by(
    step: usize,
    (pass, model): (Pass<'_>, &Runnable<'_>),
    recording: &Recording,
    (more_bytes, is_wanted): Wanted<'_>,
    each: &mut dyn FnMut(Linear<'_>, Option<&Factor>) -> Result<()>,
) -> Result<()> {
    let tokens = pass.journal.once("feedback/tokens", || written(pass, model, recording))?;
    let recorded = recording.tokens.len() / WINDOW;
    let chunks = chunks(recorded, tokens.len() / WINDOW, step);
    let with_gradients = chunks.iter().filter(|chunk| chunk.end <= recorded).count();
    let passes = (chunks.len() + with_gradients) as u64;
    pass.progress.begin(Stage::Feedback, passes * model.body_bytes() + more_bytes);
    let plain = Session::new(pass, model);
    let mut streams = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        streams.push(embedded(&plain, &tokens[chunk.start * WINDOW..chunk.end * WINDOW], span(chunk))?);
    }
    for (layer, gradients) in model.layers.iter().zip(&recording.gradients) {
        let collector = LayerCollector::default();
        let is_seen = layer.linears().iter().any(is_wanted);
        let session = Session { visitor: is_seen.then_some(&collector as _), ..Session::new(pass, model) };
        let loaded = LoadedLayer::new(&session, layer, WINDOW)?;
        for (chunk, stream) in chunks.iter().zip(&mut streams) {
            let (next, trace) = loaded.forward(stream, span(chunk), None)?;
            if !next.is_finite() {
                return Err(overflow(&session, layer));
            }
            if is_seen && chunk.end <= recorded {
                loaded.back(stream, span(chunk), &trace, &of_windows(gradients, recorded, chunk))?;
            }
            *stream = next;
        }
        drop(loaded);
        if is_seen {
            collector.hand_over(&plain, layer, each)?;
        }
    }
    let ends: Vec<Linear<'_>> =
        [Some(model.embedding), model.own_head].into_iter().flatten().filter(is_wanted).collect();
    if ends.is_empty() {
        return Ok(());
    }
    let mut states = InputSums::zeros(model.width());
    for stream in &streams {
        states.add(&plain, &last_states(&plain, stream)?, TokenRows::All)?;
    }
    let factors = recording.ends.factors(&plain, Some(&states))?;
    for linear in ends {
        each(linear, factors.get(&key(&linear)))?;
    }
    Ok(())
}

/// The windows `0..all` in chunks of at most `step`. None has windows on both sides of `recorded`.
fn chunks(recorded: usize, all: usize, step: usize) -> Vec<Range<usize>> {
    let cut = |windows: Range<usize>| {
        let end = windows.end;
        windows.step_by(step).map(move |from| from..(from + step).min(end))
    };
    cut(0..recorded).chain(cut(recorded..all)).collect()
}

/// The gradients of the windows `which`, of those of `recorded` windows: draw after draw.
fn of_windows(gradients: &Activations, recorded: usize, which: &Range<usize>) -> Activations {
    let mut values = Vec::with_capacity(gradients.values.len() / recorded * which.len());
    for first in (0..gradients.count()).step_by(recorded * WINDOW) {
        values.extend_from_slice(gradients.slice(first + which.start * WINDOW, first + which.end * WINDOW));
    }
    Activations { width: gradients.width, values }
}

fn span(windows: &Range<usize>) -> Span {
    Span { windows: windows.len(), before: 0, now: WINDOW }
}

/// The recorded tokens, and those that follow.
fn written(pass: Pass<'_>, model: &Runnable<'_>, recording: &Recording) -> Result<Vec<u32>> {
    let vocabulary = Vocabulary::of(pass.checkpoint, model.vocabulary())?;
    let mut all = recording.tokens.clone();
    let recorded = all.len() / WINDOW;
    let mut tokens = tokens::windows(&vocabulary, recording.seed, recorded, recorded * (MORE_TOKENS - 1));
    if recording.mode == Mode::Written {
        let texts = Texts::of_windows(&vocabulary, recording.seed, all.len(), TEXT);
        generate(pass, model, &texts, &mut tokens)?;
    }
    all.extend(tokens);
    Ok(all)
}
