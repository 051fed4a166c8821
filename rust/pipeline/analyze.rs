//! `analyze`: one pass over all weights, one over sampled rows, and a rate–distortion curve for every matrix.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sensitivity::{Sensitivity, measure};
use super::{AnalysisRequest, Engine, QuantizeRequest, kept, resume};
use crate::checkpoint::stream::Pass;
use crate::codec::{Encoder, Scheme};
use crate::error::Result;
use crate::job::conversion::{Conversion, OutputTensor};
use crate::job::staging::{Existing, Staging, check_place, is_special, replace, resolved};
use crate::journal::Journal;
use crate::math::round2;
use crate::progress::{Progress, Stage};
use crate::rate_distortion::{self, Member, Objective, SchemeNoise, StackJob, first_bytes};
use crate::schema::analysis::{self, Analysis, AnalyzedTensor, RdCurve, RdPoint, StackedEnergy};
use crate::schema::{Tool, text};
use crate::sensitivity::{Candidate, MatrixSensitivity};

/// Options of an analysis that may be written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalyzeRequest {
    /// The checkpoint, and the options of its analysis.
    pub model: AnalysisRequest,
    /// Path of the file to write; `None` to write none. The sensitivity is kept beside it, in a file of the same name that
    /// ends in `.sensitivity`.
    pub output: Option<PathBuf>,
}

/// Analyzes the checkpoint of `request`. If the analysis is written, work that was stopped is continued.
///
/// # Errors
/// The errors of opening and reading the checkpoint, and of writing.
pub fn analyze(request: &AnalyzeRequest, progress: &Progress) -> Result<Analysis> {
    let Some(output) = &request.output else { return analysis(&request.model, progress) };
    let request = &request.model;
    check_place(output)?;
    if is_special(output) {
        let analysis = analysis(request, progress)?;
        replace(output, text(&analysis)?.as_bytes())?;
        return Ok(analysis);
    }
    // A symbolic link stays one: what it stands for is replaced.
    let output = &resolved(output);
    let (conversion, engine) = opened(request, progress)?;
    let pass = engine.pass(&conversion.checkpoint, progress);
    let identity = resume::identity(&QuantizeRequest::default(), request, &conversion)?;
    let interval = resume::interval(&request.resources)?;
    let staging = Staging::open(output, Existing::OutputReplaced, &identity, interval)?;
    let pass = Pass { journal: staging.journal(), ..pass };
    match written(pass, &conversion, request, (&staging, output)) {
        Ok((analysis, files)) => staging.finish_files(&files).map(|()| analysis),
        Err(error) => Err(resume::ended(staging, error)),
    }
}

/// Writes the analysis and the sensitivity to `staging`. Returns the names of their files.
fn written(
    pass: Pass<'_>,
    conversion: &Conversion,
    request: &AnalysisRequest,
    (staging, output): (&Staging, &Path),
) -> Result<(Analysis, [PathBuf; 2])> {
    let before = pass.progress.warnings().len();
    let sensitivity = measure(pass, conversion, request)?;
    let warnings = &pass.progress.warnings()[before..];
    let analysis = curves(pass, conversion, request, &sensitivity)?;
    let name = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
    let (document, kept) = (name(output), name(&kept::file_of(output)));
    let path = staging.output().join(&kept);
    // An earlier run may have been killed while it wrote it.
    staging.write_file(&kept, &[])?;
    kept::store(&Journal::open(&path, Duration::MAX)?, &sensitivity, warnings)?;
    staging.write_file(&document, text(&analysis)?.as_bytes())?;
    Ok((analysis, [kept, document]))
}

/// Analyzes the checkpoint of `request`, and writes nothing.
pub(super) fn analysis(request: &AnalysisRequest, progress: &Progress) -> Result<Analysis> {
    let (conversion, engine) = opened(request, progress)?;
    let pass = engine.pass(&conversion.checkpoint, progress);
    let sensitivity = measure(pass, &conversion, request)?;
    curves(pass, &conversion, request, &sensitivity)
}

/// The checked source of `request`, and what works on it.
fn opened(request: &AnalysisRequest, progress: &Progress) -> Result<(Conversion, Engine)> {
    let conversion = request.open(request.open_format()?)?;
    conversion.check(request.strict, None, |warning| progress.warn(warning))?;
    let engine = Engine::new(&request.resources)?;
    engine.check_memory(&conversion, request)?;
    Ok((conversion, engine))
}

/// Encodes sampled rows of every candidate in every scheme.
pub(super) fn curves(
    pass: Pass<'_>,
    conversion: &Conversion,
    request: &AnalysisRequest,
    sensitivity: &Sensitivity,
) -> Result<Analysis> {
    let candidates = conversion.candidates();
    let jobs: Vec<Option<StackJob<'_>>> =
        conversion.outputs.iter().map(|output| stack(output, &candidates, &sensitivity.measured)).collect();
    // With error feedback, the schemes that it applies to are measured with the conditional importance of inputs.
    let conditional: Vec<Option<StackJob<'_>>> = match &sensitivity.feedback {
        Some(feedback) => {
            conversion.outputs.iter().map(|output| stack(output, &candidates, &feedback.conditional)).collect()
        }
        None => jobs.iter().map(|_| None).collect(),
    };
    let (jobs, conditional) = divided(jobs, conditional);
    let is_measured = |job: &Option<StackJob<'_>>| job.as_ref().is_some_and(|job| !job.schemes.is_empty());
    let stacks: Vec<&StackJob<'_>> = jobs.iter().chain(&conditional).filter(|job| is_measured(job)).flatten().collect();
    let sampled = |job: &&StackJob<'_>| first_bytes(job, request.sample_bands);
    pass.progress.begin(Stage::Curves, stacks.iter().map(sampled).sum());
    let encoder = Encoder { isa: pass.isa, effort: request.effort };
    let mut points = rate_distortion::curves(pass, encoder, &stacks, request.sample_bands)?;
    let mut fed = points.split_off(jobs.iter().filter(|job| is_measured(job)).count()).into_iter();
    let mut points = points.into_iter();
    let mut tensors = Vec::with_capacity(conversion.outputs.len());
    for ((output, job), conditional) in conversion.outputs.iter().zip(&jobs).zip(&conditional) {
        let mut found = is_measured(job).then(|| points.next()).flatten().unwrap_or_default();
        found.extend(is_measured(conditional).then(|| fed.next()).flatten().unwrap_or_default());
        if let Ok((_, schemes)) = &output.candidate {
            found.sort_by_key(|point| schemes.iter().position(|scheme| *scheme == point.scheme));
        }
        let curve = job.as_ref().map(|job| {
            let group = conversion.format.fusion_group(&output.name);
            curve(&group, job, &found, request.objective)
        });
        tensors.push(AnalyzedTensor { curve, ..output.described(&conversion.checkpoint) });
    }
    Ok(Analysis {
        ramrs_analysis: analysis::VERSION,
        tool: Tool::this(),
        source: conversion.id(),
        settings: sensitivity.settings.clone(),
        tensors,
        warnings: pass.progress.warnings(),
    })
}

/// The matrices of `output` with all available schemes; `None` if no scheme is available.
fn stack<'a>(
    output: &'a OutputTensor,
    candidates: &[Candidate<'_>],
    measured: &'a [MatrixSensitivity],
) -> Option<StackJob<'a>> {
    let (_, schemes) = output.candidate.as_ref().ok()?;
    let member = |at: usize| {
        let Candidate { view, matrix, .. } = candidates[at];
        Member { view, matrix, measured: &measured[at] }
    };
    let matrices = output.matrices.clone().map(member).collect();
    Some(StackJob { name: &output.target.name, matrices, schemes: schemes.clone() })
}

/// Divides the schemes of stacks: those that errors are fed back in go to the `conditional` stacks, where there are any.
fn divided<'a>(
    mut jobs: Vec<Option<StackJob<'a>>>,
    mut conditional: Vec<Option<StackJob<'a>>>,
) -> (Vec<Option<StackJob<'a>>>, Vec<Option<StackJob<'a>>>) {
    let has_feedback = |scheme: &Scheme| scheme.codec().is_some_and(|codec| codec.feedback().is_some());
    for (job, conditional) in jobs.iter_mut().zip(&mut conditional) {
        if let (Some(job), Some(conditional)) = (job, conditional) {
            job.schemes.retain(|scheme| !has_feedback(scheme));
            conditional.schemes.retain(has_feedback);
        }
    }
    (jobs, conditional)
}

/// The curve of a stack: sums of losses and energies over its matrices.
fn curve(family: &str, job: &StackJob<'_>, points: &[SchemeNoise], objective: Objective) -> RdCurve {
    let measured = || job.matrices.iter().map(|member| member.measured);
    let stacked = |one: &MatrixSensitivity| StackedEnergy { signal: one.signal, energy: one.energy };
    RdCurve {
        family: family.to_owned(),
        origin: job.matrices[0].measured.origin,
        signal: measured().map(|one| one.signal).sum(),
        energy: measured().map(|one| one.energy).sum(),
        matrices: if job.matrices.len() > 1 { measured().map(stacked).collect() } else { Vec::new() },
        points: points
            .iter()
            .map(|point| RdPoint {
                scheme: point.scheme,
                loss: point.noises.iter().zip(measured()).map(|(noise, one)| objective.loss(*noise, one)).sum(),
                sqnr_db: round2(rate_distortion::sqnr_db(point.noises.iter().copied().zip(measured()))),
                standard_error: point.standard_error,
            })
            .collect(),
    }
}
