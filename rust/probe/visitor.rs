//! What looks at the linear layers while the model runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::activations::Activations;
use super::tokens::WINDOW;
use super::{MatrixKey, Session};
use crate::arch::Linear;
use crate::error::Result;
use crate::pool::lock;

/// The tokens that the rows of some activations belong to.
#[derive(Clone, Copy, Debug)]
pub(super) enum TokenRows<'t> {
    /// All tokens of whole windows, in order.
    All,
    /// These, in ascending order.
    Routed(&'t [usize]),
}

impl TokenRows<'_> {
    /// The rows of each window; `count` rows in all.
    pub(super) fn windows(self, count: usize) -> Vec<Range<usize>> {
        let tokens = match self {
            Self::All => return (0..count).step_by(WINDOW).map(|from| from..(from + WINDOW).min(count)).collect(),
            Self::Routed(tokens) => tokens,
        };
        let mut windows: Vec<Range<usize>> = Vec::new();
        for (row, token) in tokens.iter().enumerate() {
            match windows.last_mut() {
                Some(last) if tokens[last.start] / WINDOW == token / WINDOW => last.end = row + 1,
                _ => windows.push(row..row + 1),
            }
        }
        windows
    }

    /// Whether row `row` belongs to the first token of a window.
    pub(super) fn is_first(self, row: usize) -> bool {
        let token = match self {
            Self::All => row,
            Self::Routed(tokens) => tokens[row],
        };
        token.is_multiple_of(WINDOW)
    }
}

/// The input of linear layers.
#[derive(Clone, Copy)]
pub(super) struct LayerInput<'x, 'a> {
    pub(super) x: &'x Activations,
    pub(super) rows: TokenRows<'x>,
    /// For the first matrices of an expert the router, whose input has the rows of all experts.
    pub(super) pool: Option<Linear<'a>>,
}

impl<'x> LayerInput<'x, '_> {
    pub(super) fn all(x: &'x Activations) -> Self {
        Self { x, rows: TokenRows::All, pool: None }
    }
}

/// A linear layer, and the gradients at its output: as many rows as its input has for each draw, draw after draw.
pub(super) type OutputGradients<'g, 'a> = (Linear<'a>, &'g Activations);

/// Sees the linear layers of a run.
pub(super) trait Visitor: Sync {
    /// Called in a forward pass with the input that `linears` share.
    ///
    /// # Errors
    /// Those of the visitor; they end the run.
    fn inputs(&self, _session: &Session<'_>, _input: LayerInput<'_, '_>, _linears: &[Linear<'_>]) -> Result<()> {
        Ok(())
    }

    /// Called in a backward pass with the input that `layers` share.
    ///
    /// # Errors
    /// As [`inputs`](Self::inputs).
    fn gradients(
        &self,
        session: &Session<'_>,
        input: LayerInput<'_, '_>,
        layers: &[OutputGradients<'_, '_>],
    ) -> Result<()>;
}

/// A value for each matrix, collected from any thread.
#[derive(Debug)]
pub(super) struct Collected<T>(Mutex<BTreeMap<MatrixKey, T>>);

impl<T> Default for Collected<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Collected<T> {
    /// Changes the value of a matrix, which is the default one at first.
    pub(super) fn change(&self, linear: &Linear<'_>, change: impl FnOnce(&mut T))
    where
        T: Default,
    {
        let mut all = lock(&self.0);
        change(all.entry(super::key(linear)).or_default());
    }

    pub(super) fn insert(&self, key: MatrixKey, value: T) {
        lock(&self.0).insert(key, value);
    }

    pub(super) fn into_inner(self) -> BTreeMap<MatrixKey, T> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
