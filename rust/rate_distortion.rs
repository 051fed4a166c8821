//! Rate–distortion curves: the loss of each matrix in each scheme.
//!
//! The loss of a point is measured with the encoder that writes. For a matrix with many bands, only a fixed, evenly
//! spaced sample of bands is encoded. A ratio estimator scales its loss by the signal energy, which is known for all
//! rows:
//!
//! ```text
//! L ≈ S · Σ_b L_b / Σ_b S_b          over the sampled bands b; S, S_b: signal of the matrix, of the band
//! ```
//!
//! with the standard error of a ratio estimator under sampling without replacement. Bytes are always exact.
//!
//! Every matrix of a stack is estimated separately, and the losses add up: no matrix is skipped or stands for another.

use std::str::FromStr;

use crate::band::{Matrix, band_bytes, bands, energy};
use crate::checkpoint::View;
use crate::checkpoint::stream::Pass;
use crate::codec::{Encoder, Metric, RowError, Scheme, Scratch};
use crate::error::{Error, Result};
use crate::math::decibels;
use crate::pass::{BandAt, BandJob, BandSelection};
use crate::sensitivity::{Gain, MatrixSensitivity};

/// Default number of bands of a matrix that are encoded for its curve in the first round.
pub(crate) const SAMPLE_BANDS: u64 = 64;

/// Relative standard error above which a point is measured again, with as many bands as should reach it.
const TARGET_ERROR: f64 = 0.01;

/// The objective that a plan minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// `½ Σ r k Δw²`: the predicted loss of the model, by its sensitivity.
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
                (1.0 - doubt) * noise.weighted + doubt * measured.signal * plain
            }
            Self::Mse => noise.plain,
            Self::Mint => plain.sqrt(),
        }
    }
}

/// Errors of a matrix, summed over its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
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

/// Bands to encode of each matrix in a stack of `count`, if `wanted` bands are to be encoded in all; 0 stands for all
/// bands.
fn bands_per_matrix(wanted: u64, count: usize) -> u64 {
    /// With fewer bands the spread between them is poorly known.
    const MIN_BANDS: u64 = 4;
    if wanted == 0 { 0 } else { wanted.div_ceil(count.max(1) as u64).max(MIN_BANDS.min(wanted)) }
}

/// A matrix: index of its stack, index within the stack.
type MatrixIndex = (usize, usize);

/// Signal, energy and noises of one band. Signal and energy are summed for samples only, since the sums over the whole
/// matrix are known.
struct BandSums {
    signal: f64,
    energy: f64,
    noise: Vec<Noise>,
}

/// The errors of one matrix in one scheme, and the relative standard error of the weighted noise.
#[derive(Clone, Copy)]
struct Estimate {
    noise: Noise,
    error: f64,
}

/// Curves of `stacks`, each from at most `sample_bands` bands (0 for all), with some of every matrix. Points with a
/// relative standard error of more than one per cent are measured again with more bands.
///
/// # Errors
/// The errors of reading.
pub fn curves(
    pass: Pass<'_>,
    encoder: Encoder,
    stacks: &[&StackJob<'_>],
    sample_bands: u64,
) -> Result<Vec<Vec<SchemeNoise>>> {
    let sampled = |stack: usize, wanted: u64| {
        let of = move |(at, member): (usize, &Member<'_>)| ((stack, at), sample(bands(member.matrix), wanted));
        stacks[stack].matrices.iter().enumerate().map(of)
    };
    let per_matrix = |stack: usize| bands_per_matrix(sample_bands, stacks[stack].matrices.len());
    let first: Vec<_> = (0..stacks.len()).flat_map(|stack| sampled(stack, per_matrix(stack))).collect();
    let mut estimates = encode(pass, encoder, stacks, &first)?.into_iter();
    let mut curves: Vec<Vec<SchemeNoise>> = stacks
        .iter()
        .map(|stack| points(stack, &estimates.by_ref().take(stack.matrices.len()).collect::<Vec<_>>()))
        .collect();
    let (mut again, mut which) = (Vec::new(), Vec::new());
    for (at, curve) in curves.iter().enumerate() {
        let error = curve.iter().map(|point| point.standard_error).fold(0.0, f64::max);
        if error > TARGET_ERROR {
            let longest = stacks[at].matrices.iter().map(|member| bands(member.matrix)).max().unwrap_or(0);
            let wanted = longest.min(per_matrix(at)) as f64 * (error / TARGET_ERROR) * (error / TARGET_ERROR);
            #[expect(clippy::cast_sign_loss, reason = "a count")]
            again.extend(sampled(at, wanted.ceil() as u64));
            which.push(at);
        }
    }
    let mut estimates = encode(pass, encoder, stacks, &again)?.into_iter();
    for at in which {
        let of_stack: Vec<_> = estimates.by_ref().take(stacks[at].matrices.len()).collect();
        curves[at] = points(stacks[at], &of_stack);
    }
    Ok(curves)
}

/// Encodes the `sampled` bands of matrices of `stacks`. Returns one estimate per matrix and scheme.
fn encode(
    pass: Pass<'_>,
    encoder: Encoder,
    stacks: &[&StackJob<'_>],
    sampled: &[(MatrixIndex, Vec<u64>)],
) -> Result<Vec<Vec<Estimate>>> {
    let member = |job: usize| stacks[sampled[job].0.0].matrices[sampled[job].0.1];
    let job = |(at, (_, sample)): (usize, &(MatrixIndex, Vec<u64>))| {
        let Member { view, matrix, .. } = member(at);
        BandJob { matrix, view: Some(view), selection: BandSelection::Sampled(sample.clone()) }
    };
    let jobs: Vec<BandJob> = sampled.iter().enumerate().map(job).collect();
    let mut estimates = Vec::with_capacity(sampled.len());
    let mut measured = Vec::new();
    pass.fold_bands(
        &jobs,
        || (None, Scratch::default()),
        |(metric, scratch), band| {
            let (at, sample) = &sampled[band.job];
            let member = member(band.job);
            // Reuses the metric of the thread's previous band, which is usually of the same matrix.
            let metric = match metric {
                Some((other, metric)) if other == at => &*metric,
                other => &other.insert((*at, Metric::diagonal(&member.measured.vectors.importance))).1,
            };
            let is_sample = (sample.len() as u64) < bands(member.matrix);
            Ok(measure((pass, encoder), &stacks[at.0].schemes, (member, metric), &band, is_sample, scratch))
        },
        |job, sums, is_last| {
            measured.extend(sums);
            if is_last {
                estimates.push(estimated(stacks[sampled[job].0.0], member(job), &measured)?);
                measured.clear();
            }
            Ok(())
        },
    )?;
    Ok(estimates)
}

/// Bytes of the source that [`curves`] reads in the first round for each matrix of a stack of `count` such matrices.
#[must_use]
pub(crate) fn sampled_bytes(matrix: Matrix, sample_bands: u64, count: usize) -> u64 {
    let each = sample(bands(matrix), bands_per_matrix(sample_bands, count)).len() as u64;
    each * band_bytes(matrix)
}

/// At most `wanted` of `bands` bands, evenly spaced; all bands if `wanted` is 0.
fn sample(bands: u64, wanted: u64) -> Vec<u64> {
    if wanted == 0 || bands <= wanted {
        return (0..bands).collect();
    }
    // The middle of each of `wanted` equal intervals.
    (0..wanted).map(|at| ((2 * at + 1) * bands) / (2 * wanted)).collect()
}

/// Encodes one band in every scheme.
fn measure(
    (pass, encoder): (Pass<'_>, Encoder),
    schemes: &[Scheme],
    (member, metric): (Member<'_>, &Metric<'_>),
    BandAt { rows, band, .. }: &BandAt<'_>,
    is_sample: bool,
    scratch: &mut Scratch,
) -> BandSums {
    let gain = &member.measured.vectors.gain;
    let first = rows.start as usize;
    let mut sums = BandSums { signal: 0.0, energy: 0.0, noise: Vec::with_capacity(schemes.len()) };
    if is_sample {
        let found = energy(pass.isa, band.columns, metric.importance());
        for (row, found) in found.iter().take(band.rows).enumerate() {
            sums.signal += 0.5 * gain.of(first + row) * found.weighted;
            sums.energy += found.plain;
        }
    }
    let errors = encoder.errors(schemes, (member.matrix.float, scratch), *band, metric);
    sums.noise.extend(errors.iter().map(|errors| Noise::of(&errors[..band.rows], gain, first)));
    sums
}

/// The curve of `stack`, from the estimates of its matrices.
fn points(stack: &StackJob<'_>, matrices: &[Vec<Estimate>]) -> Vec<SchemeNoise> {
    let point = |(at, &scheme): (usize, &Scheme)| {
        let noises: Vec<Noise> = matrices.iter().map(|schemes| schemes[at].noise).collect();
        let standard_error = if let [only] = matrices { only[at].error } else { combined_error(at, matrices) };
        SchemeNoise { scheme, noises, standard_error }
    };
    stack.schemes.iter().enumerate().map(point).collect()
}

/// Relative standard error of the stack's summed noise in scheme `at`. The matrices are sampled independently.
fn combined_error(at: usize, matrices: &[Vec<Estimate>]) -> f64 {
    let (mut variance, mut sum) = (0.0, 0.0);
    for Estimate { noise, error } in matrices.iter().map(|schemes| schemes[at]) {
        // Without noise the error is 0, even if it is infinite.
        let error = if noise.weighted > 0.0 { error * noise.weighted } else { 0.0 };
        variance += error * error;
        sum += noise.weighted;
    }
    if sum > 0.0 { variance.sqrt() / sum } else { 0.0 }
}

/// Estimates the errors of one matrix of `stack` in every scheme from the encoded bands.
fn estimated(stack: &StackJob<'_>, member: Member<'_>, encoded: &[BandSums]) -> Result<Vec<Estimate>> {
    let (measured, all) = (member.measured, bands(member.matrix));
    let signal: f64 = encoded.iter().map(|band| band.signal).sum();
    let energy: f64 = encoded.iter().map(|band| band.energy).sum();
    let (count, everything) = (encoded.len() as f64, encoded.len() as u64 == all);
    // One band has no spread, and bands of zeros do not represent a matrix with other weights.
    let is_uninformative =
        count < 2.0 || (signal <= 0.0 && measured.signal > 0.0) || (energy <= 0.0 && measured.energy > 0.0);
    let mut estimates = Vec::with_capacity(stack.schemes.len());
    for (at, &scheme) in stack.schemes.iter().enumerate() {
        let weighted: f64 = encoded.iter().map(|band| band.noise[at].weighted).sum();
        let plain: f64 = encoded.iter().map(|band| band.noise[at].plain).sum();
        if !(weighted.is_finite() && plain.is_finite()) {
            return Err(Error::Bug(format!("the error of `{}` at {scheme} is not finite", stack.name)));
        }
        if everything || is_uninformative {
            let error = if everything { 0.0 } else { f64::INFINITY };
            estimates.push(Estimate { noise: Noise { weighted, plain }, error });
            continue;
        }
        let per = |noise: f64, signal: f64| if signal > 0.0 { noise / signal } else { 0.0 };
        let ratio = per(weighted, signal);
        let off = |band: &BandSums| {
            let off = band.noise[at].weighted - ratio * band.signal;
            off * off
        };
        let spread: f64 = encoded.iter().map(off).sum();
        let unsampled = 1.0 - count / all as f64;
        estimates.push(Estimate {
            noise: Noise { weighted: measured.signal * ratio, plain: measured.energy * per(plain, energy) },
            error: per((unsampled * count / (count - 1.0) * spread).sqrt(), weighted),
        });
    }
    Ok(estimates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::energy::DeadWeights;
    use crate::sensitivity::{Origin, Vectors};

    #[test]
    fn the_sample_is_spread_evenly_and_never_repeats() {
        for (bands, wanted) in [(5, 0), (5, 9), (128, 128), (129, 128), (1_000, 128), (6_144, 128), (3, 1)] {
            let sampled = sample(bands, wanted);
            let expected = if wanted == 0 { bands } else { bands.min(wanted) };
            assert_eq!(sampled.len() as u64, expected);
            assert!(sampled.windows(2).all(|pair| pair[0] < pair[1]) && sampled.iter().all(|&band| band < bands));
        }
        assert_eq!(sample(10, 2), [2, 7]);
    }

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
        assert_eq!(Objective::Output.loss(noise, &file), 3.0);
        assert_eq!(Objective::Mse.loss(noise, &file), 4.0);
        assert_eq!(Objective::Mint.loss(noise, &file), 0.5);
        assert_eq!(Objective::Mint.loss(noise, &measured(0.0, Origin::File)), 0.0);
        // An estimate counts only in part.
        let hedged = Objective::Output.loss(noise, &measured(16.0, Origin::Propagated));
        assert!(3.0 < hedged && hedged < 20.0 * 4.0 / 16.0, "{hedged}");
    }
}
