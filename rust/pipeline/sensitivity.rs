//! Selects the source of the sensitivity and measures all candidates of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AnalysisRequest, kept};
use crate::arch::{self, Runnable};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::Pass;
use crate::codec::Effort;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::job::conversion::{Conversion, listed};
use crate::name::Role;
use crate::option::OptionName;
use crate::pass::energy::{self, DeadWeights, EnergyJob};
use crate::probe::feedback::Recording;
use crate::probe::{self, Mode, Options, Probe};
use crate::progress::Stage;
use crate::rate_distortion::Objective;
use crate::schema::Settings;
use crate::sensitivity::file::{ProbeRecord, SensitivityFile};
use crate::sensitivity::table::{self, Table};
use crate::sensitivity::{Candidate, Gain, MatrixSensitivity, Origin, Vectors, from_probe, prior, propagate};

/// The probe if it can run the model, otherwise the weights alone.
pub(super) const AUTO: &str = "auto";
const PROBE: &str = "probe";
/// The weights alone, without running the model.
const WEIGHTS: &str = "weights";
/// In settings: a file that the probe did not write.
const FILE: &str = "file";

/// The sensitivity of all candidates of a source, in their order.
pub(super) struct Sensitivity {
    pub measured: Vec<MatrixSensitivity>,
    /// With error feedback: the same with the conditional importance of inputs, and what the encoder needs of the probe.
    pub feedback: Option<FeedbackSensitivity>,
    pub settings: Settings,
}

#[derive(Serialize, Deserialize)]
pub(super) struct FeedbackSensitivity {
    pub conditional: Vec<MatrixSensitivity>,
    pub recording: Recording,
}

/// Measures the sensitivity of `source`, or takes it from the journal of the job.
pub(super) fn measure(pass: Pass<'_>, source: &Conversion, request: &AnalysisRequest) -> Result<Sensitivity> {
    if let Some(found) = kept::load(pass, pass.journal)? {
        return Ok(found);
    }
    let before = pass.progress.warnings().len();
    let found = measured(pass, source, request)?;
    kept::store(pass.journal, &found, &pass.progress.warnings()[before..])?;
    Ok(found)
}

fn measured(pass: Pass<'_>, source: &Conversion, request: &AnalysisRequest) -> Result<Sensitivity> {
    let candidates = &source.candidates();
    check(request.probe)?;
    let mut feedback = None;
    if request.effort == Effort::High {
        check_feedback(source, request)?;
    }
    let (label, measured, probed) = match (request.objective, request.sensitivity.to_str()) {
        (Objective::Mse | Objective::Mint, _) => ("none", unweighted(pass, candidates)?, None),
        (Objective::Output, Some(WEIGHTS)) => (WEIGHTS, from_weights(pass, candidates, request)?, None),
        (Objective::Output, Some(PROBE)) => from_probe(pass, source, candidates, request, &mut feedback)?,
        (Objective::Output, Some(AUTO)) => match runnable(&source.checkpoint) {
            Ok(_) => from_probe(pass, source, candidates, request, &mut feedback)?,
            Err(fault) => {
                pass.progress.warn(format!("{fault}: its sensitivity is from the weights alone, and the result worse"));
                (WEIGHTS, from_weights(pass, candidates, request)?, None)
            }
        },
        (Objective::Output, _) => from_file(pass, candidates, request)?,
    };
    for warning in dead_weights(candidates, &measured) {
        pass.progress.warn(warning);
    }
    let settings = Settings {
        format: source.format.name().to_owned(),
        target: source.format.target().map(str::to_owned),
        tensor_parallel: source.format.tensor_parallel(),
        head: source.format.head(),
        generic: source.generic,
        laid_out_by: source.laid_out_by.clone(),
        effort: request.effort,
        objective: request.objective,
        sensitivity: label.to_owned(),
        sensitivity_sha256: digest(source, candidates, &measured),
        probe: probed,
        prior: request.prior,
        prior_version: prior::VERSION,
    };
    Ok(Sensitivity { measured, feedback, settings })
}

/// The request that produced the sensitivity of a saved document; `None` if it was a file of the user's.
pub(super) fn same_sensitivity_request(settings: &Settings) -> Option<(PathBuf, Options)> {
    let options = settings.probe.map_or_else(Options::default, ProbeRecord::options);
    (settings.sensitivity != FILE).then(|| {
        let asked = if settings.sensitivity == "none" { AUTO } else { &settings.sensitivity };
        (asked.into(), options)
    })
}

/// Whether the sensitivity of `request` is from a file.
pub(super) fn is_file(request: &AnalysisRequest) -> bool {
    let named = request.sensitivity.to_str().is_some_and(|asked| [AUTO, PROBE, WEIGHTS].contains(&asked));
    request.objective == Objective::Output && !named
}

/// Checks the options of the probe before any work.
pub(super) fn check(options: Options) -> Result<()> {
    /// More tokens would take more memory than the model, without better results.
    const MOST_TOKENS: usize = 1 << 16;
    if !(1..=MOST_TOKENS).contains(&options.tokens) {
        return Err(Error::option(OptionName::ProbeTokens, options.tokens, format!("not between 1 and {MOST_TOKENS}")));
    }
    Ok(())
}

/// The model in `checkpoint`, if the probe can run it.
///
/// # Errors
/// [`Error::Unrunnable`].
pub(super) fn runnable(checkpoint: &Checkpoint) -> Result<Runnable<'_>> {
    let model_type = checkpoint.model_type().unwrap_or("unknown").to_owned();
    arch::runnable(checkpoint).map_err(|reason| Error::Unrunnable { model_type, reason })
}

/// Whether `request` runs the model of `checkpoint`.
pub(super) fn runs(checkpoint: &Checkpoint, request: &AnalysisRequest) -> bool {
    let asked = request.sensitivity.to_str().is_some_and(|asked| [AUTO, PROBE].contains(&asked));
    asked && request.objective == Objective::Output && runnable(checkpoint).is_ok()
}

/// Probes `model`. Returns the vectors of its matrices and the probe's measurements.
pub(super) fn probed_table(pass: Pass<'_>, model: &Runnable<'_>, options: Options) -> Result<(Table, Probe)> {
    let probe = probe::probe(pass, model, options)?;
    Ok((table_of(pass, model, &probe), probe))
}

fn table_of(pass: Pass<'_>, model: &Runnable<'_>, probe: &Probe) -> Table {
    let (table, warnings) = from_probe::table(model, probe);
    for warning in warnings {
        pass.progress.warn(warning);
    }
    table
}

type Labelled = (&'static str, Vec<MatrixSensitivity>, Option<ProbeRecord>);

fn from_probe(
    pass: Pass<'_>,
    source: &Conversion,
    candidates: &[Candidate<'_>],
    request: &AnalysisRequest,
    feedback: &mut Option<FeedbackSensitivity>,
) -> Result<Labelled> {
    let model = runnable(&source.checkpoint)?;
    let measured = |table: &Table| {
        table::measure(pass, candidates, request.prior, Origin::Probe, |candidate| {
            let tensor = candidate.tensor(pass.checkpoint);
            Ok(table.get(&tensor.name).and_then(|found| found.of(tensor, candidate.view)))
        })
    };
    let mut options = request.probe;
    if request.effort == Effort::High && options.mode == Mode::Auto {
        // Error feedback needs tokens that are like text, whatever they cost.
        options.mode = Mode::Written;
    }
    let options = options.of(&model);
    if request.effort == Effort::High {
        let found = probe::feedback::probe(pass, &model, options)?;
        let table = table_of(pass, &model, &found.probe);
        begin(pass, candidates);
        let conditional = measured(&from_probe::conditional(&table, &model, &found.importance))?;
        *feedback = Some(FeedbackSensitivity { conditional, recording: found.recording });
        return Ok((PROBE, measured(&table)?, Some(ProbeRecord::by(options))));
    }
    let (table, _) = probed_table(pass, &model, options)?;
    begin(pass, candidates);
    Ok((PROBE, measured(&table)?, Some(ProbeRecord::by(options))))
}

/// Checks that the model can be run for error feedback, before any work.
fn check_feedback(source: &Conversion, request: &AnalysisRequest) -> Result<()> {
    let wrong = |reason: String| Err(Error::option(OptionName::Effort, Effort::High, reason));
    let needs = "error feedback needs the covariance of each layer's inputs, from a run of the model";
    if request.objective != Objective::Output {
        return wrong(format!("{needs}; ⟨objective⟩ {} uses none: leave it at output", request.objective));
    }
    match request.sensitivity.to_str() {
        Some(PROBE | AUTO) => {}
        Some(WEIGHTS) => return wrong(format!("{needs}, and ⟨sensitivity⟩ weights does not run it: leave it at auto")),
        _ => return wrong(format!("{needs}, which no ⟨sensitivity⟩ file holds: leave it at auto")),
    }
    match runnable(&source.checkpoint) {
        Ok(_) => Ok(()),
        Err(fault) => wrong(format!("{needs}, and {fault}: use normal")),
    }
}

fn from_weights(
    pass: Pass<'_>,
    candidates: &[Candidate<'_>],
    request: &AnalysisRequest,
) -> Result<Vec<MatrixSensitivity>> {
    begin(pass, candidates);
    propagate::derive(pass, candidates, request.prior)
}

/// Reads the sensitivity from a file. A file that the probe wrote is labelled as the probe.
fn from_file(pass: Pass<'_>, candidates: &[Candidate<'_>], request: &AnalysisRequest) -> Result<Labelled> {
    let file = SensitivityFile::open(Path::new(&request.sensitivity))?;
    begin(pass, candidates);
    let label = if file.probed().is_some() { PROBE } else { FILE };
    Ok((label, file.measure(pass, candidates, request.prior)?, file.probed()))
}

fn begin(pass: Pass<'_>, candidates: &[Candidate<'_>]) {
    let bytes = candidates.iter().map(|candidate| candidate.matrix.rows * candidate.matrix.row_bytes());
    pass.progress.begin(Stage::Measure, bytes.sum());
}

/// All weights have equal importance: `½ · 2 · 1 · Δw²` is the squared error.
fn unweighted(pass: Pass<'_>, candidates: &[Candidate<'_>]) -> Result<Vec<MatrixSensitivity>> {
    begin(pass, candidates);
    let ones: Vec<Arc<[f32]>> =
        candidates.iter().map(|candidate| vec![1.0; candidate.matrix.cols as usize].into()).collect();
    let jobs: Vec<_> = candidates
        .iter()
        .zip(&ones)
        .map(|(&Candidate { view, matrix, .. }, k)| EnergyJob { view, matrix, k })
        .collect();
    let energies = energy::energies(pass, &jobs)?;
    let measured = |(k, energy): (Arc<[f32]>, energy::Energy)| MatrixSensitivity {
        vectors: Vectors { importance: k, gain: Gain::Same(2.0) },
        signal: energy.plain,
        energy: energy.plain,
        dead: energy.dead,
        origin: Origin::Unweighted,
    };
    Ok(ones.into_iter().zip(energies).map(measured).collect())
}

/// Names the matrices whose weights do nothing, as after a merge or a save that went wrong.
fn dead_weights(candidates: &[Candidate<'_>], measured: &[MatrixSensitivity]) -> Vec<String> {
    let all = || candidates.iter().zip(measured).filter(|(_, found)| found.dead != DeadWeights::default());
    let is_zero =
        |(candidate, found): &(&Candidate<'_>, &MatrixSensitivity)| found.dead.zero_rows == candidate.matrix.rows;
    // Rows of zeros of an embedding belong to tokens that the vocabulary does not use.
    let is_partly = |found: &(&Candidate<'_>, &MatrixSensitivity)| {
        !is_zero(found) && found.1.dead.zero_rows > 0 && !matches!(found.0.name.role, Role::Embedding | Role::Head)
    };
    let name = |(candidate, found): (&Candidate<'_>, &MatrixSensitivity)| match found.dead.zero_rows {
        0 => candidate.name.module.clone(),
        rows => format!("{} ({rows} of {} rows)", candidate.name.module, candidate.matrix.rows),
    };
    let kinds: [(&str, Vec<String>); 3] = [
        ("all zero", all().filter(is_zero).map(|(candidate, _)| candidate.name.module.clone()).collect()),
        ("constant", all().filter(|found| !is_zero(found) && found.1.dead.is_constant).map(name).collect()),
        ("zero in some rows", all().filter(is_partly).map(name).collect()),
    ];
    let listed = |(what, names): (&str, Vec<String>)| {
        format!("{} matrices are {what}: {}", names.len(), listed(names.iter().map(String::as_str)))
    };
    kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(listed).collect()
}

/// SHA-256 of all vectors.
fn digest(source: &Conversion, candidates: &[Candidate<'_>], measured: &[MatrixSensitivity]) -> String {
    let mut digest = Digest::default();
    for (candidate, measured) in candidates.iter().zip(measured) {
        digest.text(&source.outputs[candidate.target].target.name);
        digest.update(bytemuck::cast_slice(&measured.vectors.importance));
        match &measured.vectors.gain {
            Gain::Same(gain) => digest.update(&gain.to_le_bytes()),
            Gain::Each(gains) => digest.update(bytemuck::cast_slice(gains)),
        }
    }
    digest.finish()
}
