//! Sensitivity files: what is taken from them, and what is refused.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::CHUNK_BYTES;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::sensitivity::file::SensitivityFile;
use crate::sensitivity::prior::Prior;
use crate::sensitivity::{Gain, MatrixSensitivity, Origin};
use crate::simd::Isa;

use crate::tests::support::{Crew, Made, Numbers, candidates, checkpoint, made, names, safetensors};

const SOUND: &str = "\"format\":\"ramrs-sensitivity\",\"version\":\"1\",\"by\":\"a test\"";

/// A checkpoint of two matrices, `a` of 3 × 4 and `b` of 2 × 4.
fn model() -> (tempfile::TempDir, Checkpoint) {
    let mut numbers = Numbers(1);
    let mut matrix = |name, rows| made(name, Float::F32, &[rows, 4], &numbers.weights(rows as usize * 4, Float::F32));
    checkpoint(&[matrix("a", 3), matrix("b", 2)])
}

fn vector(name: &str, values: &[f32]) -> Made {
    made(name, Float::F32, &[values.len() as u64], values)
}

/// What a file of these tensors and metadata says of the model, and the warnings.
fn measure(tensors: &[Made], metadata: &str) -> (Result<Vec<MatrixSensitivity>>, Vec<String>) {
    let (dir, checkpoint) = model();
    let path = dir.path().join("s.ramrs");
    std::fs::write(&path, safetensors(tensors, metadata)).unwrap();
    let crew = Crew::new(1, CHUNK_BYTES);
    let names = names(&checkpoint);
    let pass = crew.pass(&checkpoint, Isa::detect());
    let found =
        SensitivityFile::open(&path).and_then(|file| file.measure(pass, &candidates(&checkpoint, &names), Prior::None));
    (found, crew.progress.warnings())
}

fn refused(tensors: &[Made], metadata: &str, slug: &str) -> Error {
    let fault = measure(tensors, metadata).0.unwrap_err();
    assert_eq!(fault.slug(), slug, "{fault}");
    assert!(fault.path().unwrap().ends_with("s.ramrs") && fault.to_string().contains("s.ramrs"), "{fault}");
    fault
}

#[test]
fn vectors_are_taken_as_they_are_and_gains_where_there_are_some() {
    let (k, r) = ([0.0, 1.0, 2.5, 0.5], [1.0, 0.0, 4.0]);
    let (found, warnings) = measure(&[vector("a.k", &k), vector("a.r", &r), vector("b.k", &k)], SOUND);
    let found = found.unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(found.iter().all(|measured| *measured.vectors.importance == k && measured.origin == Origin::File));
    assert_eq!(found[0].vectors.gain, Gain::Each(r.to_vec().into()));

    let mut numbers = Numbers(1);
    let (a, b) = (numbers.weights(12, Float::F32), numbers.weights(8, Float::F32));
    let energy =
        |row: &[f32]| row.iter().zip(k).map(|(w, k)| f64::from(k) * f64::from(*w) * f64::from(*w)).sum::<f64>();
    let signal: f64 = a.chunks(4).zip(r).map(|(row, r)| 0.5 * f64::from(r) * energy(row)).sum();
    assert!((found[0].signal / signal - 1.0).abs() < 1e-5);
    // Without gains, the prior is the signal: `½ r Σ k w²`.
    let Gain::Same(gain) = found[1].vectors.gain else { panic!("one gain for all rows") };
    assert_eq!(found[1].signal, 1.0);
    assert!((0.5 * gain * b.chunks(4).map(energy).sum::<f64>() - 1.0).abs() < 1e-5);
}

#[test]
fn a_file_that_is_none_is_refused() {
    let k = || [vector("a.k", &[1.0; 4])];
    for metadata in ["", "\"format\":\"pt\"", "\"version\":\"1\""] {
        let fault = refused(&k(), metadata, "bad-document");
        assert!(fault.to_string().contains("format: ramrs-sensitivity"), "{fault}");
    }
    for (version, said) in [("", "missing"), (",\"version\":\"2\"", "2"), (",\"version\":\"1.0\"", "1.0")] {
        let fault = refused(&k(), &format!("\"format\":\"ramrs-sensitivity\"{version}"), "bad-document");
        assert!(fault.to_string().contains(&format!("its version is {said}, not 1")), "{fault}");
    }
}

#[test]
fn vectors_that_do_not_fit_are_refused_by_name() {
    let refused = |vector: Made, reason: &str| {
        let name = vector.name.clone();
        let both = if name.ends_with('r') { vec![self::vector("a.k", &[1.0; 4]), vector] } else { vec![vector] };
        let fault = refused(&both, SOUND, "sensitivity-mismatch");
        assert_eq!(fault.tensor(), Some(name.as_str()));
        assert!(fault.to_string().contains(reason), "{fault}");
    };
    refused(vector("a.k", &[1.0; 5]), "is F32 [5], and should be F32 [4]");
    refused(made("a.k", Float::BF16, &[4], &[1.0; 4]), "is BF16 [4], and should be F32 [4]");
    refused(made("a.k", Float::F32, &[1, 4], &[1.0; 4]), "is F32 [1, 4]");
    refused(vector("a.r", &[1.0; 4]), "should be F32 [3]");
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        refused(vector("a.k", &[1.0, 1.0, bad, 1.0]), &format!("element 2 is {bad:e}, and should be from 0"));
        refused(vector("a.r", &[bad, 1.0, 1.0]), &format!("element 0 is {bad}"));
    }
}

#[test]
fn a_matrix_that_is_not_covered_is_warned_of_and_none_at_all_is_an_error() {
    let (found, warnings) = measure(&[vector("b.k", &[1.0; 4])], SOUND);
    let found = found.unwrap();
    assert_eq!((found[0].origin, found[1].origin), (Origin::Flat, Origin::File));
    assert!(warnings.len() == 1 && warnings[0].contains("1 of 2 matrices (first `a`)"), "{warnings:?}");
    for tensors in [vec![], vec![vector("c.k", &[1.0; 4])]] {
        let fault = refused(&tensors, SOUND, "sensitivity-mismatch");
        assert!(fault.to_string().contains("none of the checkpoint's tensors"), "{fault}");
    }
}

#[test]
fn a_matrix_that_nothing_reaches_has_no_signal_and_no_gain() {
    let found = measure(&[vector("a.k", &[0.0; 4])], SOUND).0.unwrap();
    assert_eq!((found[0].signal, &found[0].vectors.gain), (0.0, &Gain::Same(0.0)));
}

#[test]
fn vectors_that_no_matrix_takes_are_warned_of() {
    let k = vector("a.k", &[1.0; 4]);
    let (_, warnings) = measure(&[k, vector("a.r", &[1.0; 3]), vector("b.r", &[1.0; 2]), vector("c.k", &[1.0])], SOUND);
    assert!(warnings.iter().any(|text| text.contains("2 vectors that no matrix takes (first `b.r`)")), "{warnings:?}");
}

#[test]
fn vectors_too_large_to_weigh_with_are_refused() {
    let fault = refused(&[vector("a.k", &[f32::MAX; 4]), vector("b.k", &[1.0; 4])], SOUND, "sensitivity-mismatch");
    assert!(fault.to_string().contains("`a.k`"), "{fault}");
}
