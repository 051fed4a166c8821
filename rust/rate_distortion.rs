//! Rate–distortion curves: what each scheme would do to each matrix.
//!
//! A point's loss is that of the encoder that will write. Where a matrix has many bands, a fixed, evenly spaced subset
//! of them is encoded, and the whole is estimated by the ratio to the signal energy, which is known of all rows:
//!
//! ```text
//! L ≈ S · Σ_b L_b / Σ_b S_b          over the sampled bands b; S, S_b: signal of the matrix, of the band
//! ```
//!
//! with the standard error of a ratio under sampling without replacement. Bytes are always exact.
//!
//! The matrices of a stack are estimated one by one and add up: none is left out, and none stands for another.

use std::str::FromStr;

use crate::band::{Matrix, band_bytes, bands, energy};
use crate::checkpoint::View;
use crate::checkpoint::stream::Pass;
use crate::codec::{Encoder, Metric, RowError, Scheme, Scratch};
use crate::error::{Error, Result};
use crate::math::decibels;
use crate::pass::{BandAt, BandJob, BandSelection};
use crate::sensitivity::{Gain, MatrixSensitivity};

/// Bands of a matrix that are encoded for its curve at first, unless the caller says otherwise.
pub(crate) const SAMPLE_BANDS: u64 = 64;

/// Where the standard error of a point is larger than this, relatively, so many bands are encoded that it should not be.
const TARGET_ERROR: f64 = 0.01;

/// What a plan minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// `½ Σ r k Δw²`: the model's loss, by the sensitivity.
    #[default]
    Output,
    /// `Σ Δw²`: squared error, all weights alike.
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
    /// Loss of a matrix measured as `measured` whose errors are `noise`.
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

/// Errors of a matrix, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// `½ Σ r k Δw²`
    pub weighted: f64,
    /// `Σ Δw²`
    pub plain: f64,
}

impl Noise {
    /// That of the rows from `first_row` on, of these errors and with the gains `r`.
    #[must_use]
    pub fn of(errors: &[RowError], r: &Gain, first_row: usize) -> Self {
        let mut noise = Self::default();
        for (row, error) in errors.iter().enumerate() {
            noise.weighted += 0.5 * r.of(first_row + row) * error.weighted;
            noise.plain += error.plain;
        }
        noise
    }

    /// Adds that of other rows.
    pub fn add(&mut self, other: Self) {
        self.weighted += other.weighted;
        self.plain += other.plain;
    }
}

/// Ratio of the signal of `measured` matrices to their `noises`, in decibels.
pub(crate) fn sqnr_db<'a>(matrices: impl Iterator<Item = (Noise, &'a MatrixSensitivity)>) -> f64 {
    let sum = |(signal, noise): (f64, f64), (of, measured): (Noise, &MatrixSensitivity)| {
        (signal + measured.signal, noise + of.weighted)
    };
    let (signal, noise) = matrices.fold((0.0, 0.0), sum);
    decibels(signal / noise)
}

/// What one scheme does to a stack of matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemeNoise {
    /// The scheme.
    pub scheme: Scheme,
    /// What it does to each matrix.
    pub noises: Vec<Noise>,
    /// Standard error of the weighted noise of all of them, relatively; 0 where all bands were encoded.
    pub standard_error: f64,
}

/// Matrices to encode in each of `schemes`: one, or a stack of them.
pub struct StackJob<'a> {
    /// What they are stored in.
    pub name: &'a str,
    /// Each of them, and its sensitivity.
    pub matrices: Vec<Member<'a>>,
    /// The schemes.
    pub schemes: Vec<Scheme>,
}

/// A matrix of a stack, or the only one.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// Where it is.
    pub view: View,
    /// Its shape.
    pub matrix: Matrix,
    /// Its sensitivity.
    pub measured: &'a MatrixSensitivity,
}

/// Bands of each matrix of a stack of `count` that are encoded, of `wanted` for all of them; all of them, if 0.
fn bands_each(wanted: u64, count: usize) -> u64 {
    /// Fewer say little of how they differ.
    const LEAST: u64 = 4;
    if wanted == 0 { 0 } else { wanted.div_ceil(count.max(1) as u64).max(LEAST.min(wanted)) }
}

/// Which matrix: of which ask, which one.
type At = (usize, usize);

/// Signal and noise of one band: of a sample the matrix's own, which else nobody asks for, then one entry per scheme.
struct BandSums {
    signal: f64,
    energy: f64,
    noise: Vec<Noise>,
}

/// What a scheme does to one matrix, and the standard error of the weighted noise.
#[derive(Clone, Copy)]
struct Estimate {
    noise: Noise,
    error: f64,
}

/// Curves of `asks`, each from at most `sample_bands` bands (all of them, if 0; some of every matrix of a stack), or from
/// more where that leaves a point's error above one per cent.
///
/// # Errors
/// Those of reading.
pub fn curves(
    pass: Pass<'_>,
    encoder: Encoder,
    asks: &[&StackJob<'_>],
    sample_bands: u64,
) -> Result<Vec<Vec<SchemeNoise>>> {
    let sampled = |ask: usize, wanted: u64| {
        let of = move |(at, member): (usize, &Member<'_>)| ((ask, at), sample(bands(member.matrix), wanted));
        asks[ask].matrices.iter().enumerate().map(of)
    };
    let each = |ask: usize| bands_each(sample_bands, asks[ask].matrices.len());
    let first: Vec<_> = (0..asks.len()).flat_map(|ask| sampled(ask, each(ask))).collect();
    let mut estimates = encode(pass, encoder, asks, &first)?.into_iter();
    let mut curves: Vec<Vec<SchemeNoise>> =
        asks.iter().map(|ask| points(ask, &estimates.by_ref().take(ask.matrices.len()).collect::<Vec<_>>())).collect();
    let (mut again, mut which) = (Vec::new(), Vec::new());
    for (at, curve) in curves.iter().enumerate() {
        let error = curve.iter().map(|point| point.standard_error).fold(0.0, f64::max);
        if error > TARGET_ERROR {
            let longest = asks[at].matrices.iter().map(|member| bands(member.matrix)).max().unwrap_or(0);
            let wanted = longest.min(each(at)) as f64 * (error / TARGET_ERROR) * (error / TARGET_ERROR);
            #[expect(clippy::cast_sign_loss, reason = "a count")]
            again.extend(sampled(at, wanted.ceil() as u64));
            which.push(at);
        }
    }
    let mut estimates = encode(pass, encoder, asks, &again)?.into_iter();
    for at in which {
        let of_ask: Vec<_> = estimates.by_ref().take(asks[at].matrices.len()).collect();
        curves[at] = points(asks[at], &of_ask);
    }
    Ok(curves)
}

/// Encodes the `sampled` bands of some matrices of `asks`; for each, an estimate for every scheme.
fn encode(
    pass: Pass<'_>,
    encoder: Encoder,
    asks: &[&StackJob<'_>],
    sampled: &[(At, Vec<u64>)],
) -> Result<Vec<Vec<Estimate>>> {
    let member = |job: usize| asks[sampled[job].0.0].matrices[sampled[job].0.1];
    let job = |(at, (_, sample)): (usize, &(At, Vec<u64>))| {
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
            // Of the last matrix this thread was at: most bands are of the same.
            let metric = match metric {
                Some((other, metric)) if other == at => &*metric,
                other => &other.insert((*at, Metric::diagonal(&member.measured.vectors.importance))).1,
            };
            let is_sample = (sample.len() as u64) < bands(member.matrix);
            Ok(measure((pass, encoder), &asks[at.0].schemes, (member, metric), &band, is_sample, scratch))
        },
        |job, sums, is_last| {
            measured.extend(sums);
            if is_last {
                estimates.push(estimated(asks[sampled[job].0.0], member(job), &measured)?);
                measured.clear();
            }
            Ok(())
        },
    )?;
    Ok(estimates)
}

/// Bytes of source that [`curves`] reads at first for a stack of `count` of these.
#[must_use]
pub(crate) fn sampled_bytes(matrix: Matrix, sample_bands: u64, count: usize) -> u64 {
    let each = sample(bands(matrix), bands_each(sample_bands, count)).len() as u64;
    each * band_bytes(matrix)
}

/// At most `wanted` of `bands` bands, evenly spaced; all, if `wanted` is 0.
fn sample(bands: u64, wanted: u64) -> Vec<u64> {
    if wanted == 0 || bands <= wanted {
        return (0..bands).collect();
    }
    // The middle of each of `wanted` equal stretches.
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

/// The curve of `ask`, from what was found of each of its matrices.
fn points(ask: &StackJob<'_>, matrices: &[Vec<Estimate>]) -> Vec<SchemeNoise> {
    let point = |(at, &scheme): (usize, &Scheme)| {
        let noises: Vec<Noise> = matrices.iter().map(|schemes| schemes[at].noise).collect();
        let standard_error = if let [only] = matrices { only[at].error } else { together(at, matrices) };
        SchemeNoise { scheme, noises, standard_error }
    };
    ask.schemes.iter().enumerate().map(point).collect()
}

/// Relative standard error of the sum of what scheme `at` does to each of several matrices, sampled independently.
fn together(at: usize, matrices: &[Vec<Estimate>]) -> f64 {
    let (mut variance, mut sum) = (0.0, 0.0);
    for Estimate { noise, error } in matrices.iter().map(|schemes| schemes[at]) {
        // No noise has no error, also where nothing is known of it.
        let error = if noise.weighted > 0.0 { error * noise.weighted } else { 0.0 };
        variance += error * error;
        sum += noise.weighted;
    }
    if sum > 0.0 { variance.sqrt() / sum } else { 0.0 }
}

/// What every scheme of `ask` does to one of its matrices, from the bands that were encoded.
fn estimated(ask: &StackJob<'_>, member: Member<'_>, encoded: &[BandSums]) -> Result<Vec<Estimate>> {
    let (measured, all) = (member.measured, bands(member.matrix));
    let signal: f64 = encoded.iter().map(|band| band.signal).sum();
    let energy: f64 = encoded.iter().map(|band| band.energy).sum();
    let (count, everything) = (encoded.len() as f64, encoded.len() as u64 == all);
    // One band has no spread, and bands of zeros are no sample of a matrix that has others.
    let says_nothing =
        count < 2.0 || (signal <= 0.0 && measured.signal > 0.0) || (energy <= 0.0 && measured.energy > 0.0);
    let mut estimates = Vec::with_capacity(ask.schemes.len());
    for (at, &scheme) in ask.schemes.iter().enumerate() {
        let weighted: f64 = encoded.iter().map(|band| band.noise[at].weighted).sum();
        let plain: f64 = encoded.iter().map(|band| band.noise[at].plain).sum();
        if !(weighted.is_finite() && plain.is_finite()) {
            return Err(Error::Bug(format!("the error of `{}` at {scheme} is not a number", ask.name)));
        }
        if everything || says_nothing {
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
            origin,
        };
        let file = measured(16.0, Origin::File);
        assert_eq!(Objective::Output.loss(noise, &file), 3.0);
        assert_eq!(Objective::Mse.loss(noise, &file), 4.0);
        assert_eq!(Objective::Mint.loss(noise, &file), 0.5);
        assert_eq!(Objective::Mint.loss(noise, &measured(0.0, Origin::File)), 0.0);
        // An estimate is believed in part.
        let hedged = Objective::Output.loss(noise, &measured(16.0, Origin::Propagated));
        assert!(3.0 < hedged && hedged < 20.0 * 4.0 / 16.0, "{hedged}");
    }
}
