//! The beginning of the model: tokens to vectors.

use super::Session;
use super::attention::Span;
use super::rows::Rows;
use crate::arch::Linear;
use crate::checkpoint::stream::Reader;
use crate::error::Result;

/// The embeddings of `tokens`, window after window.
pub(super) fn embedded(session: &Session<'_>, tokens: &[u32], span: Span) -> Result<Rows> {
    let decoder = session.decoder;
    let mut rows = looked_up(session, &decoder.embedding, tokens)?;
    let scale = decoder.conventions.embedding_scale as f32;
    if scale != 1.0 {
        rows.values.iter_mut().for_each(|value| *value *= scale);
    }
    if let Some(matrix) = &decoder.positions {
        let positions: Vec<u32> = (0..tokens.len()).map(|at| (span.before + at % span.now) as u32).collect();
        rows.add(&looked_up(session, matrix, &positions)?, 1.0);
    }
    Ok(rows)
}

/// Rows `which` of a matrix.
fn looked_up(session: &Session<'_>, linear: &Linear<'_>, which: &[u32]) -> Result<Rows> {
    let matrix = linear.matrix;
    let mut reader = Reader::default();
    let mut rows = Rows::zeros(which.len(), matrix.cols as usize);
    for (at, &row) in which.iter().enumerate() {
        let from = u64::from(row) * matrix.row_bytes();
        let bytes = reader.bytes(session.pass.checkpoint, linear.weight, from..from + matrix.row_bytes())?;
        matrix.float.widen(bytes, rows.row_mut(at));
    }
    Ok(rows)
}
