//! Activations: one vector for each token.

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::stream::Pass;
use crate::error::Result;

/// Rows of one unit of parallel work.
const CHUNK_ROWS: usize = 16;

/// Contiguous rows of `width` numbers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Activations {
    pub(super) width: usize,
    pub(super) values: Vec<f32>,
}

impl Activations {
    pub(super) fn zeros(count: usize, width: usize) -> Self {
        Self { width, values: vec![0.0; count * width] }
    }

    pub(super) fn count(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    pub(super) fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.width..][..self.width]
    }

    pub(super) fn row_mut(&mut self, at: usize) -> &mut [f32] {
        &mut self.values[at * self.width..][..self.width]
    }

    /// Rows `from..to`.
    pub(super) fn slice(&self, from: usize, to: usize) -> &[f32] {
        &self.values[from * self.width..to * self.width]
    }

    /// Computes `count` rows in parallel. `fill` takes the number of a row and the row to fill.
    pub(super) fn computed(
        pass: Pass<'_>,
        count: usize,
        width: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let mut rows = Self::zeros(count, width);
        let chunks = rows.values.chunks_mut((CHUNK_ROWS * width).max(1)).enumerate();
        let chunks: Vec<Mutex<(usize, &mut [f32])>> = chunks.map(Mutex::new).collect();
        pass.workers.map(
            pass.progress,
            &chunks,
            || (),
            |(), chunk| {
                let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
                let (chunk, rows) = &mut *chunk;
                for (at, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
                    fill(*chunk * CHUNK_ROWS + at, row);
                }
                Ok(())
            },
        )?;
        drop(chunks);
        Ok(rows)
    }

    /// The rows `which`.
    pub(super) fn picked(&self, which: &[usize]) -> Self {
        let mut values = Vec::with_capacity(which.len() * self.width);
        for &row in which {
            values.extend_from_slice(self.row(row));
        }
        Self { width: self.width, values }
    }

    /// The columns `from..to`.
    pub(super) fn columns(&self, from: usize, to: usize) -> Self {
        let mut values = Vec::with_capacity(self.count() * (to - from));
        for row in self.values.chunks_exact(self.width.max(1)) {
            values.extend_from_slice(&row[from..to]);
        }
        Self { width: to - from, values }
    }

    /// Reorders each row `[a, b]` of two halves so that their elements alternate, those of `a` first.
    pub(super) fn interleave_halves(&mut self) {
        let half = self.width / 2;
        for row in self.values.chunks_exact_mut(self.width.max(1)) {
            let (first, second) = row.split_at(half);
            let alternating: Vec<f32> = first.iter().zip(second).flat_map(|(&a, &b)| [a, b]).collect();
            row.copy_from_slice(&alternating);
        }
    }

    /// Adds `scale` times `other`.
    pub(super) fn add(&mut self, other: &Self, scale: f32) {
        for (value, &other) in self.values.iter_mut().zip(&other.values) {
            *value += scale * other;
        }
    }

    pub(super) fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }
}
