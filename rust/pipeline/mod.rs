//! The verbs. Only this module knows the order of their stages.
//!
//! Each verb takes a request and returns a report. Both are plain data with a JSON form, so that all fronts share
//! options and wording.

mod analyze;
mod check;
mod configure;
mod eval;
mod explain;
mod gguf_tokenizer;
mod inspect;
mod kept;
mod logits;
mod plan;
mod probe;
mod quantize;
mod recompute;
mod resume;
mod saved;
mod sensitivity;
mod verify;
mod weights;
mod write;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use analyze::{AnalyzeRequest, analyze};
pub use check::{CheckRequest, check};
pub use configure::{ConfigRequest, complete_config};
pub use eval::{EvalReport, EvalRequest, EvaluatedOutput, FirstToken, FirstTokenRule, eval};
pub use gguf_tokenizer::{GgufTokenizer, GgufTokenizerRequest, gguf_tokenizer};
pub use inspect::{Inspection, SameElementsRequest, inspect, same_elements};
pub use logits::{Logits, LogitsRequest, logits};
pub use plan::{PlanRequest, plan};
pub use probe::{ProbeReport, ProbeRequest, probe};
pub use quantize::{FinishRequest, OutputRequest, QuantizeReport, QuantizeRequest, check_output, finish, quantize};
pub use verify::{VerifyReport, VerifyRequest, verify};
pub use weights::{Weights, weights};

use crate::budget::{bytes, size};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::directory::holds_gguf;
use crate::checkpoint::stream::{CHUNK_BYTES, HELD_BYTES, Pass};
use crate::codec::Effort;
use crate::container::HeadSize;
use crate::error::{Error, Result};
use crate::format::{self, ForeignLayout, Format, FormatFacts, Runtime};
use crate::job::conversion::Conversion;
use crate::journal::Journal;
use crate::option::OptionName;
use crate::policy::FLOOR_DB;
use crate::pool::Workers;
use crate::probe::Options;
use crate::probe::memory;
use crate::progress::Progress;
use crate::rate_distortion::{Objective, SAMPLE_BANDS};
use crate::schema::Settings;
use crate::sensitivity::prior::Prior;
use crate::simd::Isa;

/// Resources of a job. They never change a byte of the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Number of threads; by default all that the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the source that a thread reads at a time.
    pub chunk_bytes: u64,
    /// Whether to use the vector instructions of the CPU.
    pub simd: bool,
    /// Limit on memory, such as `2GB`.
    pub max_memory: Option<String>,
    /// Seconds of work that a kill may cost: so often is finished work recorded.
    pub record_seconds: f64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { threads: None, chunk_bytes: CHUNK_BYTES, simd: true, max_memory: None, record_seconds: RECORD_SECONDS }
    }
}

/// Options of an analysis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisRequest {
    /// Path of the checkpoint.
    pub model: PathBuf,
    /// Name of the output format; `auto` for `gguf` if the source is a GGUF file, else `mlx`.
    pub format: String,
    /// The runtime that the output is for, if several read the format; `None` for the format's default.
    pub target: Option<String>,
    /// Number of devices that the runtime divides each layer among.
    pub tensor_parallel: u64,
    /// A GGUF file whose key-values the output states, for a source that has none.
    pub header: Option<PathBuf>,
    /// Whether to keep source names, without a model-specific layout.
    pub generic: bool,
    /// What the program that laid the checkpoint out says of it, if it is not a release.
    pub layout: Option<ForeignLayout>,
    /// Whether to fail on tensors of unknown role.
    pub strict: bool,
    /// Effort of the encoder.
    pub effort: Effort,
    /// The objective that plans minimise.
    pub objective: Objective,
    /// Source of the sensitivity: `auto`, `probe`, `weights`, or the path of a file.
    pub sensitivity: PathBuf,
    /// Options of the probe, if the source is the probe.
    pub probe: Options,
    /// The role prior, for sources that measure no gains.
    pub prior: Prior,
    /// Bands of each matrix that are encoded for its curve; 0 for all.
    pub sample_bands: u64,
    /// Resources of the job.
    pub resources: Resources,
}

impl Default for AnalysisRequest {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            format: AUTO_FORMAT.to_owned(),
            target: None,
            tensor_parallel: 1,
            header: None,
            generic: false,
            layout: None,
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

impl AnalysisRequest {
    fn open_format(&self) -> Result<Arc<dyn Format>> {
        self.open_format_with(None)
    }

    /// The format, to look at tensors only: nothing is asked for that a file would state besides them.
    fn open_format_of_tensors(&self) -> Result<Arc<dyn Format>> {
        let nothing = HeadSize { key_values: 0, bytes: 0, alignment: 32 };
        self.open_format_with(Some(nothing).filter(|_| !self.has_key_values()))
    }

    fn open_format_with(&self, head: Option<HeadSize>) -> Result<Arc<dyn Format>> {
        let format = match self.format.as_str() {
            AUTO_FORMAT if self.has_key_values() => "gguf",
            AUTO_FORMAT => "mlx",
            named => named,
        };
        open_format(format, self.target.as_deref(), self.tensor_parallel, (self.header.clone(), head))
    }

    /// Whether the source, or the header that is given, has the key-values of a GGUF file.
    fn has_key_values(&self) -> bool {
        self.header.is_some() || holds_gguf(&self.model)
    }

    /// The same request with what the settings of a document say.
    fn of_settings(self, settings: &Settings) -> Self {
        let Settings { format, target, tensor_parallel, generic, effort, objective, prior, .. } = settings.clone();
        Self { format, target, tensor_parallel, generic, effort, objective, prior, ..self }
    }

    fn open(&self, format: Arc<dyn Format>) -> Result<Conversion> {
        Conversion::open(&self.model, format, self.generic, self.layout.as_ref())
    }
}

impl Settings {
    fn open_format(&self) -> Result<Arc<dyn Format>> {
        open_format(&self.format, self.target.as_deref(), self.tensor_parallel, (None, self.head))
    }
}

fn open_format(
    name: &str,
    target: Option<&str>,
    tensor_parallel: u64,
    (header, head): (Option<PathBuf>, Option<HeadSize>),
) -> Result<Arc<dyn Format>> {
    if tensor_parallel == 0 {
        return Err(Error::option(OptionName::TensorParallel, 0, "must be at least 1"));
    }
    format::open(name, &Runtime { target: target.map(str::to_owned), tensor_parallel, header, head })
}

/// The requests with every option at its default, for fronts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Defaults {
    /// Defaults of [`inspect()`] and [`analyze()`].
    pub analyze: AnalysisRequest,
    /// Defaults of [`probe()`].
    pub probe: ProbeRequest,
    /// Defaults of [`quantize()`], which include those of [`plan()`].
    pub quantize: QuantizeRequest,
    /// Defaults of [`verify()`].
    pub verify: VerifyRequest,
    /// Defaults of [`eval()`].
    pub eval: EvalRequest,
    /// The output formats.
    pub formats: Vec<FormatFacts>,
    /// Signal-to-noise floor, in decibels.
    pub floor_db: f64,
}

/// Returns the defaults of all verbs.
#[must_use]
pub fn defaults() -> Defaults {
    Defaults { formats: format::facts(), floor_db: FLOOR_DB, ..Defaults::default() }
}

/// The format that the source decides.
const AUTO_FORMAT: &str = "auto";

/// Default time between records of finished work, in seconds.
const RECORD_SECONDS: f64 = 2.0;

/// Bytes that the process uses before a job begins, including a Python interpreter.
const PROGRAM_BYTES: u64 = 64 << 20;

/// Chunks that a thread may hold at a time: read, decoded, encoded, and waiting for their turn to be consumed.
const CHUNKS_PER_THREAD: u64 = 12;

/// The smallest chunk, in bytes: smaller reads are inefficient.
const MIN_CHUNK_BYTES: u64 = 64 << 10;

/// Threads, ISA and buffer sizes of one job.
struct Engine {
    workers: Workers,
    isa: Isa,
    chunk_bytes: u64,
    held_bytes: u64,
    /// Bytes available besides those of the program.
    spare_bytes: Option<u64>,
}

impl Engine {
    fn new(resources: &Resources) -> Result<Self> {
        if resources.chunk_bytes == 0 {
            return Err(Error::option(OptionName::ChunkBytes, 0, "must be at least 1"));
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

    /// Limits the engine to `text` bytes of memory, with smaller chunks and less cached data.
    fn within(self, text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::option(OptionName::MaxMemory, text, reason);
        let limit = bytes(text).ok_or_else(|| wrong("write a size (2GB, 900MiB)".to_owned()))?;
        let threads = self.workers.threads() as u64;
        let least = PROGRAM_BYTES + 2 * threads * CHUNKS_PER_THREAD * MIN_CHUNK_BYTES;
        if limit < least {
            return Err(wrong(format!("with {threads} threads it takes {} at least", size(least))));
        }
        let spare = limit - PROGRAM_BYTES;
        let chunk_bytes = self.chunk_bytes.min(spare / 2 / (threads * CHUNKS_PER_THREAD));
        let held_bytes = self.held_bytes.min(spare / 4);
        Ok(Self { chunk_bytes, held_bytes, spare_bytes: Some(spare), ..self })
    }

    /// Checks that the sensitivity vectors of `source`, and the probe's activations if `request` runs it, fit the
    /// limit.
    fn check_memory(&self, source: &Conversion, request: &AnalysisRequest) -> Result<()> {
        let Some(spare) = self.spare_bytes else { return Ok(()) };
        let vectors: u64 = source.candidates().iter().map(|found| 4 * (found.matrix.rows + found.matrix.cols)).sum();
        let of_model = |key: &str| source.checkpoint.config_size(key).unwrap_or(0);
        // The activations and gradients before each layer, plus 32 times as much: those within one layer, forward and
        // backward, and those of the head, the sums in `f64`, and memory that is released late.
        let streams = |tokens: u64| tokens * 8 * of_model("hidden_size") * (of_model("num_hidden_layers") + 32);
        let tokens = request.probe.tokens as u64;
        // Without error feedback half of it is for data that must be kept.
        let half = |needed: u64| (needed, spare / 2, 2 * needed);
        let (needed, left, enough) = match sensitivity::runnable(&source.checkpoint) {
            Ok(model) if request.effort == Effort::High => {
                let buffers = |chunk_bytes| self.workers.threads() as u64 * CHUNKS_PER_THREAD * chunk_bytes;
                let needed = |held| vectors + memory::held_bytes(&model, &request.probe, held);
                let enough = buffers(request.resources.chunk_bytes) + needed(HELD_BYTES);
                (needed(self.held_bytes), spare - buffers(self.chunk_bytes), enough)
            }
            Ok(_) if sensitivity::runs(&source.checkpoint, request) => half(vectors + streams(tokens)),
            _ => half(vectors),
        };
        if needed <= left {
            return Ok(());
        }
        let limit = request.resources.max_memory.as_deref().unwrap_or_default();
        let reason = format!(
            "what must be held of the sensitivity takes {}, and {} are left for it: allow about {}",
            size(needed),
            size(left),
            size(enough + PROGRAM_BYTES)
        );
        Err(Error::option(OptionName::MaxMemory, limit, reason))
    }

    /// A pass that records nothing.
    fn pass<'a>(&'a self, checkpoint: &'a Checkpoint, progress: &'a Progress) -> Pass<'a> {
        let Self { workers, isa, chunk_bytes, held_bytes, .. } = self;
        let (journal, isa) = (Journal::NONE, *isa);
        Pass { checkpoint, workers, progress, journal, isa, chunk_bytes: *chunk_bytes, held_bytes: *held_bytes }
    }
}
