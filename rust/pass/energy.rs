//! One pass over matrices: are the weights finite, and how much energy do their rows and columns carry.

use std::ops::Range;

use crate::band::{RowEnergy, energy};
use crate::checkpoint::stream::{Pass, Reader, bands, chunk_bands, cut};
use crate::checkpoint::{Matrix, View};
use crate::error::{Error, Result};
use crate::simd::vector::{BAND_ROWS, Column};

/// A matrix to measure, and one weight per column to measure it with.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Where it is.
    pub view: View,
    /// Its shape.
    pub matrix: Matrix,
    /// One weight per column.
    pub k: &'a [f32],
}

/// What was measured of a matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Energy {
    /// `Σ_j k_j w_ij²` of each row `i`.
    pub rows: Vec<f64>,
    /// The sum of `rows`.
    pub weighted: f64,
    /// `Σ_ij w_ij²`
    pub plain: f64,
}

/// A range of bands of one of the matrices.
struct Piece {
    ask: usize,
    bands: Range<u64>,
}

fn pieces(asks: &[Ask<'_>], chunk_bytes: u64) -> Vec<Piece> {
    let of = |(ask, matrix): (usize, Matrix)| {
        cut(bands(matrix), chunk_bands(matrix, chunk_bytes)).map(move |bands| Piece { ask, bands })
    };
    asks.iter().map(|ask| ask.matrix).enumerate().flat_map(of).collect()
}

/// Measures each of `asks`.
///
/// # Errors
/// [`Error::NonFinite`] and [`Error::TooLarge`] for weights that are none; [`Error::Io`].
pub fn energies(pass: Pass<'_>, asks: &[Ask<'_>]) -> Result<Vec<Energy>> {
    let mut energies: Vec<Energy> = asks
        .iter()
        .map(|ask| Energy {
            rows: Vec::with_capacity(usize::try_from(ask.matrix.rows).unwrap_or(0)),
            ..Energy::default()
        })
        .collect();
    pass.workers.in_order(
        pass.progress,
        &pieces(asks, pass.chunk_bytes),
        Reader::default,
        |reader, piece| {
            let Ask { view, matrix, k } = asks[piece.ask];
            let mut rows: Vec<RowEnergy> = Vec::new();
            reader.bands((pass.checkpoint, pass.isa), view, &piece.bands, |range, band, source| {
                let found = energy(pass.isa, band, k);
                if found.iter().any(|row| !row.plain.is_finite()) {
                    return Err(not_weights(pass, view, range, band));
                }
                rows.extend(found.iter().take(source.len() / (matrix.row_bytes() as usize)));
                Ok(())
            })?;
            pass.progress.advance(rows.len() as u64 * matrix.row_bytes());
            Ok(rows)
        },
        |piece, rows| {
            let energy = &mut energies[piece.ask];
            for row in rows {
                energy.rows.push(row.weighted);
                energy.weighted += row.weighted;
                energy.plain += row.plain;
            }
            Ok(())
        },
    )?;
    Ok(energies)
}

/// Mean square of each column of a matrix.
///
/// # Errors
/// As [`energies`].
pub fn column_means(pass: Pass<'_>, view: View, matrix: Matrix) -> Result<Vec<f64>> {
    let cols = usize::try_from(matrix.cols).map_err(|_| Error::Bug("columns".to_owned()))?;
    let ask = Ask { view, matrix, k: &[] };
    let mut sums = vec![0.0; cols];
    pass.workers.in_order(
        pass.progress,
        &pieces(&[ask], pass.chunk_bytes),
        Reader::default,
        |reader, piece| {
            let mut partial: Vec<f32> = Vec::new();
            reader.bands((pass.checkpoint, pass.isa), view, &piece.bands, |range, band, _| {
                let squares = |lanes: &Column| lanes.iter().fold(0.0, |sum, w| sum + w * w);
                let from = partial.len();
                partial.extend(band.iter().map(squares));
                if partial[from..].iter().all(|sum| sum.is_finite()) {
                    Ok(())
                } else {
                    Err(not_weights(pass, view, range, band))
                }
            })?;
            Ok(partial)
        },
        |_, partial| {
            for band in partial.chunks_exact(cols) {
                for (sum, &square) in sums.iter_mut().zip(band) {
                    *sum += f64::from(square);
                }
            }
            Ok(())
        },
    )?;
    Ok(sums.into_iter().map(|sum| sum / matrix.rows as f64).collect())
}

/// The error for a band of `view`, holding `rows`, whose squares do not add up to a number.
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
