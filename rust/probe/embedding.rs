//! The input of the model: token and position embeddings.

use super::Session;
use super::activations::Activations;
use super::attention::Span;
use crate::arch::Linear;
use crate::checkpoint::stream::Reader;
use crate::error::Result;

/// The input of the first layer for `tokens`, window after window.
pub(super) fn embedded(session: &Session<'_>, tokens: &[u32], span: Span) -> Result<Activations> {
    let model = session.model;
    let mut rows = gather_rows(session, &model.embedding, tokens)?;
    let scale = model.conventions.embedding_scale as f32;
    if scale != 1.0 {
        rows.values.iter_mut().for_each(|value| *value *= scale);
    }
    if let Some(matrix) = &model.positions {
        let positions: Vec<u32> = (0..tokens.len()).map(|at| (span.before + at % span.now) as u32).collect();
        rows.add(&gather_rows(session, matrix, &positions)?, 1.0);
    }
    Ok(rows)
}

/// Activations `which` of a matrix.
fn gather_rows(session: &Session<'_>, linear: &Linear<'_>, which: &[u32]) -> Result<Activations> {
    let matrix = linear.matrix;
    let mut reader = Reader::default();
    let mut rows = Activations::zeros(which.len(), matrix.cols as usize);
    for (at, &row) in which.iter().enumerate() {
        let from = u64::from(row) * matrix.row_bytes();
        let bytes = reader.bytes(session.pass.checkpoint, linear.weight, from..from + matrix.row_bytes())?;
        matrix.float.widen(bytes, rows.row_mut(at));
    }
    Ok(rows)
}
