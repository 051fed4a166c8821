//! The block types of GGUF: decoded as the `gguf` package does, `fast` as ggml encodes, and `normal` never worse than `fast`, nor
//! than ggml with the same importance.

use crate::band::Matrix;
use crate::codec::{Effort, Scheme};
use crate::digest::Digest;
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::cases::{Case, FLOATS, bits, cases, holds, is_never_worse, scheme, typical};
use crate::tests::support::{self, data};

/// Schemes, the names of their types, and the weights of a block.
const TYPES: [(&str, &str, u64); 19] = [
    ("q4_0", "Q4_0", 32),
    ("q4_1", "Q4_1", 32),
    ("q5_0", "Q5_0", 32),
    ("q5_1", "Q5_1", 32),
    ("q8_0", "Q8_0", 32),
    ("iq4_nl", "IQ4_NL", 32),
    ("gguf-mxfp4", "MXFP4", 32),
    ("q2_k", "Q2_K", 256),
    ("q3_k", "Q3_K", 256),
    ("q4_k", "Q4_K", 256),
    ("q5_k", "Q5_K", 256),
    ("q6_k", "Q6_K", 256),
    ("iq4_xs", "IQ4_XS", 256),
    ("iq3_s", "IQ3_S", 256),
    ("iq3_xxs", "IQ3_XXS", 256),
    ("iq2_s", "IQ2_S", 256),
    ("iq2_xs", "IQ2_XS", 256),
    ("iq2_xxs", "IQ2_XXS", 256),
    ("gguf-nvfp4", "NVFP4", 64),
];

/// Those of which `fast` gives ggml's bytes.
const BY_RULE: [&str; 6] = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "gguf-mxfp4"];

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Bands of the rows of a matrix with `cols` columns.
fn bands(float: Float, weights: &[f32], k: &[f32]) -> Vec<Case> {
    let cols = k.len();
    let of = |rows: &[f32]| {
        let column = |at| std::array::from_fn(|row| rows.get(row * cols + at).copied().unwrap_or_default());
        let band: Vec<Column> = (0..cols).map(column).collect();
        Case { float, rows: rows.len() / cols, band, k: k.to_vec() }
    };
    weights.chunks(BAND_ROWS * cols).map(of).collect()
}

#[test]
fn blocks_decode_as_the_gguf_package_decodes_them() {
    let bytes = std::fs::read(data("ggml_decoded.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dtype, _) in TYPES {
        let expected = floats(golden.tensor(&format!("{dtype}.decoded")).unwrap().data());
        let band = vec![[0.0; BAND_ROWS]; expected.len()];
        let case = Case { float: Float::BF16, rows: 1, k: vec![1.0; band.len()], band };
        let found = case.decode(scheme(name), &[golden.tensor(dtype).unwrap().data().to_vec()]);
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{name}, weight {at}: {found} and {expected}");
        }
    }
}

#[test]
fn fast_gives_the_bytes_of_ggml() {
    let bytes = std::fs::read(data("ggml_quantize.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let weights = floats(golden.tensor("in.f32").unwrap().data());
    for name in BY_RULE {
        let dtype = TYPES.iter().find(|of| of.0 == name).unwrap().1;
        for isa in Isa::available() {
            let [case] = bands(Float::F32, &weights, &[1.0; 512]).try_into().unwrap();
            let (parts, _) = case.encode(isa, Effort::Fast, scheme(name));
            assert_eq!(parts[0], golden.tensor(dtype).unwrap().data(), "{name} {}", isa.name());
        }
    }
}

#[test]
fn normal_is_better_than_ggml_with_the_same_importance_in_every_row() {
    let bytes = std::fs::read(data("ggml_weighted.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let halves = golden.tensor("in.f16").unwrap().data().to_vec();
    let mut aligned = vec![0_u16; halves.len() / 2];
    bytemuck::cast_slice_mut(&mut aligned).copy_from_slice(&halves);
    let mut weights = vec![0.0; aligned.len()];
    Float::F16.widen(bytemuck::cast_slice(&aligned), &mut weights);
    let k = floats(golden.tensor("importance").unwrap().data());
    for (name, dtype, _) in TYPES.into_iter().filter(|of| !of.0.starts_with("gguf-")) {
        let blocks = golden.tensor(dtype).unwrap().data().to_vec();
        let cases = bands(Float::F16, &weights, &k);
        let share = blocks.len() / cases.len();
        for (case, blocks) in cases.iter().zip(blocks.chunks(share)) {
            let theirs = case.decode(scheme(name), &[blocks.to_vec()]);
            let ours = case.errors(Isa::detect(), Effort::Normal, scheme(name));
            for (row, (theirs, ours)) in theirs.chunks(k.len()).zip(ours).enumerate() {
                let off = |(at, k): (usize, &f32)| {
                    let off = f64::from(theirs[at] - case.band[at][row]);
                    f64::from(*k) * off * off
                };
                let least: f64 = k.iter().enumerate().map(off).sum();
                assert!(ours.weighted < least, "{name}, row {row}: {} and {least}", ours.weighted);
            }
        }
    }
}

proptest! {
    #![proptest_config(support::config(25))]

    #[test]
    fn what_is_stored_decodes_to_what_is_measured_with_every_isa(case in cases((1..3_usize).prop_map(|blocks| blocks * 256))) {
        for (name, ..) in TYPES {
            holds(&case, name)?;
        }
    }

    #[test]
    fn normal_is_never_worse_than_fast_in_any_block(case in cases((1..3_usize).prop_map(|blocks| blocks * 256))) {
        for (name, _, block) in TYPES {
            for (band, k) in case.band.chunks(block as usize).zip(case.k.chunks(block as usize)) {
                is_never_worse(&Case { band: band.to_vec(), k: k.to_vec(), ..case }, name)?;
            }
        }
    }
}

#[test]
fn the_search_reduces_the_error() {
    let cases: Vec<Case> = (0..4).map(|seed| typical(Float::BF16, 1024, seed)).collect();
    let sum = |effort, name| -> f64 {
        let errors = cases.iter().flat_map(|case| case.errors(Isa::detect(), effort, scheme(name)));
        errors.map(|error| error.weighted).sum()
    };
    let codebooks = [("iq3_s", 0.85), ("iq3_xxs", 0.87), ("iq2_s", 0.9), ("iq2_xs", 0.91), ("iq2_xxs", 0.97)];
    let limits = [("q4_0", 0.87), ("q4_1", 0.76), ("q5_1", 0.77), ("q8_0", 0.88), ("iq4_nl", 0.83), ("q2_k", 0.9)];
    for (name, at_most) in
        limits.into_iter().chain(codebooks).chain([("q3_k", 0.97), ("q4_k", 0.9), ("q6_k", 0.85), ("iq4_xs", 0.85)])
    {
        let share = sum(Effort::Normal, name) / sum(Effort::Fast, name);
        assert!(share < at_most, "{name}: {share:.3} of the error is left");
    }
}

#[test]
fn a_row_is_a_multiple_of_the_block_and_known_by_its_part() {
    for (name, dtype, block) in TYPES {
        let scheme: Scheme = scheme(name);
        assert_eq!([0, block - 1, block, 3 * block].map(|cols| scheme.fits(cols)), [false, false, true, true]);
        let parts = scheme.parts(Matrix { rows: 3, cols: 768, float: Float::F16 });
        assert_eq!((parts.len(), parts[0].kind, parts[0].dtype.name()), (1, "blocks", dtype));
        let of = |dtype: Dtype| move |kind: &str| (kind == "blocks").then_some((dtype, 768));
        let codec = scheme.codec().unwrap();
        assert_eq!(codec.row_of(scheme, &of(parts[0].dtype)), Some((768, Float::BF16)));
        assert_eq!(codec.row_of(scheme, &of(Dtype::U8)), None);
        assert_eq!(codec.row_of(scheme, &|_| None), None);
    }
    let bytes = |name| scheme(name).stored_bytes(Matrix { rows: 2, cols: 512, float: Float::F32 });
    assert_eq!(["q4_0", "q4_k", "q6_k"].map(bytes), [2 * 16 * 18, 2 * 2 * 144, 2 * 2 * 210]);
}

#[test]
fn weights_beyond_the_largest_scale_are_clipped() {
    let weights = [3e18, -3e18, 11.0, 1.0];
    let band = (0..256).map(|column| [weights[column % 4]; BAND_ROWS]).collect();
    let case = Case { float: Float::F32, rows: BAND_ROWS, band, k: vec![1.0; 256] };
    for (name, ..) in TYPES {
        for effort in [Effort::Fast, Effort::Normal] {
            let decoded = case.decode(scheme(name), &case.encode(Isa::detect(), effort, scheme(name)).0);
            assert!(decoded.iter().all(|weight| weight.is_finite()), "{name} {effort}: {decoded:?}");
        }
    }
}

#[test]
fn encodings_have_the_bits_of_every_architecture() {
    let (first, others) = TYPES.split_at(13);
    let all = [
        (first, "c5c0b4285f2cb752f9c55e31a25d6e313cbecad58a52f58b423934958cb5f150"),
        (others, "118fe0fd69936dd64060b5ae1ddfee1d3e6dda9db27b4e0e4ba351acaf688318"),
    ];
    for (isa, (types, expected)) in Isa::available().flat_map(|isa| all.map(|of| (isa, of))) {
        let mut digest = Digest::default();
        for (name, ..) in types {
            for (float, effort) in FLOATS.into_iter().flat_map(|float| [(float, Effort::Fast), (float, Effort::Normal)])
            {
                let (parts, errors) = typical(float, 512, 17).encode(isa, effort, scheme(name));
                digest.update(&parts[0]);
                for number in bits(&errors).as_flattened() {
                    digest.update(&number.to_le_bytes());
                }
            }
        }
        assert_eq!(digest.finish(), expected, "{}", isa.name());
    }
}
