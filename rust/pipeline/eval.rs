//! `eval`: measures how far outputs are from their reference, by running all of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Engine, Resources};
use crate::arch::{self, Runnable};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::Pass;
use crate::error::{Error, Result};
use crate::evaluate::{Divergence, TokenOrigin, Windows, compare, traversals};
use crate::format::encoded::open_output;
use crate::format::readable::prepare;
use crate::option::OptionName;
use crate::probe::Mode;
use crate::probe::Options;
use crate::probe::forward::{Forward, write_tokens};
use crate::probe::tokens::Seed;
use crate::probe::vocabulary::Vocabulary;
use crate::progress::{Progress, Stage};

/// Number of tokens that the reference writes if the user does not say.
const WRITTEN_TOKENS: usize = 1024;

/// Tokens of a window if the user does not say.
const WINDOW: usize = 256;

/// Options of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalRequest {
    /// Paths of the checkpoints to measure.
    pub outputs: Vec<PathBuf>,
    /// Path of the original model.
    pub reference: PathBuf,
    /// Token ids of a text; `None` if the reference is to write its own.
    pub tokens: Option<Vec<u32>>,
    /// Number of tokens, at most; by default all of a text, or 1,024 of the reference's own.
    pub max_tokens: Option<usize>,
    /// Tokens of a window, the first one included; by default 256.
    pub window: Option<usize>,
    /// The first token of every window.
    pub bos: FirstToken,
    /// Resources of the job.
    pub resources: Resources,
}

/// The first token of every window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FirstToken {
    /// A rule.
    Rule(FirstTokenRule),
    /// This one.
    Id(u32),
}

/// A rule for the first token of every window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstTokenRule {
    /// That of the tokenizer, if it has one.
    Auto,
    /// None.
    None,
}

impl Default for FirstToken {
    fn default() -> Self {
        Self::Rule(FirstTokenRule::Auto)
    }
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalReport {
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Number of tokens that were predicted.
    pub tokens: usize,
    /// The first token of every window, if they have one.
    pub bos: Option<u32>,
    /// Where the other tokens come from.
    pub origin: TokenOrigin,
    /// Number of multiply-adds.
    pub multiply_adds: u64,
    /// The measurements of each output.
    pub outputs: Vec<EvaluatedOutput>,
}

/// The measurements of one output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluatedOutput {
    /// Path of the output.
    pub output: String,
    /// Its divergence from the reference.
    #[serde(flatten)]
    pub divergence: Divergence,
}

/// Evaluates the outputs of `request`.
///
/// # Errors
/// [`Error::CannotRun`] for a model whose forward pass is unknown, [`Error::OtherModel`] for one of another vocabulary,
/// [`Error::Option`] for tokens that are not the reference's, and the errors of opening and reading.
pub fn eval(request: &EvalRequest, progress: &Progress) -> Result<EvalReport> {
    check(request)?;
    let engine = Engine::new(&request.resources)?;
    let opened = open_reference(&request.reference)?;
    let checkpoints: Vec<Checkpoint> = request.outputs.iter().map(|path| open_output(path)).collect::<Result<_>>()?;
    let model = model_in(&opened)?;
    let models: Vec<Runnable<'_>> = checkpoints.iter().map(model_in).collect::<Result<_>>()?;
    for (checkpoint, other) in checkpoints.iter().zip(&models) {
        check_vocabulary(checkpoint, other, &model)?;
    }
    let window = window_length(request.window, [&model].into_iter().chain(&models))?;
    let pass = engine.pass(&opened, progress);
    let bos = first_token(request.bos, &opened, &model)?;
    let (ids, origin) = token_ids(request, pass, &model)?;
    let tokens = cut(&ids, window, bos)?;
    let windows = Windows { tokens: &tokens, length: window };
    let outputs: Vec<_> = checkpoints.iter().zip(&models).collect();
    let (found, multiply_adds) = diverge(pass, &model, &outputs, windows)?;
    let paths = request.outputs.iter().map(|path| path.display().to_string());
    Ok(EvalReport {
        windows: windows.count(),
        window,
        tokens: windows.predictions(),
        bos,
        origin,
        multiply_adds,
        outputs: paths.zip(found).map(|(output, divergence)| EvaluatedOutput { output, divergence }).collect(),
    })
}

/// Runs `model`, which `pass` reads, and `outputs` on `windows`. Returns the divergence of each output, and the number of
/// multiply-adds.
pub(super) fn diverge(
    pass: Pass<'_>,
    model: &Runnable<'_>,
    outputs: &[(&Checkpoint, &Runnable<'_>)],
    windows: Windows<'_>,
) -> Result<(Vec<Divergence>, u64)> {
    let (bodies, heads) = traversals(windows, model.vocabulary());
    let bytes = |model: &Runnable<'_>| bodies * model.body_bytes() + heads * model.head().bytes();
    pass.progress.begin(Stage::Eval, bytes(model) + outputs.iter().map(|(_, model)| bytes(model)).sum::<u64>());
    let reference = Forward::new(pass, model);
    let forward = |&(checkpoint, model)| Forward::new(Pass { checkpoint, ..pass }, model);
    let outputs: Vec<Forward<'_>> = outputs.iter().map(forward).collect();
    let found = compare(pass, &reference, &outputs, windows)?;
    Ok((found, reference.multiply_adds() + outputs.iter().map(Forward::multiply_adds).sum::<u64>()))
}

fn check(request: &EvalRequest) -> Result<()> {
    if let Some(window) = request.window.filter(|window| *window < 2) {
        return Err(Error::option(OptionName::Window, window, "at least two tokens are needed"));
    }
    if request.max_tokens == Some(0) {
        return Err(Error::option(OptionName::MaxTokens, 0, "is less than one"));
    }
    if request.outputs.is_empty() {
        return Err(Error::Request("nothing to evaluate".to_owned()));
    }
    Ok(())
}

/// Opens a model that others are compared with: a release, or a checkpoint with codes of a format that is written.
pub(super) fn open_reference(path: &Path) -> Result<Checkpoint> {
    let mut checkpoint = arch::open(path)?;
    if !checkpoint.faults.is_empty() || checkpoint.is_laid_out_for_mlx() || checkpoint.is_gguf() {
        return open_output(path);
    }
    prepare(&mut checkpoint, false)?;
    Ok(checkpoint)
}

/// The model in `checkpoint`, to run in float32.
pub(super) fn model_in(checkpoint: &Checkpoint) -> Result<Runnable<'_>> {
    if checkpoint.config.is_none() {
        let (path, reason) = (checkpoint.dir.clone(), "no config.json in it".to_owned());
        return Err(Error::NoCheckpoint { path, reason, hint: "give the model's directory" });
    }
    let model_type = checkpoint.model_type().unwrap_or("unknown").to_owned();
    let found = arch::runnable(checkpoint);
    found.map(Runnable::in_float32).map_err(|reason| Error::CannotRun {
        path: checkpoint.dir.clone(),
        model_type,
        reason,
    })
}

fn check_vocabulary(checkpoint: &Checkpoint, model: &Runnable<'_>, reference: &Runnable<'_>) -> Result<()> {
    let [one, other] = [reference, model].map(Runnable::vocabulary);
    if one == other {
        return Ok(());
    }
    let reason = format!("has a vocabulary of {other}, and the reference one of {one}: nothing to compare");
    Err(Error::OtherModel { path: checkpoint.dir.clone(), reason })
}

/// The length of windows for models of which each has a limit, or none.
fn window_length<'m>(asked: Option<usize>, models: impl Iterator<Item = &'m Runnable<'m>>) -> Result<usize> {
    let most = most_positions(models);
    match asked {
        Some(window) if window > most => {
            Err(Error::option(OptionName::Window, window, format!("the model has {most} positions")))
        }
        Some(window) => Ok(window),
        None => Ok(WINDOW.min(most)),
    }
}

/// The longest window that all of `models` can be run on.
pub(super) fn most_positions<'m>(models: impl IntoIterator<Item = &'m Runnable<'m>>) -> usize {
    models.into_iter().filter_map(Runnable::most_positions).min().unwrap_or(usize::MAX)
}

fn first_token(asked: FirstToken, checkpoint: &Checkpoint, model: &Runnable<'_>) -> Result<Option<u32>> {
    match asked {
        FirstToken::Id(id) => {
            check_ids(&[id], checkpoint, model)?;
            Ok(Some(id))
        }
        FirstToken::Rule(FirstTokenRule::None) => Ok(None),
        FirstToken::Rule(FirstTokenRule::Auto) => Ok(Vocabulary::of(checkpoint, model.vocabulary())?.first()),
    }
}

/// The tokens of the request, or those that the reference writes.
fn token_ids(request: &EvalRequest, pass: Pass<'_>, model: &Runnable<'_>) -> Result<(Vec<u32>, TokenOrigin)> {
    let Some(given) = &request.tokens else {
        let count = request.max_tokens.unwrap_or(WRITTEN_TOKENS);
        let (origin, is_written) = origin(model);
        return Ok((write_tokens(pass, model, (Seed::EVALUATION, is_written), count)?, origin));
    };
    let ids = &given[..given.len().min(request.max_tokens.unwrap_or(usize::MAX))];
    check_ids(ids, pass.checkpoint, model)?;
    Ok((ids.to_vec(), TokenOrigin::Given))
}

/// The origin of tokens that are not given, and whether the model writes them.
pub(super) fn origin(model: &Runnable<'_>) -> (TokenOrigin, bool) {
    match Options::default().of(model).mode {
        Mode::Written => (TokenOrigin::Written, true),
        Mode::Auto | Mode::Random => (TokenOrigin::Random, false),
    }
}

fn check_ids(ids: &[u32], checkpoint: &Checkpoint, model: &Runnable<'_>) -> Result<()> {
    let vocabulary = model.vocabulary();
    match ids.iter().max() {
        Some(&most) if most as usize >= vocabulary => {
            let reason = format!("is a token id, and the vocabulary of {} has {vocabulary}", checkpoint.dir.display());
            Err(Error::option(OptionName::Tokens, most, reason))
        }
        _ => Ok(()),
    }
}

/// Cuts `ids` into windows that begin with `bos`; an incomplete last window is left out.
pub(super) fn cut(ids: &[u32], window: usize, bos: Option<u32>) -> Result<Vec<u32>> {
    let body = window - usize::from(bos.is_some());
    let tokens: Vec<u32> =
        ids.chunks_exact(body).flat_map(|body| bos.into_iter().chain(body.iter().copied())).collect();
    if tokens.is_empty() {
        let reason = format!("the text has {} tokens only", ids.len());
        return Err(Error::option(OptionName::Window, window, reason));
    }
    Ok(tokens)
}
