//! Symmetric integers: what is stored decodes to what was measured, with every ISA, and the search never does worse than
//! rounding to nearest.

use crate::band::Matrix;
use crate::codec::symmetric::SymmetricCodec;
use crate::codec::{Codec, Effort, Extent, PassedRows, Scheme};
use crate::digest::Digest;
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use crate::simd::vector::BAND_ROWS;
use proptest::prelude::*;

use super::cases::{Case, FLOATS, bits, cases, holds, is_never_worse, scheme, typical};
use crate::tests::support;

fn all() -> impl Iterator<Item = Scheme> {
    SymmetricCodec.schemes().iter().copied()
}

/// Bits of a scheme, and weights in a group; `None` for a group for each row.
fn read(scheme: Scheme) -> (u32, Option<usize>) {
    let text = scheme.to_string();
    let (bits, group) = text["int".len()..].split_at(1);
    (bits.parse().unwrap(), group.strip_prefix('g').map(|size| size.parse().unwrap()))
}

proptest! {
    #![proptest_config(support::config(60))]

    #[test]
    fn what_is_stored_decodes_to_what_is_measured_with_every_isa(case in cases((1..4_usize).prop_map(|groups| groups * 128))) {
        for scheme in all() {
            holds(&case, &scheme.to_string())?;
        }
    }

    #[test]
    fn rows_of_whole_words_can_have_one_scale(case in cases((1..9_usize).prop_map(|words| words * 32))) {
        for name in ["int2channel", "int3channel", "int4channel", "int8channel"] {
            holds(&case, name)?;
            is_never_worse(&case, name)?;
        }
    }

    #[test]
    fn normal_is_never_worse_than_fast_in_any_group(case in cases((1..4_usize).prop_map(|groups| groups * 128))) {
        for scheme in all() {
            let group = read(scheme).1.unwrap_or(case.band.len());
            for (band, k) in case.band.chunks(group).zip(case.k.chunks(group)) {
                is_never_worse(&Case { band: band.to_vec(), k: k.to_vec(), ..case }, &scheme.to_string())?;
            }
        }
    }

    #[test]
    fn fast_rounds_to_the_nearest_on_the_scale_of_the_largest_weight(case in cases(Just(128))) {
        for scheme in all() {
            let (bits, group) = read(scheme);
            let (parts, _) = case.encode(Isa::detect(), Effort::Fast, scheme);
            let (decoded, half) = (case.decode(scheme, &parts), f32::from(1_u8 << (bits - 1)));
            let group = group.unwrap_or(case.band.len());
            for (row, decoded) in decoded.chunks_exact(case.band.len()).enumerate() {
                for (columns, decoded) in case.band.chunks(group).zip(decoded.chunks(group)) {
                    let largest = columns.iter().map(|column| column[row].abs()).fold(0.0, f32::max);
                    let scale = case.float.round(largest / (half - 0.5));
                    // Of scales whose reciprocal is infinite, 1 is stored instead.
                    let scale = if (1.0 / scale).is_finite() { scale } else { 1.0 };
                    for (column, &decoded) in columns.iter().zip(decoded) {
                        let code = (column[row] / scale).clamp(-half, half - 1.0);
                        // Two codes are nearest if the product with the reciprocal is rounded to halfway between them.
                        let found = decoded / scale;
                        prop_assert!((found - code).abs() <= 0.5 + 1e-4 * half, "{scheme} {} {found} {code}", column[row]);
                    }
                }
            }
        }
    }
}

#[test]
fn the_search_reduces_the_error() {
    let cases: Vec<Case> = (0..16).map(|seed| typical(Float::BF16, 1024, seed)).collect();
    let sum = |effort, name| -> f64 {
        let errors = cases.iter().flat_map(|case| case.errors(Isa::detect(), effort, scheme(name)));
        errors.map(|error| error.weighted).sum()
    };
    let limits = [("int2g64", 0.48), ("int3g64", 0.64), ("int4g32", 0.7), ("int4g128", 0.77), ("int8channel", 0.99)];
    for (name, at_most) in limits {
        let share = sum(Effort::Normal, name) / sum(Effort::Fast, name);
        assert!(share < at_most, "{name}: {share:.3} of the error is left");
    }
}

#[test]
fn the_search_finds_nearly_the_best_scale() {
    let case = typical(Float::BF16, 128, 3);
    for name in ["int2g128", "int3g64", "int4g32", "int4g128", "int5channel"] {
        let (bits, group) = read(scheme(name));
        let (half, group) = (f32::from(1_u8 << (bits - 1)), group.unwrap_or(128));
        let mut least = 0.0;
        for (columns, k) in case.band.chunks(group).zip(case.k.chunks(group)) {
            for row in 0..BAND_ROWS {
                let largest = columns.iter().map(|column| column[row].abs()).fold(0.0, f32::max);
                // All stored scales that could be the best, of both signs.
                let shares = (10..=210_u16).flat_map(|share| [f32::from(share), -f32::from(share)]);
                let error = |share: f32| -> f64 {
                    let scale = case.float.round(largest / (half - 1.0) * share / 200.0);
                    let off = |(column, k): (&[f32; BAND_ROWS], &f32)| {
                        let code = (column[row] / scale).round_ties_even().clamp(-half, half - 1.0);
                        let off = f64::from(code * scale - column[row]);
                        f64::from(*k) * off * off
                    };
                    columns.iter().zip(k).map(off).sum()
                };
                least += shares.map(error).fold(f64::INFINITY, f64::min);
            }
        }
        let found: f64 =
            case.errors(Isa::detect(), Effort::Normal, scheme(name)).iter().map(|error| error.weighted).sum();
        assert!(found < 1.05 * least, "{name}: {found} and {least}");
    }
}

#[test]
fn the_code_without_a_counterpart_is_used_on_the_side_where_it_pays() {
    // Multiples of a step from one end to the other: only a scale of one sign holds them exactly.
    for (sign, name) in [(1.0, "int4g32"), (-1.0, "int4g32"), (1.0, "int2g32"), (-1.0, "int2g32")] {
        let half = if name == "int4g32" { 8 } else { 2 };
        let weight = |column: usize| sign * 0.25 * (column as f32 % (2 * half) as f32 - half as f32);
        let band = (0..32).map(|column| [weight(column); BAND_ROWS]).collect();
        let case = Case { float: Float::BF16, rows: BAND_ROWS, band, k: vec![1.0; 32] };
        let error = case.errors(Isa::detect(), Effort::Normal, scheme(name));
        assert!(error.iter().all(|error| error.plain == 0.0), "{name} {sign} {error:?}");
    }
}

#[test]
fn encodings_have_the_bits_of_every_architecture() {
    let expected = "88902a6d88400ff35aafa9bc4567f614711b984c3e99e01d4e8998c4e9c5d200";
    for isa in Isa::available() {
        let mut digest = Digest::default();
        for scheme in all() {
            for (float, effort) in FLOATS.into_iter().flat_map(|float| [(float, Effort::Fast), (float, Effort::Normal)])
            {
                let (parts, errors) = typical(float, 256, 17).encode(isa, effort, scheme);
                for part in parts {
                    digest.update(&part);
                }
                for number in bits(&errors).as_flattened() {
                    digest.update(&number.to_le_bytes());
                }
            }
        }
        assert_eq!(digest.finish(), expected, "{}", isa.name());
    }
}

#[test]
fn a_row_is_known_by_its_parts() {
    for scheme in all() {
        let matrix = Matrix { rows: 3, cols: 384, float: Float::F16 };
        let parts = scheme.parts(matrix);
        let part = |kind: &str| {
            let part = parts.iter().find(|part| part.kind == kind)?;
            let Extent::PerRow(width) = part.extent else { return None };
            Some((part.dtype, width))
        };
        assert_eq!(SymmetricCodec.row_of(scheme, &part), Some((384, Float::F16)));
        assert_eq!(SymmetricCodec.row_of(scheme, &|_| None), None);
        let shape = parts.last().unwrap();
        assert_eq!((shape.kind, shape.dtype, &shape.extent), ("shape", Dtype::I64, &Extent::Fixed(vec![2])));
        let numbers: Vec<u64> = SymmetricCodec
            .fixed(scheme, matrix, "shape")
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect();
        assert_eq!(numbers, [3, 384]);
    }
}

#[test]
fn the_rows_that_fit_are_whole_groups() {
    let fits = |cols| ["int4channel", "int4g32", "int4g128"].map(|name| scheme(name).fits(cols));
    assert_eq!(fits(0), [false; 3]);
    assert_eq!(fits(48), [false; 3]);
    assert_eq!(fits(96), [true, true, false]);
    assert_eq!(fits(256), [true; 3]);
}

#[test]
fn integers_of_a_release_are_passed_through() {
    let scheme = scheme("int4g32");
    let codes: Vec<u8> = (0..32_u8).map(|at| (at * 2 % 16) | (((at * 2 + 1) % 16) << 4)).collect();
    let mut scales = Vec::new();
    Float::BF16.append(&[0.5, -3.0], &mut scales);
    let mut parts = vec![Vec::new(); 3];
    let rows = PassedRows { rows: 1, codes: &codes, scales: &scales };
    SymmetricCodec.pass_through(scheme, Float::BF16, rows, &mut parts);
    assert!(parts[2].is_empty(), "the shape is a fixed part");
    let case = Case { float: Float::BF16, rows: 1, band: vec![[0.0; BAND_ROWS]; 64], k: vec![1.0; 64] };
    for (at, weight) in case.decode(scheme, &parts).into_iter().enumerate() {
        let scale = if at < 32 { 0.5 } else { -3.0 };
        assert_eq!(weight, ((at % 16) as f32 - 8.0) * scale, "element {at}");
    }
}
