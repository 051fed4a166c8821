//! FP8, MXFP4 and NVFP4: what is stored decodes to what was measured, with every ISA, and the search never does worse than
//! the format's rule.

use crate::band::Matrix;
use crate::codec::{Effort, Extent, PassedRows};
use crate::digest::Digest;
use crate::dtype::{Dtype, Float, Float8, e2m1_values};
use crate::simd::Isa;
use crate::simd::vector::BAND_ROWS;
use proptest::prelude::*;

use super::cases::{Case, FLOATS, bits, cases, holds, is_never_worse, scheme, typical};
use crate::tests::support;

const NAMES: [&str; 3] = ["fp8", "mxfp4", "nvfp4"];

/// Rows of one to four groups of 32.
fn whole_groups() -> impl Strategy<Value = Case> {
    cases((1..5_usize).prop_map(|groups| groups * 32))
}

proptest! {
    #![proptest_config(support::config(200))]

    #[test]
    fn what_is_stored_decodes_to_what_is_measured_with_every_isa(case in whole_groups()) {
        for name in NAMES {
            holds(&case, name)?;
        }
    }

    #[test]
    fn rows_of_any_length_can_be_fp8(case in cases(1..300_usize)) {
        holds(&case, "fp8")?;
        is_never_worse(&case, "fp8")?;
    }

    #[test]
    fn normal_is_never_worse_than_fast_in_any_group(case in whole_groups()) {
        is_never_worse(&case, "fp8")?;
        for (name, group) in [("mxfp4", 32), ("nvfp4", 16)] {
            for (band, k) in case.band.chunks(group).zip(case.k.chunks(group)) {
                is_never_worse(&Case { band: band.to_vec(), k: k.to_vec(), ..case }, name)?;
            }
        }
    }

    #[test]
    fn fast_is_the_rule_and_codes_are_the_nearest(case in whole_groups()) {
        for name in NAMES {
            let (parts, _) = case.encode(Isa::detect(), Effort::Fast, scheme(name));
            let (decoded, cols) = (case.decode(scheme(name), &parts), case.band.len());
            let group = match name {
                "mxfp4" => 32,
                "nvfp4" => 16,
                _ => cols,
            };
            for (row, decoded) in decoded.chunks_exact(cols).enumerate() {
                for (columns, decoded) in case.band.chunks(group).zip(decoded.chunks(group)) {
                    let weights: Vec<f32> = columns.iter().map(|column| column[row]).collect();
                    let expected = by_the_rule(name, case.float, &weights);
                    prop_assert_eq!(decoded, expected.as_slice(), "{} row {}: {:?}", name, row, weights);
                }
            }
        }
    }
}

/// The nearest to `of` of `magnitudes`, which are sorted; of two, the one at the even position.
fn nearest(magnitudes: &[f32], of: f32) -> f32 {
    let capped = f64::from(of.min(magnitudes[magnitudes.len() - 1]));
    let off = |at: usize| (f64::from(magnitudes[at]) - capped).abs();
    let best = (0..magnitudes.len()).min_by(|&a, &b| (off(a), a % 2).partial_cmp(&(off(b), b % 2)).unwrap());
    magnitudes[best.unwrap()]
}

/// A group of weights rounded to nearest with the scale of the format's rule, by search among all values.
fn by_the_rule(name: &str, float: Float, weights: &[f32]) -> Vec<f32> {
    let e4m3 = &Float8::E4M3.values()[..0x7f];
    let e2m1 = &e2m1_values()[..8];
    let largest = weights.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
    let (scale, values) = match name {
        "fp8" => (float.round(largest / 448.0).max(float.outward(0.0)), e4m3),
        "nvfp4" => (nearest(e4m3, largest / 6.0 * 256.0).max(e4m3[1]) / 256.0, e2m1),
        _ => {
            // The first power of two whose 7-fold exceeds the largest weight; not below the least normal number.
            let mut scale = f32::MIN_POSITIVE;
            while f64::from(scale) * 7.0 <= f64::from(largest) {
                scale *= 2.0;
            }
            (scale, e2m1)
        }
    };
    let round = |weight: &f32| (nearest(values, weight.abs() / scale) * scale).copysign(*weight);
    weights.iter().map(round).collect()
}

#[test]
fn the_search_reduces_the_error() {
    let cases: Vec<Case> = (0..16).map(|seed| typical(Float::BF16, 1024, seed)).collect();
    let sum = |effort, name| -> f64 {
        let errors = cases.iter().flat_map(|case| case.errors(Isa::detect(), effort, scheme(name)));
        errors.map(|error| error.weighted).sum()
    };
    for (name, at_most) in [("fp8", 0.94), ("mxfp4", 0.993), ("nvfp4", 0.69)] {
        let share = sum(Effort::Normal, name) / sum(Effort::Fast, name);
        assert!(share < at_most, "{name}: {share:.3} of the error is left");
    }
}

#[test]
fn encodings_have_the_bits_of_every_architecture() {
    let expected = [
        "cb673ee1c66a3895745136150b9c04729b6c6a592f9a3a752d1a9c5cb433ffa5",
        "a81e0a18d35f081436df09e2d66896eb0f503418a44b83b3eedc45ced445b99f",
        "4810e298369de84b800280d2abf15982f976188330c6834d8359b659a4be0fe9",
    ];
    for isa in Isa::available() {
        let found = NAMES.map(|name| {
            let mut digest = Digest::default();
            for (float, effort) in FLOATS.into_iter().flat_map(|float| [(float, Effort::Fast), (float, Effort::Normal)])
            {
                let (parts, errors) = typical(float, 512, 17).encode(isa, effort, scheme(name));
                for part in parts {
                    digest.update(&part);
                }
                for number in bits(&errors).as_flattened() {
                    digest.update(&number.to_le_bytes());
                }
            }
            digest.finish()
        });
        assert_eq!(found, expected, "{}", isa.name());
    }
}

#[test]
fn a_row_is_known_by_its_parts() {
    for (name, float) in [("fp8", Float::F16), ("mxfp4", Float::BF16), ("nvfp4", Float::BF16)] {
        let scheme = scheme(name);
        let parts = scheme.parts(Matrix { rows: 3, cols: 384, float });
        let part = |kind: &str| {
            let part = parts.iter().find(|part| part.kind == kind)?;
            let Extent::PerRow(width) = part.extent else { return None };
            Some((part.dtype, width))
        };
        assert_eq!(scheme.codec().unwrap().row_of(scheme, &part), Some((384, float)));
        // The codes of MXFP4 may be words or bytes.
        let as_bytes = |kind: &str| part(kind).map(|(dtype, width)| (Dtype::U8, width * dtype.bits() / 8));
        if name != "fp8" {
            assert_eq!(scheme.codec().unwrap().row_of(scheme, &as_bytes), Some((384, float)));
        }
        assert_eq!(scheme.codec().unwrap().row_of(scheme, &|_| None), None);
    }
}

#[test]
fn the_rows_that_fit_are_whole_groups() {
    let fits = |cols| NAMES.map(|name| scheme(name).fits(cols));
    assert_eq!(fits(0), [false; 3]);
    assert_eq!(fits(1), [true, false, false]);
    assert_eq!(fits(48), [true, false, true]);
    assert_eq!(fits(96), [true; 3]);
    let matrix = Matrix { rows: 2, cols: 64, float: Float::BF16 };
    assert_eq!(NAMES.map(|name| scheme(name).stored_bytes(matrix)), [2 * 66, 2 * 34, 2 * 36 + 4]);
}

#[test]
fn every_code_decodes_to_its_value() {
    let decode = |name: &str, cols, parts: &[Vec<u8>]| {
        Case { float: Float::BF16, rows: 1, band: vec![[0.0; BAND_ROWS]; cols], k: vec![1.0; cols] }
            .decode(scheme(name), parts)
    };
    let mut half = Vec::new();
    Float::BF16.append(&[0.5], &mut half);
    let found = decode("fp8", 256, &[(0..=255).collect(), half]);
    for (found, value) in found.iter().zip(Float8::E4M3.values()) {
        assert!(*found == value * 0.5 || found.is_nan() && value.is_nan());
    }
    // Every code of four bits, the lower half of a byte first.
    let codes: Vec<u8> = (0..32_u8).map(|at| (at * 2 % 16) | (((at * 2 + 1) % 16) << 4)).collect();
    for (at, weight) in decode("mxfp4", 64, &[codes.clone(), vec![128, 126]]).into_iter().enumerate() {
        assert_eq!(weight, e2m1_values()[at % 16] * if at < 32 { 2.0 } else { 0.5 }, "element {at}");
    }
    let global = scheme("nvfp4").codec().unwrap().fixed(
        scheme("nvfp4"),
        Matrix { rows: 1, cols: 64, float: Float::BF16 },
        "global_scale",
    );
    assert_eq!(global, 256.0_f32.to_le_bytes());
    let found = decode("nvfp4", 64, &[codes, vec![0x38, 0x40, 1, 0x7e], global]);
    for (at, weight) in found.into_iter().enumerate() {
        let scale = [1.0, 2.0, 0.001_953_125, 448.0][at / 16] / 256.0;
        assert_eq!(weight, e2m1_values()[at % 16] * scale, "element {at}");
    }
}

#[test]
fn weights_beyond_the_largest_scale_are_clipped_and_never_become_nan() {
    let weights = [3e38, -3e38, 11.0, 1.0];
    let band = (0..32).map(|column| [weights[column % 4]; BAND_ROWS]).collect();
    let case = Case { float: Float::F32, rows: BAND_ROWS, band, k: vec![1.0; 32] };
    for effort in [Effort::Fast, Effort::Normal] {
        for name in NAMES {
            let decoded = case.decode(scheme(name), &case.encode(Isa::detect(), effort, scheme(name)).0);
            assert!(decoded.iter().all(|weight| weight.is_finite()), "{name} {decoded:?}");
            let largest = if name == "nvfp4" { 6.0 * 448.0 / 256.0 } else { 2.5e38 };
            assert!(decoded[0] >= largest && decoded[1] == -decoded[0], "{name} {decoded:?}");
        }
    }
}

#[test]
fn rows_of_a_release_are_passed_through() {
    let matrix = Matrix { rows: 2, cols: 32, float: Float::F16 };
    for (name, codes, scales) in [("fp8", 64, 4), ("mxfp4", 32, 2)] {
        let codes: Vec<u8> = (0..codes).collect();
        let scales: Vec<u8> = (100..100 + scales).collect();
        let mut parts = vec![vec![9], vec![8]];
        let rows = PassedRows { rows: 2, codes: &codes, scales: &scales };
        scheme(name).codec().unwrap().pass_through(scheme(name), matrix.float, rows, &mut parts);
        assert_eq!(parts, [[vec![9], codes].concat(), [vec![8], scales].concat()]);
    }
}
