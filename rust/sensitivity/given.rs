//! Measuring matrices under vectors that somebody else found.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::prior::Prior;
use super::{Gain, Measured, Origin, Vectors, layers};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, Tensor};
use crate::error::Result;
use crate::name::Name;
use crate::stats::{self, Ask};

/// The vectors `k` and, where they are known, `r` of one matrix.
pub type Given = (Arc<[f32]>, Option<Arc<[f32]>>);

/// What was found of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// How many matrices it is a stack of, if it is one.
    pub stack: Option<u64>,
    /// Importance of each column, matrix by matrix.
    pub k: Arc<[f32]>,
    /// Gain of each row.
    pub r: Arc<[f32]>,
    /// Mean square of each input.
    pub x2: Arc<[f32]>,
}

/// Vectors of the tensors of one checkpoint, by name.
pub type Table = BTreeMap<String, Found>;

/// Measures `matrices` under what `vectors` gives for each; those it gives nothing for count all their columns alike.
///
/// # Errors
/// Those of `vectors` and of [`stats::energies`].
pub fn measure(
    pass: Pass<'_>,
    matrices: &[(&Tensor, Matrix)],
    prior: Prior,
    origin: Origin,
    vectors: impl Fn(&Tensor, Matrix) -> Result<Option<Given>>,
) -> Result<Vec<Measured>> {
    let mut given = Vec::with_capacity(matrices.len());
    for &(tensor, matrix) in matrices {
        given.push(match vectors(tensor, matrix)? {
            Some((k, r)) => (k, r, origin),
            None => (vec![1.0; matrix.cols as usize].into(), None, Origin::Flat),
        });
    }
    let asks: Vec<_> =
        matrices.iter().zip(&given).map(|(&(tensor, matrix), (k, ..))| Ask { tensor, matrix, k }).collect();
    let energies = stats::energies(pass, &asks)?;
    let layers = layers(matrices);
    let mut measured = Vec::with_capacity(matrices.len());
    for ((&(tensor, _), (k, r, origin)), energy) in matrices.iter().zip(given).zip(energies) {
        let (r, signal) = if let Some(r) = r {
            let signal = energy.rows.iter().zip(r.iter()).map(|(row, &r)| 0.5 * row * f64::from(r)).sum();
            (Gain::Each(r), signal)
        } else {
            let name = Name::parse(&tensor.name);
            let signal = if energy.weighted > 0.0 { prior.of(name.role, name.layer, layers) } else { 0.0 };
            (Gain::Same(if signal > 0.0 { 2.0 * signal / energy.weighted } else { 0.0 }), signal)
        };
        measured.push(Measured { vectors: Vectors { k, r }, signal, energy: energy.plain, origin });
    }
    Ok(measured)
}
