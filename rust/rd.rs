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

use std::str::FromStr;

use crate::checkpoint::stream::{Pass, Reader, bands, chunk_bands};
use crate::checkpoint::{Matrix, Tensor};
use crate::error::{Error, Result};
use crate::kernel::affine::RowError;
use crate::kernel::band::energy;
use crate::kernel::vector::ROWS;
use crate::math::decibels;
use crate::quant::{Encoded, Encoder};
use crate::scheme::Affine;
use crate::sensitivity::{Gain, Measured};

/// Bands of a matrix that are encoded for its curve at first, unless the caller says otherwise.
pub const SAMPLE_BANDS: u64 = 64;

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
    pub fn loss(self, noise: Noise, measured: &Measured) -> f64 {
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

    /// Ratio of `measured`'s signal to this, in decibels.
    #[must_use]
    pub fn sqnr_db(self, measured: &Measured) -> f64 {
        decibels(measured.signal / self.weighted)
    }
}

/// One scheme of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The scheme.
    pub scheme: Affine,
    /// What it does to the whole matrix.
    pub noise: Noise,
    /// Standard error of `noise.weighted`, relatively; 0 where all bands were encoded.
    pub standard_error: f64,
}

/// A matrix to encode in each of `schemes`.
pub struct Ask<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// Its shape.
    pub matrix: Matrix,
    /// The schemes.
    pub schemes: Vec<Affine>,
    /// Its sensitivity.
    pub measured: &'a Measured,
}

/// Some of the sampled bands of one matrix.
struct Piece {
    ask: usize,
    bands: Vec<u64>,
    is_last: bool,
}

/// Signal and noise of one band: the matrix's own, then one entry per scheme.
struct BandSums {
    signal: f64,
    energy: f64,
    noise: Vec<Noise>,
}

/// Curves of `asks`, each from at most `sample_bands` bands (all of them, if 0), or from more where that leaves a
/// point's error above one per cent.
///
/// # Errors
/// Those of reading.
pub fn curves(pass: Pass<'_>, encoder: Encoder, asks: &[Ask<'_>], sample_bands: u64) -> Result<Vec<Vec<Point>>> {
    let first: Vec<_> =
        asks.iter().enumerate().map(|(at, ask)| (at, sample(bands(ask.matrix), sample_bands))).collect();
    let mut curves = encode(pass, encoder, asks, &first)?;
    let mut again = Vec::new();
    for (at, sampled) in &first {
        let error = curves[*at].iter().map(|point| point.standard_error).fold(0.0, f64::max);
        if error > TARGET_ERROR {
            let wanted = sampled.len() as f64 * (error / TARGET_ERROR) * (error / TARGET_ERROR);
            #[expect(clippy::cast_sign_loss, reason = "a count")]
            again.push((*at, sample(bands(asks[*at].matrix), wanted.ceil() as u64)));
        }
    }
    for ((at, _), curve) in again.iter().zip(encode(pass, encoder, asks, &again)?) {
        curves[*at] = curve;
    }
    Ok(curves)
}

/// Encodes the `sampled` bands of some of `asks`; a curve for each.
fn encode(
    pass: Pass<'_>,
    encoder: Encoder,
    asks: &[Ask<'_>],
    sampled: &[(usize, Vec<u64>)],
) -> Result<Vec<Vec<Point>>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (ask, bands) in sampled {
        let step = usize::try_from(chunk_bands(asks[*ask].matrix, pass.chunk_bytes)).unwrap_or(1);
        pieces.extend(bands.chunks(step).map(|bands| Piece { ask: *ask, bands: bands.to_vec(), is_last: false }));
        if let Some(last) = pieces.last_mut() {
            last.is_last = true;
        }
    }
    let mut curves = Vec::with_capacity(sampled.len());
    let mut measured = Vec::new();
    pass.workers.in_order(
        pass.progress,
        &pieces,
        || (Reader::default(), Encoded::default()),
        |(reader, encoded), piece| {
            let ask = &asks[piece.ask];
            let mut sums = Vec::with_capacity(piece.bands.len());
            for &band in &piece.bands {
                sums.push(measure(pass, encoder, ask, band, reader, encoded)?);
                pass.progress.advance(ask.matrix.row_bytes() * ROWS as u64);
            }
            Ok(sums)
        },
        |piece, sums| {
            measured.extend(sums);
            if piece.is_last {
                curves.push(points(&asks[piece.ask], &measured)?);
                measured.clear();
            }
            Ok(())
        },
    )?;
    Ok(curves)
}

/// Bytes of source that [`curves`] reads at first.
#[must_use]
pub fn sampled_bytes(matrix: Matrix, sample_bands: u64) -> u64 {
    sample(bands(matrix), sample_bands).len() as u64 * matrix.row_bytes() * ROWS as u64
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
    pass: Pass<'_>,
    encoder: Encoder,
    ask: &Ask<'_>,
    at: u64,
    reader: &mut Reader,
    encoded: &mut Encoded,
) -> Result<BandSums> {
    let vectors = &ask.measured.vectors;
    let mut sums = BandSums { signal: 0.0, energy: 0.0, noise: Vec::with_capacity(ask.schemes.len()) };
    reader.bands(pass.checkpoint, ask.tensor, ask.matrix, &(at..at + 1), |rows, band, _| {
        let first = usize::try_from(rows.start).map_err(|_| Error::Bug("row".to_owned()))?;
        let length = usize::try_from(rows.end - rows.start).map_err(|_| Error::Bug("rows".to_owned()))?;
        for (row, found) in energy(pass.level, band, &vectors.k).iter().take(length).enumerate() {
            sums.signal += 0.5 * vectors.r.of(first + row) * found.weighted;
            sums.energy += found.plain;
        }
        for &scheme in &ask.schemes {
            encoder.encode(scheme, ask.matrix.float, band, &vectors.k, encoded);
            let errors = encoder.error(scheme, band, &vectors.k, encoded);
            sums.noise.push(Noise::of(&errors[..length], &vectors.r, first));
        }
        Ok(())
    })?;
    Ok(sums)
}

/// The curve of `ask`, from the bands that were encoded.
fn points(ask: &Ask<'_>, encoded: &[BandSums]) -> Result<Vec<Point>> {
    let (measured, all) = (ask.measured, bands(ask.matrix));
    let signal: f64 = encoded.iter().map(|band| band.signal).sum();
    let energy: f64 = encoded.iter().map(|band| band.energy).sum();
    let (count, everything) = (encoded.len() as f64, encoded.len() as u64 == all);
    // One band has no spread, and bands of zeros are no sample of a matrix that has others.
    let says_nothing =
        count < 2.0 || (signal <= 0.0 && measured.signal > 0.0) || (energy <= 0.0 && measured.energy > 0.0);
    let mut points = Vec::with_capacity(ask.schemes.len());
    for (at, &scheme) in ask.schemes.iter().enumerate() {
        let weighted: f64 = encoded.iter().map(|band| band.noise[at].weighted).sum();
        let plain: f64 = encoded.iter().map(|band| band.noise[at].plain).sum();
        if !(weighted.is_finite() && plain.is_finite()) {
            return Err(Error::Bug(format!("the error of `{}` at {scheme} is not a number", ask.tensor.name)));
        }
        if everything || says_nothing {
            let standard_error = if everything { 0.0 } else { f64::INFINITY };
            points.push(Point { scheme, noise: Noise { weighted, plain }, standard_error });
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
        points.push(Point {
            scheme,
            noise: Noise { weighted: measured.signal * ratio, plain: measured.energy * per(plain, energy) },
            standard_error: per((unsampled * count / (count - 1.0) * spread).sqrt(), weighted),
        });
    }
    Ok(points)
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
        let measured = |energy, origin| Measured {
            vectors: Vectors { k: [].into(), r: Gain::Same(1.0) },
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
