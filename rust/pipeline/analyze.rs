//! `analyze`: one pass over all weights, one over sampled rows, and a rate–distortion curve for every matrix.

use super::sensitivity::{Sensitivity, measure};
use super::{AnalysisRequest, Engine};
use crate::checkpoint::stream::Pass;
use crate::codec::Encoder;
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
        conversion.outputs.iter().map(|output| stack(output, &candidates, sensitivity)).collect();
    let stacks: Vec<&StackJob<'_>> = jobs.iter().flatten().collect();
    let sampled = |job: &&StackJob<'_>| {
        let count = job.matrices.len();
        let bytes = |member: &Member<'_>| sampled_bytes(member.matrix, request.sample_bands, count);
        job.matrices.iter().map(bytes).sum::<u64>()
    };
    pass.progress.begin(Stage::Curves, stacks.iter().map(sampled).sum());
    let encoder = Encoder { isa: pass.isa, effort: request.effort };
    let mut points = rate_distortion::curves(pass, encoder, &stacks, request.sample_bands)?.into_iter();
    let tensors = conversion.outputs.iter().zip(&jobs).map(|(output, job)| AnalyzedTensor {
        curve: job.as_ref().zip(job.as_ref().and_then(|_| points.next())).map(|(job, points)| {
            let group = conversion.format.fusion_group(&output.name);
            curve(&group, job, &points, request.objective)
        }),
        ..output.described(&conversion.checkpoint)
    });
    Ok(Analysis {
        ramrs_analysis: analysis::VERSION,
        tool: Tool::this(),
        source: conversion.id(),
        settings: sensitivity.settings.clone(),
        tensors: tensors.collect(),
        warnings: pass.progress.warnings(),
    })
}

/// The matrices of `output` with all available schemes; `None` if no scheme is available.
fn stack<'a>(
    output: &'a OutputTensor,
    candidates: &[Candidate<'_>],
    sensitivity: &'a Sensitivity,
) -> Option<StackJob<'a>> {
    let (_, schemes) = output.candidate.as_ref().ok()?;
    let member = |at: usize| {
        let Candidate { view, matrix, .. } = candidates[at];
        Member { view, matrix, measured: &sensitivity.measured[at] }
    };
    let matrices = output.matrices.clone().map(member).collect();
    Some(StackJob { name: &output.target.name, matrices, schemes: schemes.clone() })
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
