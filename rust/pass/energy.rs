//! Energies of matrices: one pass checks that weights are finite, and sums the squares of rows and columns.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::fold::{BandAt, BandJob, BandSelection};
use super::leading;
use crate::band::energy;
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, View};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::simd::vector::{BAND_ROWS, Column};

/// A matrix to measure.
#[derive(Clone, Copy)]
pub struct EnergyJob<'a> {
    /// The source.
    pub view: View,
    /// The shape of `view`.
    pub matrix: Matrix,
    /// The importance of each column.
    pub k: &'a [f32],
}

/// Weights that do nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadWeights {
    /// Number of rows that are all zero.
    pub zero_rows: u64,
    /// Whether all weights of the matrix are the same number.
    pub is_constant: bool,
}

/// Sums of squares of a matrix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// `Σ_j k_j w_ij²` of each row `i`.
    pub rows: Vec<f64>,
    /// The sum of `rows`.
    pub weighted: f64,
    /// `Σ_ij w_ij²`
    pub plain: f64,
    pub dead: DeadWeights,
}

/// Bytes of the matrices that one record of a job's journal is about.
const RECORD_BYTES: u64 = 1 << 30;

/// Computes the energies of the matrices of `jobs`, and records them.
///
/// # Errors
/// [`Error::NonFinite`] and [`Error::TooLarge`] for invalid weights; [`Error::Io`].
pub fn energies(pass: Pass<'_>, jobs: &[EnergyJob<'_>]) -> Result<Vec<Energy>> {
    if !pass.journal.is_kept() {
        return measured(pass, jobs);
    }
    let bytes = |job: &EnergyJob<'_>| job.matrix.rows * job.matrix.row_bytes();
    let mut found = Vec::with_capacity(jobs.len());
    while found.len() < jobs.len() {
        let rest = &jobs[found.len()..];
        let group = &rest[..leading(rest, RECORD_BYTES, bytes)];
        let key = key(group);
        if let Some(known) = pass.journal.find::<Vec<Energy>>(&key)?.filter(|known| known.len() == group.len()) {
            pass.progress.advance(group.iter().map(bytes).sum());
            found.extend(known);
            continue;
        }
        let measured = measured(pass, group)?;
        pass.journal.put(&key, &measured)?;
        found.extend(measured);
    }
    Ok(found)
}

/// The key of the record of `jobs`: the digest of what decides the result.
fn key(jobs: &[EnergyJob<'_>]) -> String {
    let mut digest = Digest::default();
    for EnergyJob { view, k, .. } in jobs {
        for number in [view.tensor as u64, view.offset, view.rows, view.cols, view.row_stride, view.col_stride] {
            digest.update(&number.to_le_bytes());
        }
        digest.update(bytemuck::cast_slice(k));
    }
    format!("energies/{}", digest.finish())
}

fn measured(pass: Pass<'_>, jobs: &[EnergyJob<'_>]) -> Result<Vec<Energy>> {
    let rows = |job: &EnergyJob<'_>| Vec::with_capacity(usize::try_from(job.matrix.rows).unwrap_or(0));
    let mut energies: Vec<Energy> = jobs.iter().map(|job| Energy { rows: rows(job), ..Energy::default() }).collect();
    let bands: Vec<BandJob> = jobs.iter().map(|job| all(job.view, job.matrix)).collect();
    let mut constants: Vec<Option<Option<f32>>> = vec![None; jobs.len()];
    pass.fold_bands(
        &bands,
        || (),
        |(), BandAt { job, rows, band }| {
            let found = energy(pass.isa, band.columns, jobs[job].k);
            if found.iter().any(|row| !row.plain.is_finite()) {
                return Err(not_weights(pass, jobs[job].view, rows, band.columns));
            }
            Ok((band.rows, found, constant(band.columns, band.rows)))
        },
        |job, found, _| {
            let energy = &mut energies[job];
            for (count, rows, constant) in &found {
                for row in &rows[..*count] {
                    energy.rows.push(row.weighted);
                    energy.weighted += row.weighted;
                    energy.plain += row.plain;
                    energy.dead.zero_rows += u64::from(row.plain == 0.0);
                }
                let of_job = constants[job].get_or_insert(*constant);
                *of_job = of_job.filter(|value| *constant == Some(*value));
            }
            Ok(())
        },
    )?;
    for ((energy, constant), job) in energies.iter_mut().zip(constants).zip(jobs) {
        energy.dead.is_constant = constant.flatten().is_some() && job.matrix.rows * job.matrix.cols > 1;
    }
    Ok(energies)
}

/// The number that all weights of the first `rows` rows of a band are, if they are all the same.
fn constant(band: &[Column], rows: usize) -> Option<f32> {
    let first = band.first()?[0];
    // Ends at the first weight that differs, which is the second one of most matrices.
    band.iter().all(|column| column[..rows].iter().all(|weight| *weight == first)).then_some(first)
}

fn all(view: View, matrix: Matrix) -> BandJob {
    BandJob { matrix, view: Some(view), selection: BandSelection::All }
}

/// Computes the mean square of each column of a matrix.
///
/// # Errors
/// As [`energies`].
pub(crate) fn column_means(pass: Pass<'_>, view: View, matrix: Matrix) -> Result<Vec<f64>> {
    let cols = usize::try_from(matrix.cols).map_err(|_| Error::Bug("columns".to_owned()))?;
    let mut sums = vec![0.0; cols];
    pass.fold_bands(
        &[all(view, matrix)],
        || (),
        |(), BandAt { rows, band, .. }| {
            let squares = |lanes: &Column| lanes.iter().fold(0.0, |sum, w| sum + w * w);
            let squares: Vec<f32> = band.columns.iter().map(squares).collect();
            if squares.iter().all(|sum| sum.is_finite()) {
                Ok(squares)
            } else {
                Err(not_weights(pass, view, rows, band.columns))
            }
        },
        |_, found, _| {
            for band in found {
                for (sum, square) in sums.iter_mut().zip(band) {
                    *sum += f64::from(square);
                }
            }
            Ok(())
        },
    )?;
    Ok(sums.into_iter().map(|sum| sum / matrix.rows as f64).collect())
}

/// The error for a band of `view` with the rows `rows` and a non-finite sum of squares.
fn not_weights(pass: Pass<'_>, view: View, rows: Range<u64>, band: &[Column]) -> Error {
    let tensor = &pass.checkpoint.tensors[view.tensor];
    let file = pass.checkpoint.file_of(tensor).to_owned();
    let mut count = 0;
    let mut first = None;
    let mut largest = (0.0, rows.start);
    for row in 0..BAND_ROWS {
        for (column, lanes) in band.iter().enumerate() {
            let index = rows.start + row as u64;
            if !lanes[row].is_finite() {
                count += 1;
                first.get_or_insert_with(|| view.index(tensor, index, column as u64));
            } else if lanes[row].abs() > largest.0 {
                largest = (lanes[row].abs(), index);
            }
        }
    }
    let tensor = tensor.name.clone();
    match first {
        Some(first) => Error::NonFinite { file, tensor, count, rows: (rows.start, rows.end), first },
        None => Error::TooLarge { file, tensor, magnitude: largest.0, row: largest.1 },
    }
}
