//! What looks at the linear layers while the model runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::activations::Activations;
use super::tokens::WINDOW;
use super::{MatrixKey, Session};
use crate::arch::Linear;
use crate::error::{Error, Result};
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

    /// What was collected since the last call, for a record of the run.
    ///
    /// # Errors
    /// [`Error::Bug`] if it has no binary form.
    fn drain(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Adds what [`drain`](Self::drain) returned in an earlier run.
    ///
    /// # Errors
    /// [`Error::Bug`] if it is something else.
    fn restore(&self, _drained: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A value for each matrix, collected from any thread.
#[derive(Debug)]
pub(super) struct Collected<T>(Mutex<Values<T>>);

#[derive(Debug)]
struct Values<T> {
    all: BTreeMap<MatrixKey, T>,
    /// The matrices whose values have changed since they were drained.
    changed: BTreeSet<MatrixKey>,
}

impl<T> Default for Collected<T> {
    fn default() -> Self {
        Self(Mutex::new(Values { all: BTreeMap::new(), changed: BTreeSet::new() }))
    }
}

impl<T> Collected<T> {
    /// Changes the value of a matrix, which is the default one at first.
    pub(super) fn change(&self, linear: &Linear<'_>, change: impl FnOnce(&mut T))
    where
        T: Default,
    {
        let mut values = lock(&self.0);
        values.changed.insert(super::key(linear));
        change(values.all.entry(super::key(linear)).or_default());
    }

    pub(super) fn insert(&self, key: MatrixKey, value: T) {
        lock(&self.0).all.insert(key, value);
    }

    pub(super) fn into_inner(self) -> BTreeMap<MatrixKey, T> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl<T: Serialize + DeserializeOwned> Collected<T> {
    /// The values that have changed since the last call.
    pub(super) fn drain(&self) -> Result<Vec<u8>> {
        let mut values = lock(&self.0);
        let changed = std::mem::take(&mut values.changed);
        let drained: Vec<(&MatrixKey, &T)> = changed.iter().filter_map(|key| values.all.get_key_value(key)).collect();
        packed(&drained)
    }

    /// Adds the values that [`drain`](Self::drain) returned in an earlier run.
    pub(super) fn restore(&self, drained: &[u8]) -> Result<()> {
        lock(&self.0).all.extend(unpacked::<Vec<(MatrixKey, T)>>(drained)?);
        Ok(())
    }
}

/// The binary form of what was collected.
pub(super) fn packed(collected: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(collected).map_err(|fault| Error::Bug(format!("a record of the probe: {fault}")))
}

/// What [`packed`] made `bytes` of.
pub(super) fn unpacked<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|fault| Error::Bug(format!("a record of the probe: {fault}")))
}
