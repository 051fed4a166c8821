//! Adds a codec and a format with one file and one registry line each. Curves, allocation, plans, writing, ledger and
//! verification support them without changes.

pub(crate) mod codec;
pub(crate) mod format;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::codec::Scheme;
use crate::dtype::Float;
use crate::pipeline::{PlanRequest, QuantizeReport, QuantizeRequest, VerifyRequest, plan, quantize, verify};
use crate::progress::Progress;
use crate::tests::support::{Numbers, made, safetensors};

/// A checkpoint of a matrix, a matrix with longer rows, and a norm.
fn source(dir: &Path) -> PathBuf {
    let mut numbers = Numbers(7);
    let mut tensor = |name: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>() as usize;
        made(name, Float::BF16, shape, &numbers.weights(count, Float::BF16))
    };
    let tensors = [
        tensor("model.layers.0.self_attn.q_proj.weight", &[19, 48]),
        tensor("model.layers.0.mlp.down_proj.weight", &[40, 20]),
        tensor("model.norm.weight", &[48]),
    ];
    let path = dir.join("source");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("model.safetensors"), safetensors(&tensors, "")).unwrap();
    std::fs::write(path.join("config.json"), "{\"model_type\": \"toy\"}").unwrap();
    path
}

fn request(model: &Path, output: PathBuf, uniform: Option<&str>, threads: usize) -> QuantizeRequest {
    let mut request = QuantizeRequest { output, ..QuantizeRequest::default() };
    request.plan.model.model = model.to_owned();
    request.plan.model.format = "toy".to_owned();
    request.plan.model.sensitivity = "weights".into();
    request.plan.model.resources.threads = NonZeroUsize::new(threads);
    request.plan.model.resources.chunk_bytes = 500;
    request.plan.uniform = uniform.map(str::to_owned);
    request
}

fn written(dir: &Path, name: &str, threads: usize) -> (PathBuf, QuantizeReport) {
    let model = dir.join("source");
    let model = if model.exists() { model } else { source(dir) };
    let output = dir.join(name);
    let report = quantize(&request(&model, output.clone(), Some("toy8"), threads), &Progress::default()).unwrap();
    (output, report)
}

#[test]
fn an_output_of_a_codec_and_a_format_of_one_file_each_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (output, report) = written(dir.path(), "out", 1);
    let toy: Scheme = "toy8".parse().unwrap();
    assert_eq!(report.plan.tensors.iter().filter(|tensor| tensor.scheme == toy).count(), 2);

    // The stored parts, as a reader of the file sees them.
    let bytes = std::fs::read(output.join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(read.tensor(&format!("{query}.codes")).unwrap().shape(), [19, 48]);
    assert_eq!(read.tensor(&format!("{query}.scales")).unwrap().shape(), [19, 1]);
    // A part of fixed size.
    let shape = read.tensor(&format!("{query}.shape")).unwrap();
    assert_eq!(shape.data(), [19_i64.to_le_bytes(), 48_i64.to_le_bytes()].concat());
    let stored: u64 = read.tensors().iter().map(|(_, tensor)| tensor.data().len() as u64).sum();
    assert_eq!(stored, report.plan.totals.tensor_bytes);
    let manifest = report.manifest.unwrap();
    assert_eq!(manifest.ledger.iter().map(|line| line.bytes).sum::<u64>(), stored);
    assert!(manifest.tensors.iter().all(|tensor| tensor.sha256.len() == 64));

    // The decoded weights have the errors of the ledger, and verification compares digests.
    let verified = |source: Option<PathBuf>| {
        let request = VerifyRequest { output: output.clone(), source, ..VerifyRequest::default() };
        verify(&request, &Progress::default()).unwrap()
    };
    let report = verified(Some(dir.path().join("source")));
    assert!(report.ok && report.decoded == 2, "{:?}", report.problems);
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("library_name: toys") || card.contains("- toy"), "{card}");
    let config: Value = serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["toys"]["model.layers.0.self_attn.q_proj"], "toy8");
    let mut changed = bytes;
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(output.join("model.safetensors"), changed).unwrap();
    assert!(!verified(None).ok);
}

#[test]
fn bytes_are_the_same_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let read = |output: PathBuf| {
        ["model.safetensors", "ramrs-manifest.json"].map(|name| std::fs::read(output.join(name)).unwrap())
    };
    let one = read(written(dir.path(), "one", 1).0);
    assert_eq!(read(written(dir.path(), "three", 3).0), one);
}

#[test]
fn a_budget_is_met_by_a_mix_of_schemes_and_kept_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(&source(dir.path()), PathBuf::new(), None, 1).plan;
    request.budget = Some("12.0".to_owned());
    let found = plan(&request, &Progress::default()).unwrap();
    let schemes: Vec<String> = found.tensors.iter().map(|tensor| tensor.scheme.to_string()).collect();
    assert!(schemes.contains(&"toy8".to_owned()) && found.totals.effective_bpw <= 12.0, "{schemes:?}");
    // The schemes of another format are not available in this one.
    let request = PlanRequest { uniform: Some("4g64".to_owned()), budget: None, ..request };
    assert_eq!(plan(&request, &Progress::default()).unwrap_err().slug(), "bad-option");
}

#[test]
fn a_refusal_of_the_runtime_is_reported_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let model = source(dir.path());
    let tensors = [made("refused.weight", Float::BF16, &[8, 32], &Numbers(1).weights(256, Float::BF16))];
    std::fs::write(model.join("model.safetensors"), safetensors(&tensors, "")).unwrap();
    let output = dir.path().join("out");
    let fault = quantize(&request(&model, output.clone(), Some("toy8"), 1), &Progress::default()).unwrap_err();
    assert_eq!(fault.tensor(), Some("refused.weight"));
    assert!(fault.to_string().contains("toys do not run it"), "{fault}");
    assert!(!output.exists());
}
