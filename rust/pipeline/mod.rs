//! The verbs, and the order of their stages: the only place that knows it.
//!
//! Each verb takes a request and gives a report, both plain data with a JSON form, so that every front asks for the
//! same things in the same words.

mod analyze;
mod card;
mod encode;
mod inspect;
mod ledger;
mod plan;
mod probe;
mod quantize;
mod sensitivity;
mod source;
mod verify;
mod weights;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use analyze::analyze;
pub use inspect::{Inspection, inspect};
pub use plan::{PlanRequest, plan};
pub use probe::{ProbeReport, ProbeRequest, probe};
pub use quantize::{QuantizeReport, QuantizeRequest, quantize};
pub use verify::{VerifyReport, VerifyRequest, verify};
pub use weights::{Weights, weights};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::{CHUNK_BYTES, Pass};
use crate::error::{Error, Result};
use crate::kernel::Level;
use crate::probe::Options;
use crate::progress::Progress;
use crate::quant::Effort;
use crate::rd::{Objective, SAMPLE_BANDS};
use crate::sensitivity::prior::Prior;
use crate::work::Workers;

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
}

impl Default for Resources {
    fn default() -> Self {
        Self { threads: None, chunk_bytes: CHUNK_BYTES, simd: true }
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

/// The machinery of one job.
struct Engine {
    workers: Workers,
    level: Level,
    chunk_bytes: u64,
}

impl Engine {
    fn new(resources: &Resources) -> Result<Self> {
        if resources.chunk_bytes == 0 {
            return Err(Error::option("--chunk-bytes", 0, "nothing can be read"));
        }
        Ok(Self {
            workers: Workers::new(resources.threads)?,
            level: if resources.simd { Level::detect() } else { Level::PORTABLE },
            chunk_bytes: resources.chunk_bytes,
        })
    }

    fn pass<'a>(&'a self, checkpoint: &'a Checkpoint, progress: &'a Progress) -> Pass<'a> {
        let Self { workers, level, chunk_bytes } = self;
        Pass { checkpoint, workers, progress, level: *level, chunk_bytes: *chunk_bytes }
    }
}
