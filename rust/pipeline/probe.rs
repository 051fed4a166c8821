//! The verb `probe`: runs a model on tokens of its own vocabulary, and writes what it measures to a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sensitivity::{check, probed_table, runnable};
use super::{Engine, Resources};
use crate::arch;
use crate::container::safetensors::compose;
use crate::digest::Digest;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::format::readable::prepare;
use crate::job::staging::{check_place, replace};
use crate::option::OptionName;
use crate::probe::tokens::WINDOW;
use crate::probe::{Options, Probe};
use crate::progress::Progress;
use crate::sensitivity::file::{self, ProbeRecord};
use crate::sensitivity::imatrix;

/// Options of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeRequest {
    /// Path of the checkpoint.
    pub model: PathBuf,
    /// Path of the file to write; `None` to write none.
    pub output: Option<PathBuf>,
    /// Format of the file: `ramrs`, a sensitivity file, or `imatrix`, an importance matrix for llama.cpp.
    pub format: String,
    /// Options of the probe.
    pub probe: Options,
    /// A safetensors file to write for comparison with another runtime: `tokens` `[windows, 64]`, `logits`
    /// `[tokens, vocabulary]`, and the `gradients` at them, `[tokens, draws, vocabulary]`.
    pub trace: Option<PathBuf>,
    /// Resources of the job.
    pub resources: Resources,
}

impl Default for ProbeRequest {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            output: None,
            format: RAMRS.to_owned(),
            probe: Options::default(),
            trace: None,
            resources: Resources::default(),
        }
    }
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeReport {
    /// `model_type` of the configuration.
    pub model_type: String,
    /// Settings and results that a sensitivity file records.
    pub probe: ProbeRecord,
    /// Number of tokens that the model was run on: more than requested if experts needed more.
    pub tokens: u64,
    /// Number of matrices that were measured.
    pub matrices: u64,
    /// Number of multiply-adds.
    pub multiply_adds: u64,
    /// Number of tokens of each expert, by layer.
    pub loads: BTreeMap<usize, Vec<u64>>,
    /// The file that was written, if one was requested.
    pub written: Option<WrittenFile>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenFile {
    /// Path of the file.
    pub path: String,
    /// Format of the file.
    pub format: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the contents.
    pub sha256: String,
}

const RAMRS: &str = "ramrs";
const IMATRIX: &str = "imatrix";

/// Probes the model of `request`.
///
/// # Errors
/// [`Error::Unrunnable`] for a model that the probe cannot run, and the errors of reading and writing.
pub fn probe(request: &ProbeRequest, progress: &Progress) -> Result<ProbeReport> {
    if ![RAMRS, IMATRIX].contains(&request.format.as_str()) {
        return Err(Error::option(OptionName::Format, &request.format, "is neither `ramrs` nor `imatrix`"));
    }
    check(request.probe)?;
    for path in request.output.iter().chain(&request.trace) {
        check_place(path)?;
    }
    let mut checkpoint = arch::open(&request.model)?;
    prepare(&mut checkpoint, false)?;
    let model = runnable(&checkpoint)?;
    let engine = Engine::new(&request.resources)?;
    let options = Options { seeing: request.trace.is_some(), ..request.probe.of(&model) };
    let (table, found) = probed_table(engine.pass(&checkpoint, progress), &model, options)?;
    let probed = ProbeRecord::by(options);
    if let Some(path) = &request.trace {
        replace(path, &trace(&found, probed.draws))?;
    }
    let written = match &request.output {
        None => None,
        Some(path) => {
            let content =
                if request.format == IMATRIX { imatrix::bytes(&model, &found) } else { file::bytes(&table, probed)? };
            progress.check()?;
            replace(path, &content)?;
            Some(WrittenFile {
                path: path.display().to_string(),
                format: request.format.clone(),
                bytes: content.len() as u64,
                sha256: Digest::of(&content),
            })
        }
    };
    Ok(ProbeReport {
        model_type: checkpoint.model_type().unwrap_or("unknown").to_owned(),
        probe: probed,
        tokens: found.tokens.len() as u64,
        matrices: found.moments.len() as u64,
        multiply_adds: found.multiply_adds,
        loads: found.loads,
        written,
        warnings: progress.warnings(),
    })
}

/// The contents of the trace file.
fn trace(found: &Probe, draws: usize) -> Vec<u8> {
    let Some(trace) = &found.trace else { return Vec::new() };
    let (tokens, window) = (found.tokens.len() as u64, WINDOW as u64);
    let vocabulary = trace.logits.len() as u64 / tokens.max(1);
    let shapes = [vec![tokens / window, window], vec![tokens, vocabulary], vec![tokens, draws as u64, vocabulary]];
    let data: [&[u8]; 3] = [
        bytemuck::cast_slice(&found.tokens),
        bytemuck::cast_slice(&trace.logits),
        bytemuck::cast_slice(&trace.gradients),
    ];
    let names = ["tokens", "logits", "gradients"].into_iter().zip([Dtype::U32, Dtype::F32, Dtype::F32]);
    let listed = names.zip(&shapes).zip(&data);
    let mut bytes = compose(
        &[("format", "ramrs-probe-trace")],
        listed.map(|(((name, dtype), shape), data)| (name, dtype, shape.as_slice(), data.len() as u64)),
    );
    bytes.extend(data.concat());
    bytes
}
