//! The metrics of embedding and head for error feedback.

use std::collections::BTreeMap;

use super::activations::Activations;
use super::covariance::{DAMPING, FISHER_SHARE, InputSums, trace};
use super::run::Ends;
use super::{MatrixKey, Session, key};
use crate::arch::Linear;
use crate::codec::feedback::Factor;
use crate::error::Result;
use crate::math;
use crate::matmul::symmetric::SymmetricMatrix;

/// Covariances of what is at both ends of the model; `None` where the matrix has other columns.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct EndSums {
    /// Inputs of the head, weighted by the variance of the logits' gradients: its Fisher matrix.
    head: Option<SymmetricMatrix>,
    /// Gradients at the embedding.
    embedding: Option<SymmetricMatrix>,
}

impl EndSums {
    /// The inputs of the head in `ends` are expectations over `draws`; the gradients were drawn.
    pub(super) fn of(session: &Session<'_>, ends: &Ends, draws: usize) -> Result<Self> {
        let sum = |linear: Linear<'_>, rows: &Activations, weight: f32| -> Result<Option<SymmetricMatrix>> {
            if linear.matrix.cols as usize != rows.width {
                return Ok(None);
            }
            let scaled: Vec<f32> = rows.values.iter().map(|value| weight * value).collect();
            let mut sum = SymmetricMatrix::zeros(rows.width);
            sum.add_products(session.compute(), &scaled, &rows.values)?;
            Ok(Some(sum))
        };
        let head = sum(session.model.head(), &ends.head, draws as f32)?;
        Ok(Self { head, embedding: sum(session.model.embedding, &ends.embedding, 1.0)? })
    }

    /// The factors of the damped metrics. A tied embedding has the sum of both: its rows are inputs and outputs. `states`
    /// are the head's inputs at many more tokens.
    pub(super) fn factors(
        &self,
        session: &Session<'_>,
        states: Option<&InputSums>,
    ) -> Result<BTreeMap<MatrixKey, Factor>> {
        let mut metrics: BTreeMap<MatrixKey, SymmetricMatrix> = BTreeMap::new();
        if let Some(head) = &self.head {
            metrics.insert(
                key(&session.model.head()),
                states.and_then(|states| mixed(head, states)).unwrap_or_else(|| head.clone()),
            );
        }
        if let Some(embedding) = &self.embedding {
            let zeros = || SymmetricMatrix::zeros(embedding.order());
            metrics.entry(key(&session.model.embedding)).or_insert_with(zeros).add(embedding, 1.0);
        }
        let mut factors = BTreeMap::new();
        for (key, metric) in metrics {
            if let Some(metric) = damped(metric)
                && let Some(factor) = Factor::of(session.compute(), metric)?
            {
                factors.insert(key, factor);
            }
        }
        Ok(factors)
    }
}

/// `(1 − α) (tr F / tr H) H + α F`, with the covariance `H` of `states` and the Fisher matrix `F` of the head.
fn mixed(fisher: &SymmetricMatrix, states: &InputSums) -> Option<SymmetricMatrix> {
    let by = (1.0 - f64::from(FISHER_SHARE)) * trace(fisher) / trace(&states.sums);
    by.is_finite().then(|| {
        let mut sum = SymmetricMatrix::zeros(fisher.order());
        sum.add(fisher, FISHER_SHARE);
        sum.add(&states.sums, by as f32);
        sum
    })
}

/// `a`, relative to its mean variance, with the damping: a share of the geometric mean of the variances. A few channels are
/// massive, and a share of the arithmetic mean would drown the others. `None` without any signal.
fn damped(mut a: SymmetricMatrix) -> Option<SymmetricMatrix> {
    let variances = a.diagonal();
    let mean = variances.iter().sum::<f32>() / a.order() as f32;
    if mean <= 0.0 || !mean.is_finite() {
        return None;
    }
    let logs: Vec<f64> = variances.iter().filter(|&&v| v > 0.0).map(|&v| math::ln(f64::from(v / mean))).collect();
    let damping = DAMPING * math::exp(logs.iter().sum::<f64>() / logs.len() as f64) as f32;
    a.for_each_row(|at, row| {
        for value in row.iter_mut() {
            *value /= mean;
        }
        row[at] += damping;
    });
    Some(a)
}
