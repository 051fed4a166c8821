//! Kernels give the same bits on every architecture: digests of their results on pseudo-random numbers.
//!
//! A digest does not show that a result is good, only that it is the same. It changes with the rules of encoding (the
//! changelog then says **Bytes changed**) and with the order in which errors are summed.

use crate::codec::Effort;
use crate::codec::affine::Affine;
use crate::codec::affine::Channels;
use crate::codec::affine::encoder::{Encoded, GridEncoder};
use crate::digest::Digest;
use crate::dtype::Float;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

use crate::tests::support::Numbers;

/// Number of columns: at least two groups of each size.
const COLS: usize = 256;

const SEED: u64 = 2_026;

/// Rows of weights with eight magnitudes, stored as `store`; the same rows as a band; and the importance of the
/// columns.
fn sample(store: Float) -> (Vec<u8>, Vec<Column>, Vec<f32>) {
    let mut numbers = Numbers(SEED);
    let (mut band, mut rows) = (vec![[0.0; BAND_ROWS]; COLS], Vec::new());
    for row in 0..BAND_ROWS {
        // Magnitudes from 1/2048 to 1; no negative numbers in every second row; with outliers.
        let size = 1.0 / f64::from(2048_u16 >> row);
        let mut values = Vec::new();
        for (column, lanes) in band.iter_mut().enumerate() {
            let number = numbers.normal();
            let number = if row % 2 == 0 { number } else { number.abs() };
            let weight = size * if (row * 5 + column) % 67 == 66 { 8.0 * number } else { number };
            lanes[row] = store.round(weight as f32);
            values.push(lanes[row]);
        }
        store.append(&values, &mut rows);
    }
    (rows, band, (0..COLS).map(|_| numbers.unit() as f32).collect())
}

/// The digest of codes, scales and biases in every scheme and element type.
fn encodings(encoder: GridEncoder) -> String {
    let mut digest = Digest::default();
    for store in [Float::F32, Float::F16, Float::BF16] {
        let (rows, band, k) = sample(store);
        for scheme in Affine::all() {
            let mut encoded = Encoded::default();
            encoder.encode(scheme, store, (&rows, &band), &k, &mut encoded);
            digest.update(&encoded.codes);
            digest.update(bytemuck::cast_slice(&encoded.scales));
            digest.update(bytemuck::cast_slice(&encoded.biases));
        }
    }
    digest.finish()
}

/// The digest of the errors in every scheme and element type.
fn errors(encoder: GridEncoder) -> String {
    let mut digest = Digest::default();
    for store in [Float::F32, Float::F16, Float::BF16] {
        let (_, band, k) = sample(store);
        for error in
            encoder.errors(&Affine::all().collect::<Vec<_>>(), store, &band, &Channels::new(&k)).iter().flatten()
        {
            digest.update(&error.weighted.to_le_bytes());
            digest.update(&error.plain.to_le_bytes());
        }
    }
    digest.finish()
}

#[test]
fn encodings_and_errors_have_the_bits_of_every_architecture() {
    let expected = [
        (
            Effort::Fast,
            [
                "cd6abdad66fc6119fd558d6ce924e45833b178a3211325c65384e41373c7992b",
                "1e2cfd5634ae779420c5c2b4f9482c3e62fc6b4856de7d3971c7f97d97e1e1ea",
            ],
        ),
        (
            Effort::Normal,
            [
                "321fa6cc267305f108b61294dd61e7c057a8fbf903cd8786957b2c8b4f438865",
                "bd777d624bfec810f6dcac21d2a88e3ff8c4d90b23b2f131c14dda15ccbc608e",
            ],
        ),
    ];
    for isa in Isa::available() {
        let found = [Effort::Fast, Effort::Normal].map(|effort| {
            let encoder = GridEncoder { isa, effort };
            (effort, [encodings(encoder), errors(encoder)])
        });
        assert_eq!(found, expected.map(|(effort, digests)| (effort, digests.map(str::to_owned))), "{}", isa.name());
    }
}
