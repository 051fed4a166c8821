//! Measures matrices under vectors from the probe or from a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::prior::Prior;
use super::{Candidate, Gain, MatrixSensitivity, Origin, Vectors, layers, share};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Tensor, View};
use crate::error::Result;
use crate::pass::energy::{self, EnergyJob};

/// Largest element of a vector. Up to it, sums of products with squared weights stay finite in `f32`.
pub(crate) const LARGEST: f32 = 1e20;

/// The vectors `k` and, where they are known, `r` of one matrix.
pub(crate) type Given = (Arc<[f32]>, Option<Arc<[f32]>>);

/// The vectors of one tensor, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorVectors {
    /// Number of matrices, if it is a stack.
    pub stack: Option<u64>,
    /// Importance of each column, matrix by matrix.
    pub k: Arc<[f32]>,
    /// Gain of each row.
    pub r: Arc<[f32]>,
    /// Mean square of each input.
    pub x2: Arc<[f32]>,
}

/// Vectors of the tensors of one checkpoint, by name.
pub(crate) type Table = BTreeMap<String, TensorVectors>;

impl TensorVectors {
    /// The vectors for the rows and columns of `view`, a view of `tensor`; `None` if its columns are neither the stored
    /// columns nor the stored rows.
    #[must_use]
    pub(crate) fn of(&self, tensor: &Tensor, view: View) -> Option<Given> {
        let (cols, above) = tensor.shape.split_last()?;
        let (rows, cols) = (usize::try_from(*above.last()?).ok()?, usize::try_from(*cols).ok()?);
        if self.stack.is_none() && view.is_whole(tensor) {
            return Some((self.k.clone(), (!self.r.is_empty()).then(|| self.r.clone())));
        }
        let offset = usize::try_from(view.offset).ok()?;
        let (at, within) = (offset / (rows * cols), offset % (rows * cols));
        let k = self.k.get(at * cols..(at + 1) * cols)?;
        let r = self.r.get(at * rows..(at + 1) * rows);
        let picked = |values: &[f32], first: usize, step: usize, by: f32| -> Option<Arc<[f32]>> {
            (0..view.rows as usize)
                .map(|row| values.get(first + view.stored_row(row as u64) as usize * step))
                .map(|value| value.map(|value| (value * by).min(LARGEST)))
                .collect()
        };
        let stride = usize::try_from(view.row_stride).ok()?;
        if view.col_stride == 1 && view.cols as usize == cols {
            let r = r.map(|r| picked(r, within / cols, stride / cols, 1.0));
            return Some((k.into(), r.flatten()));
        }
        // Stored with a row for each input: swaps `k` and `r`, and scales them so that the importance has mean 1.
        let mean = r?.iter().sum::<f32>() / rows as f32;
        if view.cols as usize != rows || view.col_stride as usize != cols || mean <= 0.0 {
            return None;
        }
        Some((r?.iter().map(|r| r / mean).collect(), picked(k, within, stride, mean)))
    }
}

/// Measures `candidates` under the vectors that `vectors` returns for each. Without vectors, all columns have the same
/// importance.
///
/// # Errors
/// Those of `vectors` and of [`energy::energies`].
pub(crate) fn measure(
    pass: Pass<'_>,
    candidates: &[Candidate<'_>],
    prior: Prior,
    origin: Origin,
    vectors: impl Fn(Candidate<'_>) -> Result<Option<Given>>,
) -> Result<Vec<MatrixSensitivity>> {
    let mut given = Vec::with_capacity(candidates.len());
    for &candidate in candidates {
        given.push(match vectors(candidate)? {
            Some((k, r)) => (k, r, origin),
            None => (vec![1.0; candidate.matrix.cols as usize].into(), None, Origin::Flat),
        });
    }
    let asks: Vec<_> = candidates
        .iter()
        .zip(&given)
        .map(|(&Candidate { view, matrix, .. }, (k, ..))| EnergyJob { view, matrix, k })
        .collect();
    let energies = energy::energies(pass, &asks)?;
    let layers = layers(candidates);
    let mut measured = Vec::with_capacity(candidates.len());
    for ((candidate, (k, r, origin)), energy) in candidates.iter().zip(given).zip(energies) {
        let (r, signal) = if let Some(r) = r {
            let signal = energy.rows.iter().zip(r.iter()).map(|(row, &r)| 0.5 * row * f64::from(r)).sum();
            (Gain::Each(r), signal)
        } else {
            let name = candidate.name;
            let signal = if energy.weighted > 0.0 { prior.of(name.role, name.layer, layers) } else { 0.0 };
            (Gain::Same(if signal > 0.0 { 2.0 * signal / energy.weighted } else { 0.0 }), signal)
        };
        measured.push(MatrixSensitivity {
            vectors: Vectors { importance: k, gain: r },
            signal,
            energy: energy.plain,
            dead: energy.dead,
            origin,
        });
    }
    share(candidates, &mut measured);
    Ok(measured)
}
