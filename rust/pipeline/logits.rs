//! `logits`: runs a model on given tokens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::eval::{model_in, open_reference};
use super::{Engine, Resources};
use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::probe::forward::Forward;
use crate::progress::Progress;

/// Options of a forward pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogitsRequest {
    /// Path of the checkpoint: a release, or an output.
    pub model: PathBuf,
    /// Windows of token ids, each of a length of its own.
    pub tokens: Vec<Vec<u32>>,
    /// Resources of the job.
    pub resources: Resources,
}

/// The logits of all tokens, window after window.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Number of tokens, and number of logits of each.
    pub shape: [usize; 2],
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Runs the model of `request` on its tokens, in float32.
///
/// # Errors
/// [`Error::CannotRun`], [`Error::Option`] for tokens that the model does not have, and the errors of opening and reading.
pub fn logits(request: &LogitsRequest, progress: &Progress) -> Result<Logits> {
    let engine = Engine::new(&request.resources)?;
    let checkpoint = open_reference(&request.model)?;
    let model = model_in(&checkpoint)?;
    let (vocabulary, most) = (model.vocabulary(), model.most_positions().unwrap_or(usize::MAX));
    for window in &request.tokens {
        let wrong = |reason: String| Error::option(OptionName::Tokens, window.len(), reason);
        if window.is_empty() || window.len() > most {
            return Err(wrong(format!("a window has at least one token, and the model {most} positions")));
        }
        if window.iter().any(|id| *id as usize >= vocabulary) {
            return Err(wrong(format!("a token is not one of the {vocabulary} of the model")));
        }
    }
    let forward = Forward::new(engine.pass(&checkpoint, progress), &model);
    let count: usize = request.tokens.iter().map(Vec::len).sum();
    let mut values = Vec::with_capacity(count * vocabulary);
    // Windows of equal length run together.
    for windows in request.tokens.chunk_by(|a, b| a.len() == b.len()) {
        let states = forward.states(&windows.concat(), windows[0].len())?;
        values.extend(forward.logits(&states, 0..states.count())?);
    }
    Ok(Logits { shape: [count, vocabulary], values })
}
