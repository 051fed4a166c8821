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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::activations::Activations;
use super::attention::Span;
use super::covariance::{DAMPING, FISHER_SHARE, FisherTerms, InputSums};
use super::embedding::embedded;
use super::generate::{Texts, generate};
use super::layer::LoadedLayer;
use super::moments::MomentCollector;
use super::run::{self, Ends, Manner, Mode, Options, Probe, overflow};
use super::tokens::{self, Seed, WINDOW};
use super::visitor::{Collected, LayerInput, OutputGradients, TokenRows, Visitor};
use super::vocabulary::Vocabulary;
use super::{MatrixKey, Session, key};
use crate::arch::{Layer, Linear, Runnable};
use crate::checkpoint::stream::Pass;
use crate::codec::feedback::Factor;
use crate::error::Result;
use crate::matmul::symmetric::SymmetricMatrix;
use crate::progress::Stage;

/// Tokens with gradients for each token that is asked for.
pub(crate) const GRADIENT_TOKENS: usize = 4;

/// Tokens of the visit for each token with gradients.
pub(crate) const MORE_TOKENS: usize = 4;

/// Tokens of a text that the model writes: a whole window.
const TEXT: usize = WINDOW;

/// Windows that pass through a layer together.
const CHUNK_WINDOWS: usize = 32;

/// Tokens that an expert must have seen: with fewer its covariance says nothing.
const LEAST_TOKENS: usize = 64;

/// Tokens with gradients that an expert must have seen.
const LEAST_GRADIENTS: usize = 32;

/// An expert's covariance counts like that of all experts together at this many tokens for each input.
const POOL_TOKENS: f64 = 1.0;

/// The Fisher term of an expert counts half at this many tokens with gradients.
const HALF_FISHER: f64 = 256.0;

/// What the visit needs of the probe's run.
pub(crate) struct Recording {
    tokens: Vec<u32>,
    /// Gradients of the residual stream after each layer, draw after draw.
    gradients: Vec<Activations>,
    mode: Mode,
    seed: Seed,
    /// The metrics of embedding and head.
    ends: BTreeMap<MatrixKey, Factor>,
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
    let ends = factors(&Session::new(pass, model), &ends, probe.draws)?;
    for (key, factor) in &ends {
        collector.importance.insert(key.clone(), Some(factor.importance().to_vec()));
    }
    let seed = Seed::of_probe(options.seed);
    let recording = Recording { tokens: probe.tokens.clone(), gradients, mode: probe.mode, seed, ends };
    let probe = Probe { moments: collector.moments.0.into_inner().into_iter().chain(probe.moments).collect(), ..probe };
    let importance = collector.importance.into_inner();
    let importance = importance.into_iter().filter_map(|(key, found)| Some((key, found?))).collect();
    Ok(FeedbackProbe { probe, importance, recording })
}

/// The metrics of embedding and head. A tied embedding has the sum of both: its rows are inputs and outputs.
fn factors(session: &Session<'_>, ends: &Ends, draws: usize) -> Result<BTreeMap<MatrixKey, Factor>> {
    let model = session.model;
    let mut sums: BTreeMap<MatrixKey, SymmetricMatrix> = BTreeMap::new();
    // The inputs of the head are expectations over draws; gradients were drawn.
    for (linear, rows, weight) in [(model.head(), &ends.head, draws as f32), (model.embedding, &ends.embedding, 1.0)] {
        if linear.matrix.cols as usize != rows.width {
            continue;
        }
        let scaled: Vec<f32> = rows.values.iter().map(|value| weight * value).collect();
        let sum = sums.entry(key(&linear)).or_insert_with(|| SymmetricMatrix::zeros(rows.width));
        sum.add_products(session.compute(), &scaled, &rows.values)?;
    }
    let mut factors = BTreeMap::new();
    for (key, mut a) in sums {
        let mean = a.diagonal().iter().sum::<f32>() / a.order() as f32;
        if mean <= 0.0 || !mean.is_finite() {
            continue;
        }
        a.for_each_row(|at, row| {
            for value in row.iter_mut() {
                *value /= mean;
            }
            // In proportion: a few channels are massive, and a damping relative to the mean would drown the others.
            row[at] *= 1.0 + DAMPING;
        });
        if let Some(factor) = Factor::of(session.compute(), a)? {
            factors.insert(key, factor);
        }
    }
    Ok(factors)
}

/// Bytes that [`visit`] holds of the residual stream and of the covariances of the widest layer, if the probe was asked for
/// `tokens` tokens.
#[must_use]
pub(crate) fn held_bytes(model: &Runnable<'_>, tokens: u64) -> u64 {
    let order = |linear: &Linear<'_>| linear.inputs() as u64;
    // Half of a matrix of `f32` each, as if no two layers had the same input: that makes up for copies.
    let of_layer = |layer: &Layer<'_>| layer.linears().iter().map(|linear| 2 * order(linear) * order(linear)).sum();
    let covariances: u64 = model.layers.iter().map(of_layer).max().unwrap_or(0);
    let all = tokens * (GRADIENT_TOKENS * MORE_TOKENS) as u64;
    covariances + 4 * all * model.width() as u64
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
        let share = fisher_share(input.rows);
        for (linear, gradients) in layers {
            let fisher = FisherTerms::of(session, input.x, input.rows, gradients)?;
            let Some(a) = sums.clone().with(session, input.x, &fisher, share)? else { continue };
            if let Some(factor) = Factor::of(session.compute(), a)? {
                self.importance.change(linear, |found| *found = Some(factor.importance().to_vec()));
            }
        }
        if let [(linear, _)] = layers
            && matches!(input.rows, TokenRows::All)
        {
            *pool = Some((key(linear), sums));
        }
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `α` for these rows.
fn fisher_share(rows: TokenRows<'_>) -> f32 {
    match rows {
        TokenRows::All => FISHER_SHARE,
        TokenRows::Routed(tokens) => {
            let count = tokens.len() as f64;
            FISHER_SHARE * (count / (count + HALF_FISHER)) as f32
        }
    }
}

/// Runs `model` forward on `windows` windows, the recorded ones first. Calls `each` with every matrix of a layer that tokens
/// went through, and the factor of its covariance; `None` if that says nothing.
///
/// # Errors
/// As [`run::probe`], and those of `each`.
pub(crate) fn visit(
    pass: Pass<'_>,
    model: &Runnable<'_>,
    recording: &Recording,
    more_bytes: u64,
    each: &mut dyn FnMut(Linear<'_>, Option<&Factor>) -> Result<()>,
) -> Result<()> {
    let tokens = written(pass, model, recording)?;
    let recorded = recording.tokens.len() / WINDOW;
    let mut chunks: Vec<Range<usize>> = std::iter::once(0..recorded).collect();
    chunks.extend(
        (recorded..tokens.len() / WINDOW)
            .step_by(CHUNK_WINDOWS)
            .map(|from| from..(from + CHUNK_WINDOWS).min(tokens.len() / WINDOW)),
    );
    let passes = chunks.len() as u64 + 1;
    pass.progress.begin(Stage::Feedback, passes * model.body_bytes() + more_bytes);
    for linear in [Some(model.embedding), model.own_head].into_iter().flatten() {
        each(linear, recording.ends.get(&key(&linear)))?;
    }
    let embedding = Session::new(pass, model);
    let mut streams = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        streams.push(embedded(&embedding, &tokens[chunk.start * WINDOW..chunk.end * WINDOW], span(chunk))?);
    }
    for (layer, gradients) in model.layers.iter().zip(&recording.gradients) {
        let collector = LayerCollector::default();
        let session = Session { visitor: Some(&collector), ..Session::new(pass, model) };
        let loaded = LoadedLayer::new(&session, layer, WINDOW)?;
        for (at, (chunk, stream)) in chunks.iter().zip(&mut streams).enumerate() {
            let (next, trace) = loaded.forward(stream, span(chunk), None)?;
            if !next.is_finite() {
                return Err(overflow(&session, layer));
            }
            if at == 0 {
                loaded.back(stream, span(chunk), &trace, gradients)?;
            }
            *stream = next;
        }
        drop(loaded);
        hand_over(
            &Session::new(pass, model),
            layer,
            collector.0.into_inner().unwrap_or_else(PoisonError::into_inner),
            each,
        )?;
    }
    Ok(())
}

fn span(windows: &Range<usize>) -> Span {
    Span { windows: windows.len(), before: 0, now: WINDOW }
}

/// The recorded tokens, and those that follow.
fn written(pass: Pass<'_>, model: &Runnable<'_>, recording: &Recording) -> Result<Vec<u32>> {
    let vocabulary = Vocabulary::of(pass.checkpoint, model.vocabulary())?;
    let mut all = recording.tokens.clone();
    let recorded = all.len() / WINDOW;
    for first in (recorded..recorded * MORE_TOKENS).step_by(CHUNK_WINDOWS) {
        let count = CHUNK_WINDOWS.min(recorded * MORE_TOKENS - first);
        let mut tokens = tokens::windows(&vocabulary, recording.seed, first, count);
        if recording.mode == Mode::Written {
            let texts = Texts::of_windows(&vocabulary, recording.seed, first * WINDOW, TEXT);
            generate(pass, model, &texts, &mut tokens)?;
        }
        all.extend(tokens);
    }
    Ok(all)
}

/// What was seen of one layer.
#[derive(Default)]
struct LayerSeen {
    /// `H` by the first matrix that has the input.
    sums: BTreeMap<MatrixKey, InputSums>,
    /// For each matrix the key of its `H`.
    input_of: BTreeMap<MatrixKey, MatrixKey>,
    /// Tokens that went to each matrix of an expert.
    routed: BTreeMap<MatrixKey, usize>,
    gradients: BTreeMap<MatrixKey, SeenGradients>,
}

struct SeenGradients {
    x: Arc<Activations>,
    fisher: FisherTerms,
    share: f32,
}

#[derive(Default)]
struct LayerCollector(Mutex<LayerSeen>);

impl Visitor for LayerCollector {
    fn inputs(&self, session: &Session<'_>, input: LayerInput<'_, '_>, linears: &[Linear<'_>]) -> Result<()> {
        let seen = &mut *lock(&self.0);
        let Some(first) = linears.first().map(key) else { return Ok(()) };
        let of = input.pool.as_ref().map_or(first, key);
        for linear in linears {
            seen.input_of.insert(key(linear), of.clone());
            if let TokenRows::Routed(tokens) = input.rows {
                *seen.routed.entry(key(linear)).or_default() += tokens.len();
            }
        }
        if input.pool.is_none() {
            let sums = seen.sums.entry(of).or_insert_with(|| InputSums::zeros(input.x.width));
            sums.add(session, input.x, input.rows)?;
        }
        Ok(())
    }

    fn gradients(
        &self,
        session: &Session<'_>,
        input: LayerInput<'_, '_>,
        layers: &[OutputGradients<'_, '_>],
    ) -> Result<()> {
        let x = Arc::new(input.x.clone());
        for (linear, gradients) in layers {
            let fisher = FisherTerms::of(session, &x, input.rows, gradients)?;
            let found = SeenGradients { x: x.clone(), fisher, share: fisher_share(input.rows) };
            lock(&self.0).gradients.insert(key(linear), found);
        }
        Ok(())
    }
}

/// Calls `each` with the matrices of a layer.
fn hand_over(
    session: &Session<'_>,
    layer: &Layer<'_>,
    mut seen: LayerSeen,
    each: &mut dyn FnMut(Linear<'_>, Option<&Factor>) -> Result<()>,
) -> Result<()> {
    let pools = seen.pools();
    for linear in layer.linears() {
        let factor = match seen.covariance(session, &linear, &pools)? {
            Some(a) => Factor::of(session.compute(), a)?,
            None => None,
        };
        each(linear, factor.as_ref())?;
    }
    Ok(())
}

/// The sums of the inputs of all experts' last matrices, by their order.
type Pools = BTreeMap<usize, InputSums>;

impl LayerSeen {
    fn pools(&self) -> Pools {
        let mut pools = Pools::new();
        for (_, sums) in self.sums.iter().filter(|(of, _)| self.routed.contains_key(*of)) {
            let order = sums.sums.order();
            let pool = pools.entry(order).or_insert_with(|| InputSums::zeros(order));
            pool.sums.add(&sums.sums, 1.0);
            pool.tokens += sums.tokens;
        }
        pools
    }

    /// `A` of a matrix. Sums that no later matrix needs are not copied.
    fn covariance(
        &mut self,
        session: &Session<'_>,
        linear: &Linear<'_>,
        pools: &Pools,
    ) -> Result<Option<SymmetricMatrix>> {
        let (Some(of), Some(found)) = (self.input_of.remove(&key(linear)), self.gradients.remove(&key(linear))) else {
            return Ok(None);
        };
        let routed = self.routed.get(&key(linear)).copied();
        if routed.is_some_and(|tokens| tokens < LEAST_TOKENS) {
            return Ok(None);
        }
        let is_needed = self.input_of.values().any(|other| *other == of);
        let sums = if is_needed { self.sums.get(&of).cloned() } else { self.sums.remove(&of) };
        let Some(mut sums) = sums else { return Ok(None) };
        if routed.is_some()
            && of == key(linear)
            && let Some(pool) = pools.get(&sums.sums.order())
        {
            let like = POOL_TOKENS * sums.sums.order() as f64;
            sums.sums.add(&pool.sums, (like / pool.tokens.max(1) as f64) as f32);
        }
        sums.with(session, &found.x, &found.fisher, found.share)
    }
}
