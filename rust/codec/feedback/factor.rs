//! The metric of error feedback: a covariance as its triangular factor.

use crate::error::Result;
use crate::matmul::symmetric::{Compute, SymmetricMatrix};

/// `A = Lᵀ L` as the unit triangle `l_ji = L_ji / L_jj` and the importance `k_j = L_jj²`: the variance of input `j` that the
/// inputs after it do not explain.
pub struct Factor {
    unit: SymmetricMatrix,
    importance: Vec<f32>,
}

impl Factor {
    /// The factor of `a`; `None` if that is not positive definite.
    ///
    /// # Errors
    /// Cancellation.
    pub fn of(compute: Compute<'_>, a: SymmetricMatrix) -> Result<Option<Self>> {
        let Some(mut unit) = a.factor(compute)? else { return Ok(None) };
        let mut importance = Vec::with_capacity(unit.order());
        unit.for_each_row(|at, row| {
            let root = row[at];
            importance.push(root * root);
            for value in row {
                *value /= root;
            }
        });
        Ok(Some(Self { unit, importance }))
    }

    pub(crate) fn order(&self) -> usize {
        self.importance.len()
    }

    pub(crate) fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// `l_ji` of column `j` for `i ≤ j`; the last is 1.
    pub(super) fn row(&self, column: usize) -> &[f32] {
        self.unit.row(column)
    }
}
