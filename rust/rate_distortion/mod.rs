//! Rate–distortion curves: the loss of each matrix in each scheme.
//!
//! The loss of a point is that of the encoder that writes. All bands of a small matrix are encoded. Of a large one, the
//! rule of the format ([`Effort::Fast`]) encodes a sample of bands, and the search encodes a small part of that sample. The
//! rule takes a small share of the time, and its error rises and falls with that of the search, so it is the control
//! variate of the search:
//!
//! ```text
//! L ≈ S · (Σ_m P_b / Σ_m S_b) · (Σ_n Q_b / Σ_n P_b)
//! ```
//!
//! with the signal `S`, which is known for all rows, the loss `P` by the rule and `Q` by the search, and sums over the `m`
//! bands that the rule encodes and the `n` that the search encodes. Bands that carry much of the loss are all searched.
//! [`estimate`] has the standard error, and [`sample`] says how many bands of each matrix bring that below one per cent at
//! the least cost. Bytes are always exact.
//!
//! Every matrix of a stack is estimated separately, and the losses add up: no matrix is skipped or stands for another.

mod estimate;
mod measure;
mod sample;

use std::str::FromStr;

use crate::band::{Matrix, band_bytes, bands};
use crate::checkpoint::View;
use crate::checkpoint::stream::Pass;
use crate::codec::{Effort, Encoder, RowError, Scheme};
use crate::error::Result;
use crate::math::decibels;
use crate::pass::leading;
use crate::sensitivity::{Gain, MatrixSensitivity};

use estimate::MatrixSums;
use sample::{Sample, more};

/// Default number of bands of a matrix that are encoded for its curve in the first round.
pub(crate) const SAMPLE_BANDS: u64 = 64;

/// Number of matrices that are measured together, which bounds the memory for their sums. In later rounds much of what is
/// read is still in the page cache.
const MATRICES_AT_ONCE: u64 = 1024;

/// The same for a job that keeps a journal: what was measured together is recorded together.
const MATRICES_PER_RECORD: u64 = 64;

/// Rounds after the first one that encode more bands of the matrices whose error is too large.
const MORE_ROUNDS: usize = 2;

/// By how much the loss of a matrix grows with its relative error `D`, as `1 + INTERACTION · D`: the errors of all matrices
/// together cost more than the sum of what each costs alone (`docs/method.md`, "Errors together").
const INTERACTION: f64 = 4.0;

/// The objective that a plan minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// `L (1 + 4 L ÷ ½ Σ r k w²)` with `L = ½ Σ r k Δw²`: the predicted loss of the model, by its sensitivity.
    #[default]
    Output,
    /// `Σ Δw²`: the squared error, with equal weights.
    Mse,
    /// `Σ_matrices √(Σ Δw² / Σ w²)`: the published MINT objective, for comparison.
    Mint,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "output" => Ok(Self::Output),
            "mse" => Ok(Self::Mse),
            "mint" => Ok(Self::Mint),
            _ => Err("is none of `output`, `mse`, `mint`".to_owned()),
        }
    }
}

impl std::fmt::Display for Objective {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Output => "output",
            Self::Mse => "mse",
            Self::Mint => "mint",
        })
    }
}

impl Objective {
    /// Loss of a matrix with sensitivity `measured` and errors `noise`.
    #[must_use]
    pub fn loss(self, noise: Noise, measured: &MatrixSensitivity) -> f64 {
        let plain = if measured.energy > 0.0 { noise.plain / measured.energy } else { 0.0 };
        match self {
            Self::Output => {
                let doubt = measured.origin.doubt();
                let relative = if measured.signal > 0.0 { noise.weighted / measured.signal } else { 0.0 };
                let together = 1.0 + INTERACTION * relative;
                together * (1.0 - doubt) * noise.weighted + doubt * measured.signal * plain
            }
            Self::Mse => noise.plain,
            Self::Mint => plain.sqrt(),
        }
    }
}

/// Errors of a matrix, summed over its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Noise {
    /// `½ Σ r k Δw²`
    pub weighted: f64,
    /// `Σ Δw²`
    pub plain: f64,
}

impl Noise {
    /// The noise of consecutive rows with these errors, from `first_row` on, with the gains `r`.
    #[must_use]
    pub fn of(errors: &[RowError], r: &Gain, first_row: usize) -> Self {
        let mut noise = Self::default();
        for (row, error) in errors.iter().enumerate() {
            noise.weighted += 0.5 * r.of(first_row + row) * error.weighted;
            noise.plain += error.plain;
        }
        noise
    }

    /// Adds the noise of other rows.
    pub fn add(&mut self, other: Self) {
        self.weighted += other.weighted;
        self.plain += other.plain;
    }
}

/// Signal-to-noise ratio of a stack of `matrices`, in decibels.
pub(crate) fn sqnr_db<'a>(matrices: impl Iterator<Item = (Noise, &'a MatrixSensitivity)>) -> f64 {
    let sum = |(signal, noise): (f64, f64), (of, measured): (Noise, &MatrixSensitivity)| {
        (signal + measured.signal, noise + of.weighted)
    };
    let (signal, noise) = matrices.fold((0.0, 0.0), sum);
    decibels(signal / noise)
}

/// The errors of a stack of matrices in one scheme.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SchemeNoise {
    /// The scheme.
    pub scheme: Scheme,
    /// The errors of each matrix.
    pub noises: Vec<Noise>,
    /// Relative standard error of the weighted noise of the stack; 0 if all bands were encoded.
    pub standard_error: f64,
}

/// One matrix or a stack of matrices, to encode in each of `schemes`.
pub struct StackJob<'a> {
    /// Name of the output tensor.
    pub name: &'a str,
    /// The matrices with their sensitivities.
    pub matrices: Vec<Member<'a>>,
    /// The schemes to measure.
    pub schemes: Vec<Scheme>,
}

/// A matrix of a stack.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// The view in the source.
    pub view: View,
    /// Shape and element type.
    pub matrix: Matrix,
    /// Its sensitivity.
    pub measured: &'a MatrixSensitivity,
}

impl Member<'_> {
    /// The number of bands, and the signal and the energy of all of them.
    fn whole(&self) -> (u64, Noise) {
        (bands(self.matrix), Noise { weighted: self.measured.signal, plain: self.measured.energy })
    }
}

/// Curves of `stacks`, each from at least `sample_bands` bands (0 for all), with some of every matrix, and from as many
/// as bring the relative standard error of every point to one per cent.
///
/// # Errors
/// The errors of reading.
pub fn curves(
    pass: Pass<'_>,
    encoder: Encoder,
    stacks: &[&StackJob<'_>],
    sample_bands: u64,
) -> Result<Vec<Vec<SchemeNoise>>> {
    let at_once = if pass.journal.is_kept() { MATRICES_PER_RECORD } else { MATRICES_AT_ONCE };
    let mut curves = Vec::with_capacity(stacks.len());
    while curves.len() < stacks.len() {
        let rest = &stacks[curves.len()..];
        let group = &rest[..leading(rest, at_once, |stack| stack.matrices.len() as u64)];
        let key = format!("curves/{}", curves.len());
        if let Some(known) =
            pass.journal.find::<Vec<Vec<SchemeNoise>>>(&key)?.filter(|known| known.len() == group.len())
        {
            pass.progress.advance(group.iter().map(|stack| first_bytes(stack, sample_bands)).sum());
            curves.extend(known);
            continue;
        }
        let measured = curves_at_once(pass, encoder, group, sample_bands)?;
        pass.journal.put(&key, &measured)?;
        curves.extend(measured);
    }
    Ok(curves)
}

fn curves_at_once(
    pass: Pass<'_>,
    encoder: Encoder,
    stacks: &[&StackJob<'_>],
    sample_bands: u64,
) -> Result<Vec<Vec<SchemeNoise>>> {
    let has_search = encoder.effort != Effort::Fast;
    let new = |stack: &&StackJob<'_>| vec![MatrixSums::new(stack.schemes.len(), has_search); stack.matrices.len()];
    let mut sums: Vec<Vec<MatrixSums>> = stacks.iter().map(new).collect();
    let first = |stack: &&StackJob<'_>| {
        let of =
            |member: &Member<'_>| Sample::first(bands(member.matrix), (sample_bands, stack.matrices.len()), has_search);
        stack.matrices.iter().map(of).collect()
    };
    let mut wanted: Vec<Vec<Sample>> = stacks.iter().map(first).collect();
    for round in 0.. {
        measure::encode(pass, encoder, stacks, (&wanted, &mut sums))?;
        // The last rounds are for matrices of which nothing is known: all of their bands are encoded.
        let is_last = round >= MORE_ROUNDS;
        wanted = stacks.iter().zip(&sums).map(|(stack, sums)| more(stack, sums, is_last)).collect();
        let added = measure::added_bytes(stacks, &wanted, &sums);
        if added == 0 {
            break;
        }
        pass.progress.extend(added);
    }
    Ok(stacks.iter().zip(&sums).map(|(stack, sums)| points(stack, sums)).collect())
}

/// Bytes of the source that [`curves`] reads in the first round for each matrix of a stack of `count` such matrices.
pub(crate) fn sampled_bytes(matrix: Matrix, sample_bands: u64, count: usize) -> u64 {
    sample::first_bands(bands(matrix), sample_bands, count) * band_bytes(matrix)
}

/// Bytes of the source that [`curves`] reads of `stack` in the first round.
#[must_use]
pub(crate) fn first_bytes(stack: &StackJob<'_>, sample_bands: u64) -> u64 {
    let count = stack.matrices.len();
    stack.matrices.iter().map(|member| sampled_bytes(member.matrix, sample_bands, count)).sum()
}

/// The curve of `stack`, from the sums over its matrices.
fn points(stack: &StackJob<'_>, sums: &[MatrixSums]) -> Vec<SchemeNoise> {
    let point = |(at, &scheme): (usize, &Scheme)| {
        let estimates = || stack.matrices.iter().zip(sums).map(move |(member, sums)| sums.estimate(at, member.whole()));
        let weighted: f64 = estimates().map(|estimate| estimate.noise.weighted).sum();
        // The matrices are sampled independently.
        let variance: f64 = estimates().map(|estimate| estimate.variance).sum();
        SchemeNoise {
            scheme,
            noises: estimates().map(|estimate| estimate.noise).collect(),
            standard_error: if weighted > 0.0 { variance.sqrt() / weighted } else { 0.0 },
        }
    };
    stack.schemes.iter().enumerate().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::energy::DeadWeights;
    use crate::sensitivity::{Origin, Vectors};

    #[test]
    fn objectives_weigh_as_they_say() {
        let noise = Noise { weighted: 3.0, plain: 4.0 };
        let measured = |energy, origin| MatrixSensitivity {
            vectors: Vectors { importance: [].into(), gain: Gain::Same(1.0) },
            signal: 20.0,
            energy,
            dead: DeadWeights::default(),
            origin,
        };
        let file = measured(16.0, Origin::File);
        // 3 (1 + 4 · 3 ÷ 20)
        assert!((Objective::Output.loss(noise, &file) - 4.8).abs() < 1e-12);
        assert_eq!(Objective::Mse.loss(noise, &file), 4.0);
        assert_eq!(Objective::Mint.loss(noise, &file), 0.5);
        assert_eq!(Objective::Mint.loss(noise, &measured(0.0, Origin::File)), 0.0);
        // An estimate counts only in part.
        let hedged = Objective::Output.loss(noise, &measured(16.0, Origin::Propagated));
        assert!(4.8 < hedged && hedged < 20.0 * 4.0 / 16.0, "{hedged}");
    }
}
