//! What a visit sees of one layer: the sums of its inputs, and the parts of its covariances that gradients give.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::activations::Activations;
use super::covariance::{FisherTerms, InputSums, fisher_share};
use super::visitor::{LayerInput, OutputGradients, TokenRows, Visitor};
use super::{MatrixKey, Session, key};
use crate::arch::{Layer, Linear};
use crate::codec::feedback::Factor;
use crate::error::Result;
use crate::matmul::symmetric::SymmetricMatrix;
use crate::pool::lock;

/// Tokens that an expert must have seen: with fewer its covariance says nothing.
const LEAST_TOKENS: usize = 64;

/// An expert's covariance counts like that of all experts together at this many tokens for each input.
const POOL_TOKENS: f64 = 1.0;

/// What was seen of one layer.
#[derive(Default)]
struct LayerSeen {
    /// `H` by the first matrix that has the input.
    sums: BTreeMap<MatrixKey, InputSums>,
    /// For each matrix the key of its `H`.
    input_of: BTreeMap<MatrixKey, MatrixKey>,
    /// The inputs of the tokens with gradients, by the first matrix that has them.
    inputs: BTreeMap<MatrixKey, Arc<Activations>>,
    /// Tokens that went to each matrix of an expert.
    routed: BTreeMap<MatrixKey, usize>,
    gradients: BTreeMap<MatrixKey, SeenGradients>,
}

#[derive(Default)]
struct SeenGradients {
    /// The key of the inputs.
    of: MatrixKey,
    fisher: FisherTerms,
    share: f32,
}

/// Collects what is seen of one layer, from any number of runs of windows through it.
#[derive(Default)]
pub(super) struct LayerCollector(Mutex<LayerSeen>);

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
        let seen = &mut *lock(&self.0);
        let Some(of) = layers.first().map(|(linear, _)| key(linear)) else { return Ok(()) };
        let before = seen.inputs.entry(of.clone()).or_default();
        let x = Arc::make_mut(before);
        x.width = input.x.width;
        x.values.reserve_exact(input.x.values.len());
        x.values.extend_from_slice(&input.x.values);
        let share = fisher_share(input.rows, x.count());
        for (linear, gradients) in layers {
            let found = seen.gradients.entry(key(linear)).or_default();
            found.of.clone_from(&of);
            found.share = share;
            found.fisher.add(session, input.x, input.rows, gradients)?;
        }
        Ok(())
    }
}

impl LayerCollector {
    /// Calls `each` with the matrices of `layer`, and the factors of their covariances.
    ///
    /// # Errors
    /// Those of `each`, and cancellation.
    pub(super) fn hand_over(
        self,
        session: &Session<'_>,
        layer: &Layer<'_>,
        each: &mut dyn FnMut(Linear<'_>, Option<&Factor>) -> Result<()>,
    ) -> Result<()> {
        let mut seen = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
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
        let is_needed = self.gradients.values().any(|other| other.of == found.of);
        let Some(x) = taken(&mut self.inputs, &found.of, is_needed) else { return Ok(None) };
        let routed = self.routed.get(&key(linear)).copied();
        if routed.is_some_and(|tokens| tokens < LEAST_TOKENS) {
            return Ok(None);
        }
        let is_needed = self.input_of.values().any(|other| *other == of);
        let Some(mut sums) = taken(&mut self.sums, &of, is_needed) else { return Ok(None) };
        if routed.is_some()
            && of == key(linear)
            && let Some(pool) = pools.get(&sums.sums.order())
        {
            let like = POOL_TOKENS * sums.sums.order() as f64;
            sums.sums.add(&pool.sums, (like / pool.tokens.max(1) as f64) as f32);
        }
        sums.with(session, &x, found.fisher, found.share)
    }
}

/// The value of `key`: a copy if the map's own is needed later.
fn taken<T: Clone>(map: &mut BTreeMap<MatrixKey, T>, key: &MatrixKey, is_needed: bool) -> Option<T> {
    if is_needed { map.get(key).cloned() } else { map.remove(key) }
}
