//! `analyze`: one pass over all weights, one over sampled rows, and a rate–distortion curve for every matrix.

use super::sensitivity::{Sensitivity, measure};
use super::{AnalysisRequest, Engine};
use crate::checkpoint::stream::Pass;
use crate::codec::{Encoder, Scheme};
use crate::error::Result;
use crate::job::conversion::{Conversion, OutputTensor};
use crate::math::round2;
use crate::progress::{Progress, Stage};
use crate::rate_distortion::{self, Member, Objective, SchemeNoise, StackJob, sampled_bytes};
use crate::schema::Tool;
use crate::schema::analysis::{self, Analysis, AnalyzedTensor, RdCurve, RdPoint, StackedEnergy};
use crate::sensitivity::{Candidate, MatrixSensitivity};

/// Analyzes the checkpoint of `request`.
///
/// # Errors
/// The errors of opening and reading the checkpoint.
pub fn analyze(request: &AnalysisRequest, progress: &Progress) -> Result<Analysis> {
    let conversion = request.open(request.open_format()?)?;
    conversion.check(request.strict, None, |warning| progress.warn(warning))?;
    let engine = Engine::new(&request.resources)?;
    engine.check_memory(&conversion, request)?;
    let pass = engine.pass(&conversion.checkpoint, progress);
    let sensitivity = measure(pass, &conversion, request)?;
    curves(pass, &conversion, request, &sensitivity)
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
    let sampled = |job: &&StackJob<'_>| {
        let count = job.matrices.len();
        let bytes = |member: &Member<'_>| sampled_bytes(member.matrix, request.sample_bands, count);
        job.matrices.iter().map(bytes).sum::<u64>()
    };
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
