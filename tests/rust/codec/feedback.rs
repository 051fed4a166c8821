//! Error feedback: the errors that it reports, what it gains, and that it does not depend on the machine.

use std::num::NonZeroUsize;

use crate::band::Matrix;
use crate::codec::feedback::{Factor, FeedbackTarget, SLAB_ROWS, Slab, encode, errors_of, off};
use crate::codec::{Band, Effort, Encoder, Metric, Scheme, Scratch};
use crate::dtype::Float;
use crate::matmul::symmetric::{Compute, SymmetricMatrix};
use crate::pool::Workers;
use crate::progress::Progress;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

const COLS: usize = 256;

fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

/// A covariance of inputs that depend on each other, with mean variance 1.
fn covariance(compute: Compute<'_>) -> SymmetricMatrix {
    let mut state = 7;
    let mut x = Vec::new();
    for _ in 0..2 * COLS {
        let common = [uniform(&mut state), uniform(&mut state), uniform(&mut state)];
        x.extend((0..COLS).map(|at| 0.4 * uniform(&mut state) + common[at % 3] + common[at / 7 % 3]));
    }
    let mut a = SymmetricMatrix::zeros(COLS);
    a.add_products(compute, &x, &x).unwrap();
    let mean = a.diagonal().iter().sum::<f32>() / COLS as f32;
    a.for_each_row(|at, row| {
        for value in row.iter_mut() {
            *value /= mean;
        }
        row[at] += 0.1;
    });
    a
}

/// The bands of `rows` rows, with elements that bfloat16 holds.
fn weights(rows: usize) -> Vec<Vec<Column>> {
    let mut state = 99;
    let mut bands = vec![vec![[0.0; BAND_ROWS]; COLS]; rows.div_ceil(BAND_ROWS)];
    for row in 0..rows {
        for column in &mut bands[row / BAND_ROWS] {
            let w = 0.1 * (uniform(&mut state) + uniform(&mut state) + uniform(&mut state));
            column[row % BAND_ROWS] = Float::BF16.round(w);
        }
    }
    bands
}

/// What was stored of some rows: the parts, and the error of each row weighted by the metric.
struct Stored {
    parts: Vec<Vec<u8>>,
    errors: Vec<f64>,
}

fn fed(isa: Isa, factor: &Factor, scheme: Scheme, rows: usize, slab_rows: usize) -> Stored {
    let codec = scheme.codec().and_then(|codec| codec.feedback()).unwrap();
    let matrix = Matrix { rows: rows as u64, cols: COLS as u64, float: Float::BF16 };
    let mut parts = vec![Vec::new(); scheme.parts(matrix).len()];
    let bands = weights(rows);
    let mut errors = Vec::new();
    for (at, bands) in bands.chunks(slab_rows / BAND_ROWS).enumerate() {
        let slab = Slab { bands, rows: (rows - at * slab_rows).min(slab_rows) };
        let target = FeedbackTarget { isa, float: Float::BF16 };
        let found = encode((scheme, target), codec, factor, &slab, &mut parts);
        errors.extend(found.iter().flatten().map(|error| error.weighted));
    }
    errors.truncate(rows);
    Stored { parts, errors }
}

/// The same without feedback, and with each row's error computed from the stored parts.
fn searched(isa: Isa, factor: &Factor, scheme: Scheme, rows: usize) -> f64 {
    let encoder = Encoder { isa, effort: Effort::Normal };
    let metric = Metric::diagonal(factor.importance());
    let matrix = Matrix { rows: rows as u64, cols: COLS as u64, float: Float::BF16 };
    let mut errors = 0.0;
    for band in weights(rows) {
        let mut parts = vec![Vec::new(); scheme.parts(matrix).len()];
        let band = Band { rows: BAND_ROWS, stored: &[], columns: &band };
        encoder.encode(scheme, (Float::BF16, &mut Scratch::default()), band, &metric, &mut parts);
        let off = off(scheme, Float::BF16, band, &parts);
        errors += errors_of(isa, factor, &[off])[0].iter().map(|error| error.weighted).sum::<f64>();
    }
    errors
}

fn schemes() -> Vec<Scheme> {
    let names = ["2g32", "3g64", "4g128", "8g64", "int3g64", "int4g32", "int4channel", "int8g128"];
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn with_factor(check: impl Fn(&Factor)) {
    let workers = Workers::new(NonZeroUsize::new(2)).unwrap();
    let compute = Compute { workers: &workers, progress: &Progress::default(), isa: Isa::detect() };
    check(&Factor::of(compute, covariance(compute)).unwrap().unwrap());
}

#[test]
fn reported_errors_are_those_of_what_is_stored() {
    with_factor(|factor| {
        for scheme in schemes() {
            let rows = 21;
            let Stored { parts, errors } = fed(Isa::detect(), factor, scheme, rows, SLAB_ROWS);
            let matrix = Matrix { rows: rows as u64, cols: COLS as u64, float: Float::BF16 };
            for (at, band) in weights(rows).iter().enumerate() {
                let here = (rows - at * BAND_ROWS).min(BAND_ROWS);
                let specs = scheme.parts(matrix);
                let of_band: Vec<Vec<u8>> = specs
                    .iter()
                    .zip(&parts)
                    .map(|(spec, bytes)| {
                        let row = spec.row_bytes() as usize;
                        bytes[at * BAND_ROWS * row..(at * BAND_ROWS + here) * row].to_vec()
                    })
                    .collect();
                let band = Band { rows: here, stored: &[], columns: band };
                let expected = errors_of(Isa::detect(), factor, &[off(scheme, Float::BF16, band, &of_band)]);
                for (row, expected) in expected[0].iter().take(here).enumerate() {
                    let found = errors[at * BAND_ROWS + row];
                    let relative = (found - expected.weighted).abs() / expected.weighted;
                    assert!(relative < 1e-3, "{scheme} row {row}: {found} {}", expected.weighted);
                }
            }
        }
    });
}

#[test]
fn feedback_lowers_the_error() {
    with_factor(|factor| {
        for scheme in schemes() {
            let with: f64 = fed(Isa::detect(), factor, scheme, 64, SLAB_ROWS).errors.iter().sum();
            let without = searched(Isa::detect(), factor, scheme, 64);
            assert!(with < 0.8 * without, "{scheme}: {with} {without}");
        }
    });
}

#[test]
fn bytes_depend_neither_on_instructions_nor_on_slabs() {
    with_factor(|factor| {
        for scheme in schemes() {
            let expected = fed(Isa::PORTABLE, factor, scheme, 37, SLAB_ROWS);
            for isa in Isa::available() {
                for slab_rows in [BAND_ROWS, 24, SLAB_ROWS] {
                    let found = fed(isa, factor, scheme, 37, slab_rows);
                    assert_eq!(found.parts, expected.parts, "{scheme} {} {slab_rows}", isa.name());
                    assert_eq!(found.errors, expected.errors, "{scheme} {} {slab_rows}", isa.name());
                }
            }
        }
    });
}

#[test]
fn without_dependence_feedback_changes_little() {
    let workers = Workers::new(NonZeroUsize::new(1)).unwrap();
    let compute = Compute { workers: &workers, progress: &Progress::default(), isa: Isa::detect() };
    let mut a = SymmetricMatrix::zeros(COLS);
    a.for_each_row(|at, row| row[at] = 1.0);
    let factor = Factor::of(compute, a).unwrap().unwrap();
    for scheme in schemes() {
        let with: f64 = fed(Isa::detect(), &factor, scheme, 64, SLAB_ROWS).errors.iter().sum();
        let without = searched(Isa::detect(), &factor, scheme, 64);
        assert!(with < 1.02 * without && with > 0.9 * without, "{scheme}: {with} {without}");
    }
}
