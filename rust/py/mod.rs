//! The Python bindings: one function for all verbs, JSON in and JSON out.
//!
//! A job runs on its own thread, detached from the interpreter. The calling thread wakes up every 50 ms to check for
//! signals (Ctrl-C) and to report progress. It raises an error of the job as an exception.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::option::OptionName;
use crate::pipeline::{
    self, AnalysisRequest, AnalyzeRequest, CheckRequest, ConfigRequest, EvalRequest, FinishRequest,
    GgufTokenizerRequest, LogitsRequest, OutputRequest, PlanRequest, ProbeRequest, QuantizeRequest,
    SameElementsRequest, VerifyRequest,
};
use crate::progress::Progress;

/// Polling interval of the calling thread.
const TICK: Duration = Duration::from_millis(50);

/// The native module.
#[pymodule]
#[pyo3(name = "_native")]
pub mod native {
    #[pymodule_export]
    use super::{call, cpu_level, defaults, logits, options, version, weights};
}

/// The crate's version.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The defaults of all verbs' requests, as JSON text in UTF-8.
#[pyfunction]
fn defaults(py: Python<'_>) -> PyResult<Vec<u8>> {
    serde_json::to_vec(&pipeline::defaults()).map_err(|fault| exception(py, &Error::Bug(fault.to_string())))
}

/// The names of options that occur in messages and hints, as marks `⟨name⟩` or `⟨name=value⟩`.
#[pyfunction]
fn options() -> Vec<&'static str> {
    OptionName::ALL.iter().map(|option| option.name()).collect()
}

/// The instruction set that kernels use on this CPU.
#[pyfunction]
fn cpu_level() -> &'static str {
    crate::simd::Isa::detect().name()
}

/// Decodes a tensor of the checkpoint at `model`: its shape, and its elements as little-endian `f32`.
#[pyfunction]
fn weights<'py>(py: Python<'py>, model: &str, tensor: &str) -> PyResult<(Vec<u64>, Bound<'py, PyBytes>)> {
    let found = py.detach(|| pipeline::weights(model.as_ref(), tensor)).map_err(|error| exception(py, &error))?;
    Ok((found.shape, PyBytes::new(py, bytemuck::cast_slice(&found.values))))
}

/// Runs the model of the JSON text `request` on its tokens: the shape, and the logits as little-endian `f32`.
#[pyfunction]
fn logits<'py>(py: Python<'py>, request: &[u8]) -> PyResult<([usize; 2], Bound<'py, PyBytes>)> {
    let request: LogitsRequest =
        serde_json::from_slice(request).map_err(|fault| exception(py, &Error::Request(fault.to_string())))?;
    let found = py.detach(|| pipeline::logits(&request, &Progress::default()));
    let found = found.map_err(|error| exception(py, &error))?;
    Ok((found.shape, PyBytes::new(py, bytemuck::cast_slice(&found.values))))
}

/// Runs `verb` on the JSON text `request`, and returns the report as JSON text in UTF-8.
///
/// It calls `progress`, if given, every 50 ms with the stage, the bytes done, and the bytes in all.
#[pyfunction]
#[pyo3(signature = (verb, request, progress=None))]
fn call<'py>(
    py: Python<'py>,
    verb: &str,
    request: &[u8],
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let report = match verb {
        "inspect" => run(py, request, progress, |request: &AnalysisRequest, _| pipeline::inspect(request)),
        "analyze" => run(py, request, progress, |request: &AnalyzeRequest, watch| pipeline::analyze(request, watch)),
        "probe" => run(py, request, progress, |request: &ProbeRequest, watch| pipeline::probe(request, watch)),
        "plan" => run(py, request, progress, |request: &PlanRequest, watch| pipeline::plan(request, watch)),
        "quantize" => run(py, request, progress, |request: &QuantizeRequest, watch| pipeline::quantize(request, watch)),
        "finish" => run(py, request, progress, |request: &FinishRequest, watch| pipeline::finish(request, watch)),
        "check_output" => run(py, request, progress, |request: &OutputRequest, _| pipeline::check_output(request)),
        "check" => run(py, request, progress, |request: &CheckRequest, watch| pipeline::check(request, watch)),
        "complete_config" => {
            run(py, request, progress, |request: &ConfigRequest, _| pipeline::complete_config(request))
        }
        "same_elements" => {
            run(py, request, progress, |request: &SameElementsRequest, _| pipeline::same_elements(request))
        }
        "gguf_tokenizer" => {
            run(py, request, progress, |request: &GgufTokenizerRequest, _| pipeline::gguf_tokenizer(request))
        }
        "eval" => run(py, request, progress, |request: &EvalRequest, watch| pipeline::eval(request, watch)),
        "verify" => run(py, request, progress, |request: &VerifyRequest, watch| pipeline::verify(request, watch)),
        _ => Err(PyValueError::new_err(format!("unknown verb `{verb}`"))),
    };
    report.map(|report| PyBytes::new(py, &report))
}

fn run<Q: DeserializeOwned + Sync, A: Serialize + Send>(
    py: Python<'_>,
    request: &[u8],
    callback: Option<&Bound<'_, PyAny>>,
    work: impl Fn(&Q, &Progress) -> Result<A> + Sync,
) -> PyResult<Vec<u8>> {
    let request: Q =
        serde_json::from_slice(request).map_err(|fault| exception(py, &Error::Request(fault.to_string())))?;
    let watch = Progress::default();
    let mut stopped: Option<PyErr> = None;
    let finished = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        let (request, watch, work, finished) = (&request, &watch, &work, &finished);
        let caller = std::thread::current();
        let worker = scope.spawn(move || {
            let answer = work(request, watch)
                .and_then(|answer| serde_json::to_vec(&answer).map_err(|fault| Error::Bug(fault.to_string())));
            finished.store(true, Ordering::Release);
            caller.unpark();
            answer
        });
        while !finished.load(Ordering::Acquire) && !worker.is_finished() {
            py.detach(|| std::thread::park_timeout(TICK));
            if stopped.is_none()
                && let Err(raised) = py.check_signals().and_then(|()| report_progress(callback, watch))
            {
                stopped = Some(raised);
                watch.cancel();
            }
        }
        py.detach(|| worker.join()).unwrap_or_else(|panic| resume_unwind(panic))
    });
    match (stopped, answer) {
        (Some(raised), _) => Err(raised),
        (None, Ok(answer)) => {
            report_progress(callback, &watch)?;
            Ok(answer)
        }
        (None, Err(error)) => Err(exception(py, &error)),
    }
}

/// Calls the callback with the state of the job.
fn report_progress(callback: Option<&Bound<'_, PyAny>>, watch: &Progress) -> PyResult<()> {
    let Some(callback) = callback else { return Ok(()) };
    let now = watch.snapshot();
    let stage = serde_json::to_value(now.stage).ok().and_then(|stage| stage.as_str().map(str::to_owned));
    callback.call1((stage, now.done_bytes, now.total_bytes)).map(|_| ())
}

/// Converts `error` to a Python exception, by `ramrs.errors.from_native`.
fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let made = || -> PyResult<Bound<'_, PyAny>> {
        let fields = PyDict::new(py);
        fields.set_item("slug", error.slug())?;
        fields.set_item("message", error.to_string())?;
        fields.set_item("hint", error.hint())?;
        fields.set_item("path", error.path().map(|path| path.display().to_string()))?;
        fields.set_item("tensor", error.tensor())?;
        let errno = match error {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        fields.set_item("errno", errno)?;
        py.import("ramrs.errors")?.getattr("from_native")?.call((kind(error.kind()),), Some(&fields))
    };
    match made() {
        Ok(exception) => PyErr::from_value(exception),
        Err(raised) => raised,
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Config => "config",
        Kind::Checkpoint => "checkpoint",
        Kind::Tensor => "tensor",
        Kind::Budget => "budget",
        Kind::Verify => "verify",
        Kind::Io => "io",
        Kind::Interrupted => "interrupted",
        Kind::Bug => "bug",
    }
}
