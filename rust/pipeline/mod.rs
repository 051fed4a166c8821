//! The verbs, and the order of their stages: the only place that knows it.
//!
//! Each verb takes a request and gives a report, both plain data with a JSON form, so that every front asks for the
//! same things in the same words.

mod analyze;
mod explain;
mod inspect;
mod plan;
mod probe;
mod quantize;
mod saved;
mod sensitivity;
mod verify;
mod weights;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use analyze::analyze;
pub use inspect::{Inspection, inspect};
pub use plan::{PlanRequest, plan};
pub use probe::{ProbeReport, ProbeRequest, probe};
pub use quantize::{OutputRequest, QuantizeReport, QuantizeRequest, check_output, quantize};
pub use verify::{VerifyReport, VerifyRequest, verify};
pub use weights::{Weights, weights};

use crate::budget::{bytes, size};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::{CHUNK_BYTES, HELD_BYTES, Pass};
use crate::codec::Effort;
use crate::error::{Error, Result};
use crate::job::conversion::Conversion;
use crate::option::OptionName;
use crate::policy::FLOOR_DB;
use crate::pool::Workers;
use crate::probe::Options;
use crate::progress::Progress;
use crate::rate_distortion::{Objective, SAMPLE_BANDS};
use crate::sensitivity::prior::Prior;
use crate::simd::Isa;

/// What a job may use. None of it changes a byte of any output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Threads, if not as many as the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of source that a thread reads at a time.
    pub chunk_bytes: u64,
    /// Whether to use the CPU's vector instructions.
    pub simd: bool,
    /// How much memory it may take, as in `2GB`, if there is a limit.
    pub max_memory: Option<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { threads: None, chunk_bytes: CHUNK_BYTES, simd: true, max_memory: None }
    }
}

/// What is analyzed, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisRequest {
    /// The checkpoint.
    pub model: PathBuf,
    /// Output format.
    pub format: String,
    /// Whether to leave names alone, whatever the model is.
    pub generic: bool,
    /// Whether tensors that are treated by their shape alone are an error.
    pub strict: bool,
    /// The encoder.
    pub effort: Effort,
    /// What is minimised.
    pub objective: Objective,
    /// Where the sensitivity is from: `auto`, `probe`, `weights`, or a file.
    pub sensitivity: PathBuf,
    /// How the model is probed, if it is.
    pub probe: Options,
    /// The role prior, where the source has no gains of its own.
    pub prior: Prior,
    /// Bands of each matrix that are encoded for its curve; 0 for all.
    pub sample_bands: u64,
    /// What the job may use.
    pub resources: Resources,
}

impl Default for AnalysisRequest {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            format: "mlx".to_owned(),
            generic: false,
            strict: false,
            effort: Effort::default(),
            objective: Objective::default(),
            sensitivity: sensitivity::AUTO.into(),
            probe: Options::default(),
            prior: Prior::default(),
            sample_bands: SAMPLE_BANDS,
            resources: Resources::default(),
        }
    }
}

/// The requests with every option at its default: what a front leaves out has these values.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Defaults {
    /// Of [`inspect()`] and [`analyze()`].
    pub analyze: AnalysisRequest,
    /// Of [`probe()`].
    pub probe: ProbeRequest,
    /// Of [`quantize()`], with that of [`plan()`] in it.
    pub quantize: QuantizeRequest,
    /// Of [`verify()`].
    pub verify: VerifyRequest,
    /// Of a uniform scheme's group.
    pub group_size: u16,
    /// Of the signal-to-noise floor, in decibels.
    pub floor_db: f64,
}

/// The defaults of all verbs.
#[must_use]
pub fn defaults() -> Defaults {
    Defaults { group_size: plan::GROUP_SIZE, floor_db: FLOOR_DB, ..Defaults::default() }
}

/// What the program takes before it works on anything, an interpreter included.
const PROGRAM_BYTES: u64 = 64 << 20;

/// Chunks that a thread may have at a time: read, decoded, made, and waiting for their turn.
const CHUNKS: u64 = 12;

/// The smallest chunk that is worth reading.
const LEAST_CHUNK_BYTES: u64 = 64 << 10;

/// The machinery of one job.
struct Engine {
    workers: Workers,
    isa: Isa,
    chunk_bytes: u64,
    held_bytes: u64,
    /// Bytes that are left for what a job must hold.
    spare_bytes: Option<u64>,
}

impl Engine {
    fn new(resources: &Resources) -> Result<Self> {
        if resources.chunk_bytes == 0 {
            return Err(Error::option(OptionName::ChunkBytes, 0, "nothing can be read"));
        }
        let workers = Workers::new(resources.threads)?;
        let isa = if resources.simd { Isa::detect() } else { Isa::PORTABLE };
        let (chunk_bytes, held_bytes) = (resources.chunk_bytes, HELD_BYTES);
        let engine = Self { workers, isa, chunk_bytes, held_bytes, spare_bytes: None };
        match &resources.max_memory {
            None => Ok(engine),
            Some(text) => engine.within(text),
        }
    }

    /// The same within `text` of memory: with smaller chunks, and less held to save time.
    fn within(self, text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::option(OptionName::MaxMemory, text, reason);
        let limit = bytes(text).ok_or_else(|| wrong("write a size (2GB, 900MiB)".to_owned()))?;
        let threads = self.workers.threads() as u64;
        let least = PROGRAM_BYTES + 2 * threads * CHUNKS * LEAST_CHUNK_BYTES;
        if limit < least {
            return Err(wrong(format!("with {threads} threads it takes {} at least", size(least))));
        }
        let spare = limit - PROGRAM_BYTES;
        let chunk_bytes = self.chunk_bytes.min(spare / 2 / (threads * CHUNKS));
        let held_bytes = self.held_bytes.min(spare / 4);
        Ok(Self { chunk_bytes, held_bytes, spare_bytes: Some(spare / 2), ..self })
    }

    /// Whether the sensitivity of `source` is within the limit, and what the probe keeps of a run with `request`.
    fn check_memory(&self, source: &Conversion, request: &AnalysisRequest) -> Result<()> {
        let Some(spare) = self.spare_bytes else { return Ok(()) };
        let vectors: u64 = source.candidates().iter().map(|found| 4 * (found.matrix.rows + found.matrix.cols)).sum();
        let of_model = |key: &str| source.checkpoint.config_size(key).unwrap_or(0);
        // The streams in front of all layers, and those of one layer, forward and back; and as much again for the head,
        // for sums in `f64`, and for what is freed late.
        let streams = request.probe.tokens as u64 * 8 * of_model("hidden_size") * (of_model("num_hidden_layers") + 32);
        let is_probed = sensitivity::runs(&source.checkpoint, request);
        let needed = vectors + if is_probed { streams } else { 0 };
        if needed <= spare {
            return Ok(());
        }
        let limit = request.resources.max_memory.as_deref().unwrap_or_default();
        let reason = format!(
            "what must be held of the sensitivity takes {}, and {} are left for it: allow about {}",
            size(needed),
            size(spare),
            size(2 * needed + PROGRAM_BYTES)
        );
        Err(Error::option(OptionName::MaxMemory, limit, reason))
    }

    fn pass<'a>(&'a self, checkpoint: &'a Checkpoint, progress: &'a Progress) -> Pass<'a> {
        let Self { workers, isa, chunk_bytes, held_bytes, .. } = self;
        Pass { checkpoint, workers, progress, isa: *isa, chunk_bytes: *chunk_bytes, held_bytes: *held_bytes }
    }
}
