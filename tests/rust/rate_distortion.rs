//! Compares energies and rate–distortion curves with plain loops in `f64`.

use std::collections::BTreeMap;

use crate::checkpoint::stream::{CHUNK_BYTES, Reader};
use crate::checkpoint::{Checkpoint, Matrix, View};
use crate::codec::affine::Affine;
use crate::codec::affine::encoder::{Encoded, GridEncoder};
use crate::codec::{Bits, Effort, Encoder};
use crate::codec::{Channels, RowError};
use crate::dtype::Float;
use crate::pass::energy::{Energy, EnergyJob, column_means, energies};
use crate::progress::Stage;
use crate::rate_distortion::{self, SchemeNoise};
use crate::sensitivity::{Gain, MatrixSensitivity, Origin, Vectors};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};
use proptest::prelude::*;

use super::support::{self, Crew, Numbers, checkpoint, made};

/// Energies of the only tensor, with this number of threads and chunk size.
fn measured(checkpoint: &Checkpoint, k: &[f32], threads: usize, chunk_bytes: u64) -> crate::error::Result<Energy> {
    let crew = Crew::new(threads, chunk_bytes);
    let tensor = &checkpoint.tensors[0];
    let job = EnergyJob { view: View::whole(0, tensor), matrix: tensor.matrix().unwrap(), k };
    Ok(energies(crew.pass(checkpoint, Isa::detect()), &[job])?.remove(0))
}

fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-5 * expected
}

proptest! {
    #![proptest_config(support::config(60))]

    #[test]
    fn energies_are_the_sums_of_squares(
        rows in 1..40_usize, cols in 1..200_usize, seed: u64,
        float in prop::sample::select([Float::F32, Float::F16, Float::BF16].as_slice()),
    ) {
        let mut numbers = Numbers(seed);
        let weights = numbers.weights(rows * cols, float);
        let k: Vec<f32> = (0..cols).map(|_| numbers.unit() as f32).collect();
        let (_dir, checkpoint) = checkpoint(&[made("w", float, &[rows as u64, cols as u64], &weights)]);
        let found = measured(&checkpoint, &k, 2, CHUNK_BYTES).unwrap();
        prop_assert_eq!(found.rows.len(), rows);
        let (mut weighted, mut plain) = (0.0, 0.0);
        for (row, energy) in weights.chunks(cols).zip(&found.rows) {
            let squares = || row.iter().map(|&w| f64::from(w) * f64::from(w));
            let expected: f64 = squares().zip(&k).map(|(square, &k)| square * f64::from(k)).sum();
            prop_assert!(is_close(*energy, expected), "{energy} {expected}");
            weighted += expected;
            plain += squares().sum::<f64>();
        }
        prop_assert!(is_close(found.weighted, weighted) && is_close(found.plain, plain), "{:?}", found);
        // Chunk size and number of threads do not change a bit.
        for (threads, chunk_bytes) in [(1, 1), (2, 1_000), (1, 1 << 30)] {
            prop_assert_eq!(&measured(&checkpoint, &k, threads, chunk_bytes).unwrap(), &found);
        }
        let crew = Crew::new(2, 1_000);
        let (tensor, matrix) = (&checkpoint.tensors[0], checkpoint.tensors[0].matrix().unwrap());
        let means = column_means(crew.pass(&checkpoint, Isa::detect()), View::whole(0, tensor), matrix).unwrap();
        for (column, mean) in means.iter().enumerate() {
            let squares = weights.iter().skip(column).step_by(cols).map(|&w| f64::from(w) * f64::from(w));
            prop_assert!(is_close(*mean, squares.sum::<f64>() / rows as f64));
        }
    }
}

#[test]
fn non_finite_weights_are_reported_with_position_and_count() {
    for (bad, float) in [(f32::NAN, Float::BF16), (f32::INFINITY, Float::F16), (f32::NEG_INFINITY, Float::F32)] {
        let (rows, cols) = (21, 70);
        let mut weights = Numbers(4).weights(rows * cols, float);
        // The first non-finite value is in row 18; both are in the third band, rows 16 to 20.
        weights[18 * cols + 65] = bad;
        weights[19 * cols] = bad;
        let tensors = [made("model.q_proj.weight", float, &[rows as u64, cols as u64], &weights)];
        let (_dir, checkpoint) = checkpoint(&tensors);
        for (threads, chunk_bytes) in [(1, 1), (2, CHUNK_BYTES)] {
            let fault = measured(&checkpoint, &vec![1.0; cols], threads, chunk_bytes).unwrap_err();
            assert_eq!((fault.slug(), fault.tensor()), ("non-finite", Some("model.q_proj.weight")));
            assert!(fault.path().unwrap().ends_with("model.safetensors"));
            let message = fault.to_string();
            assert!(message.contains("2 non-finite values among rows 16..21, first at [18, 65]"), "{message}");
        }
        // An importance of 0 does not hide it.
        assert_eq!(measured(&checkpoint, &vec![0.0; cols], 1, CHUNK_BYTES).unwrap_err().slug(), "non-finite");
        let crew = Crew::new(1, CHUNK_BYTES);
        let (tensor, matrix) = (&checkpoint.tensors[0], checkpoint.tensors[0].matrix().unwrap());
        let fault = column_means(crew.pass(&checkpoint, Isa::detect()), View::whole(0, tensor), matrix).unwrap_err();
        assert_eq!(fault.slug(), "non-finite");
    }
}

#[test]
fn weights_too_large_to_square_are_reported() {
    let mut weights = Numbers(5).weights(9 * 32, Float::BF16);
    weights[8 * 32 + 3] = -3e38;
    let (_dir, checkpoint) = checkpoint(&[made("w", Float::BF16, &[9, 32], &weights)]);
    let fault = measured(&checkpoint, &[1.0; 32], 1, CHUNK_BYTES).unwrap_err();
    assert_eq!((fault.slug(), fault.tensor()), ("too-large", Some("w")));
    assert!(fault.to_string().contains("e38 at row 8 is too large"), "{fault}");
}

/// A matrix with rows of different magnitudes, and its sensitivity.
fn matrix(rows: usize, cols: usize, each: bool) -> (tempfile::TempDir, Checkpoint, MatrixSensitivity) {
    let mut numbers = Numbers(9);
    let mut weights = Vec::new();
    for _ in 0..rows {
        let size = crate::math::exp(0.5 * numbers.normal());
        weights.extend(numbers.weights(cols, Float::F32).into_iter().map(|w| Float::BF16.round(w * size as f32)));
    }
    let k: Vec<f32> = (0..cols).map(|_| numbers.unit() as f32).collect();
    let r: Vec<f32> = (0..rows).map(|_| 2.0 * numbers.unit() as f32).collect();
    let (dir, checkpoint) = checkpoint(&[made("w", Float::BF16, &[rows as u64, cols as u64], &weights)]);
    let energy = measured(&checkpoint, &k, 2, CHUNK_BYTES).unwrap();
    let r = if each { Gain::Each(r.into()) } else { Gain::Same(3.0) };
    let signal = energy.rows.iter().enumerate().map(|(row, energy)| 0.5 * r.of(row) * energy).sum();
    let vectors = Vectors { importance: k.into(), gain: r };
    (
        dir,
        checkpoint,
        MatrixSensitivity { vectors, signal, energy: energy.plain, dead: energy.dead, origin: Origin::File },
    )
}

fn curve(
    checkpoint: &Checkpoint,
    measured: &MatrixSensitivity,
    (effort, sample_bands): (Effort, u64),
    threads: usize,
    chunk_bytes: u64,
) -> Vec<SchemeNoise> {
    let crew = Crew::new(threads, chunk_bytes);
    let tensor = &checkpoint.tensors[0];
    let matrix: Matrix = tensor.matrix().unwrap();
    let schemes = Affine::all().map(Affine::scheme).filter(|scheme| scheme.fits(matrix.cols)).collect();
    let member = rate_distortion::Member { view: View::whole(0, tensor), matrix, measured };
    let stack = rate_distortion::StackJob { name: "w", matrices: vec![member], schemes };
    let encoder = Encoder { isa: Isa::detect(), effort };
    crew.progress.begin(Stage::Curves, rate_distortion::sampled_bytes(matrix, sample_bands, 1));
    let curves = rate_distortion::curves(crew.pass(checkpoint, Isa::detect()), encoder, &[&stack], sample_bands);
    let progress = crew.progress.snapshot();
    // The total counts the rows that the last band lacks.
    let over = progress.total_bytes - progress.done_bytes;
    assert!(over < 2 * BAND_ROWS as u64 * matrix.row_bytes(), "{progress:?}");
    curves.unwrap().remove(0)
}

/// The errors of a band's rows as encoded.
fn written_errors(
    encoder: GridEncoder,
    (scheme, float): (Affine, Float),
    (source, band): (&[u8], &[Column]),
    k: &[f32],
) -> [RowError; BAND_ROWS] {
    let mut encoded = Encoded::default();
    encoder.encode(scheme, float, (source, band), k, &mut encoded);
    encoder.error(scheme, band, k, &encoded)
}

#[test]
fn a_curve_of_all_bands_has_no_error_and_a_sampled_one_is_within_a_few_standard_errors() {
    for (effort, rows, each) in [
        (Effort::Fast, 16_001, false),
        (Effort::Fast, 16_001, true),
        (Effort::Normal, 4_001, false),
        (Effort::Normal, 4_001, true),
    ] {
        let (_dir, checkpoint, measured) = matrix(rows, 64, each);
        let full = curve(&checkpoint, &measured, (effort, 0), 2, CHUNK_BYTES);
        assert!(full.len() == 12 && full.iter().all(|point| point.standard_error == 0.0));
        assert!(full.windows(2).all(|pair| pair[1].noises[0].weighted < pair[0].noises[0].weighted));
        let sampled = curve(&checkpoint, &measured, (effort, 60), 2, CHUNK_BYTES);
        for (full, sampled) in full.iter().zip(&sampled) {
            assert!(0.0 < sampled.standard_error && sampled.standard_error <= 0.011, "{}", sampled.standard_error);
            let off = (sampled.noises[0].weighted / full.noises[0].weighted - 1.0).abs() / sampled.standard_error;
            assert!(off < 3.5, "{}: {off} standard errors off", full.scheme);
            assert!((sampled.noises[0].plain / full.noises[0].plain - 1.0).abs() < 0.1);
        }
    }
}

/// The search gains more in rows with single large weights than in others. Few rows have them, and most of the loss.
#[test]
fn rows_that_carry_much_of_the_loss_are_searched() {
    let (rows, cols) = (512, 64);
    let mut weights = Numbers(4).weights(rows * cols, Float::BF16);
    for row in [100, 250, 251, 400] {
        for weight in &mut weights[row * cols..][..cols] {
            *weight = Float::BF16.round(*weight * 4.0);
        }
        weights[row * cols + 7] = 40.0;
    }
    let (_dir, checkpoint) = checkpoint(&[made("w", Float::BF16, &[rows as u64, cols as u64], &weights)]);
    let energy = measured(&checkpoint, &[1.0; 64], 1, CHUNK_BYTES).unwrap();
    let measured = MatrixSensitivity {
        vectors: Vectors { importance: vec![1.0; cols].into(), gain: Gain::Same(2.0) },
        signal: energy.weighted,
        energy: energy.plain,
        dead: energy.dead,
        origin: Origin::Flat,
    };
    let full = curve(&checkpoint, &measured, (Effort::Normal, 0), 1, CHUNK_BYTES);
    let sampled = curve(&checkpoint, &measured, (Effort::Normal, 64), 1, CHUNK_BYTES);
    for (full, sampled) in full.iter().zip(&sampled) {
        let off = (sampled.noises[0].weighted / full.noises[0].weighted - 1.0).abs();
        assert!(0.0 < sampled.standard_error && sampled.standard_error <= 0.011, "{}", sampled.standard_error);
        assert!(off < 0.02, "{}: {off}", full.scheme);
    }
}

#[test]
fn a_curve_is_the_error_of_every_row_weighed_by_its_gain() {
    let (_dir, checkpoint, measured) = matrix(21, 128, true);
    let (tensor, crew) = (&checkpoint.tensors[0], Crew::new(1, CHUNK_BYTES));
    let matrix = tensor.matrix().unwrap();
    let encoder = GridEncoder { isa: Isa::detect(), effort: Effort::Fast };
    for point in curve(&checkpoint, &measured, (Effort::Fast, 0), 1, CHUNK_BYTES) {
        let affine = Affine::of(point.scheme).unwrap();
        let (mut weighted, mut plain) = (0.0, 0.0);
        let mut reader = Reader::default();
        let pass = crew.pass(&checkpoint, Isa::detect());
        let sum = |rows: std::ops::Range<u64>, band: &[Column], source: &[u8]| {
            let errors = written_errors(encoder, (affine, matrix.float), (source, band), &measured.vectors.importance);
            for (row, error) in rows.zip(errors) {
                weighted += 0.5 * measured.vectors.gain.of(row as usize) * error.weighted;
                plain += error.plain;
            }
            Ok(())
        };
        reader.bands((pass.checkpoint, pass.isa), View::whole(0, tensor), &(0..3), sum).unwrap();
        // The sums are in another order, and weights halfway between two codes may take either: among 2,688 weights,
        // more for smaller steps.
        let most = match affine.bits() {
            2 | 3 => 2e-6,
            4 => 1e-3,
            _ => 1e-2,
        };
        assert!((point.noises[0].weighted / weighted - 1.0).abs() < most, "{}", point.scheme);
        assert!((point.noises[0].plain / plain - 1.0).abs() < most, "{}", point.scheme);
    }
}

/// Real weights lie halfway between two codes more often than random numbers, and a curve does not determine which code
/// is written.
#[test]
fn curves_of_a_real_model_equal_the_errors_of_the_written_bytes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/llama2xs-280k");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let encoder = GridEncoder { isa: Isa::detect(), effort: Effort::Fast };
    let (mut reader, mut written) = (Reader::default(), BTreeMap::new());
    for (at, tensor) in checkpoint.tensors.iter().enumerate() {
        let Some(matrix) = tensor.matrix().filter(|matrix| matrix.cols % 32 == 0) else { continue };
        let schemes: Vec<_> = Affine::all().filter(|of| matrix.cols % of.group_size() as u64 == 0).collect();
        let k: Vec<f32> = (0..matrix.cols).map(|at| 1.0 + (at * 37 % 101) as f32).collect();
        let channels = Channels::new(&k);
        let sum = |_, band: &[Column], source: &[u8]| {
            let all = encoder.errors(&schemes, matrix.float, band, &channels);
            for (&scheme, found) in schemes.iter().zip(all) {
                let errors = written_errors(encoder, (scheme, matrix.float), (source, band), &k);
                let sums: &mut [[f64; 2]; 2] = written.entry(scheme.scheme()).or_default();
                for (sums, errors) in sums.iter_mut().zip([found, errors]) {
                    for error in errors {
                        sums[0] += error.weighted;
                        sums[1] += error.plain;
                    }
                }
            }
            Ok(())
        };
        let whole = 0..matrix.rows / BAND_ROWS as u64;
        reader.bands((&checkpoint, Isa::detect()), View::whole(at, tensor), &whole, sum).unwrap();
    }
    assert!(written.len() == 12);
    for (scheme, [found, written]) in written {
        for (found, written) in found.into_iter().zip(written) {
            let off = (found / written - 1.0).abs();
            assert!(off < if scheme.code_bits() <= Some(Bits::whole(4)) { 2e-5 } else { 1e-3 }, "{scheme}: {off}");
        }
    }
}

#[test]
fn a_curve_does_not_depend_on_chunks_or_threads() {
    let (_dir, checkpoint, measured) = matrix(500, 96, true);
    for way in [(Effort::Fast, 0), (Effort::Fast, 7), (Effort::Fast, 40), (Effort::Normal, 7), (Effort::Normal, 40)] {
        let expected = curve(&checkpoint, &measured, way, 1, CHUNK_BYTES);
        for (threads, chunk_bytes) in [(1, 1), (2, CHUNK_BYTES), (2, 4_000), (3, 1)] {
            assert_eq!(curve(&checkpoint, &measured, way, threads, chunk_bytes), expected);
        }
    }
}

/// The same up to the order of the sums, which differs where some bands were encoded before all others.
fn assert_same(found: &[SchemeNoise], expected: &[SchemeNoise]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.scheme, found.standard_error), (expected.scheme, 0.0));
        for (found, expected) in found.noises.iter().zip(&expected.noises) {
            assert!((found.weighted / expected.weighted - 1.0).abs() < 1e-12);
            assert!((found.plain / expected.plain - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn one_sampled_band_has_no_error_estimate_so_all_bands_are_encoded() {
    let (_dir, checkpoint, measured) = matrix(64, 64, false);
    for effort in [Effort::Fast, Effort::Normal] {
        let [one, all] = [1, 0].map(|bands| curve(&checkpoint, &measured, (effort, bands), 1, CHUNK_BYTES));
        assert_same(&one, &all);
    }
}

#[test]
fn sampled_bands_of_zeros_are_not_extrapolated() {
    // There are 64 bands, and these four are the sample.
    let mut weights = Numbers(3).weights(512 * 64, Float::BF16);
    for band in [15, 30, 39, 54] {
        weights[band * 8 * 64..][..8 * 64].fill(0.0);
    }
    let (_dir, checkpoint) = checkpoint(&[made("w", Float::BF16, &[512, 64], &weights)]);
    let k = [1.0; 64];
    let energy = measured(&checkpoint, &k, 1, CHUNK_BYTES).unwrap();
    let vectors = Vectors { importance: k.to_vec().into(), gain: Gain::Same(2.0) };
    let measured = MatrixSensitivity {
        vectors,
        signal: energy.weighted,
        energy: energy.plain,
        dead: energy.dead,
        origin: Origin::Flat,
    };
    for effort in [Effort::Fast, Effort::Normal] {
        let [four, all] = [4, 0].map(|bands| curve(&checkpoint, &measured, (effort, bands), 1, CHUNK_BYTES));
        assert_same(&four, &all);
    }
}
