//! `analyze`: one pass over all weights, one over sampled rows, and the curves of every matrix.

use super::sensitivity::{Sensitivity, measure};
use super::source::Source;
use super::{AnalysisRequest, Engine};
use crate::checkpoint::stream::Pass;
use crate::codec::encoder::Encoder;
use crate::error::Result;
use crate::progress::{Progress, Stage};
use crate::rate_distortion::{self, Objective};
use crate::schema::Tool;
use crate::schema::analysis::{self, Analysis};
use crate::scheme::Scheme;
use crate::sensitivity::{Candidate, MatrixSensitivity};

/// Analyzes the checkpoint of `request`.
///
/// # Errors
/// Those of opening and reading it.
pub fn analyze(request: &AnalysisRequest, progress: &Progress) -> Result<Analysis> {
    let source = Source::open(&request.model, &request.format, request.generic)?;
    source.check(request.strict, None, |warning| progress.warn(warning))?;
    let engine = Engine::new(&request.resources)?;
    engine.check_memory(&source, request)?;
    let pass = engine.pass(&source.checkpoint, progress);
    let sensitivity = measure(pass, &source, request)?;
    curves(pass, &source, request, &sensitivity)
}

/// Encodes sampled rows of every candidate in every scheme.
pub(super) fn curves(
    pass: Pass<'_>,
    source: &Source,
    request: &AnalysisRequest,
    sensitivity: &Sensitivity,
) -> Result<Analysis> {
    let mut measured = sensitivity.measured.iter();
    let mut asks: Vec<rate_distortion::Ask<'_>> = Vec::new();
    for stack in source.candidates().chunk_by(|a, b| a.target == b.target) {
        let entry = &source.entries[stack[0].target];
        let member = |(candidate, measured): (&Candidate<'_>, _)| {
            let Candidate { view, matrix, .. } = *candidate;
            rate_distortion::Member { view, matrix, measured }
        };
        asks.push(rate_distortion::Ask {
            name: &entry.target.name,
            matrices: stack.iter().zip(measured.by_ref()).map(member).collect(),
            schemes: entry.candidate.as_ref().map(|(_, schemes)| schemes.clone()).unwrap_or_default(),
        });
    }
    let sampled = |ask: &rate_distortion::Ask<'_>| {
        let count = ask.matrices.len();
        ask.matrices
            .iter()
            .map(|member| rate_distortion::sampled_bytes(member.matrix, request.sample_bands, count))
            .sum::<u64>()
    };
    pass.progress.begin(Stage::Curves, asks.iter().map(sampled).sum());
    let encoder = Encoder { isa: pass.isa, effort: request.effort };
    let points = rate_distortion::curves(pass, encoder, &asks, request.sample_bands)?;
    let mut curves = asks.iter().zip(&points);
    let tensors = source.entries.iter().map(|entry| analysis::Tensor {
        curve: entry
            .candidate
            .as_ref()
            .ok()
            .and_then(|_| curves.next())
            .map(|(ask, points)| curve(&entry.name.module, ask, points, request.objective)),
        ..entry.described(&source.checkpoint)
    });
    Ok(Analysis {
        ramrs_analysis: analysis::VERSION,
        tool: Tool::this(),
        source: source.id(),
        settings: sensitivity.settings.clone(),
        tensors: tensors.collect(),
        warnings: pass.progress.warnings(),
    })
}

/// What `points` say of the matrices of `ask` together: their losses and energies add up.
fn curve(
    family: &str,
    ask: &rate_distortion::Ask<'_>,
    points: &[rate_distortion::Point],
    objective: Objective,
) -> analysis::Curve {
    let measured = || ask.matrices.iter().map(|member| member.measured);
    let stacked = |one: &MatrixSensitivity| analysis::Stacked { signal: one.signal, energy: one.energy };
    analysis::Curve {
        family: family.to_owned(),
        origin: ask.matrices[0].measured.origin,
        signal: measured().map(|one| one.signal).sum(),
        energy: measured().map(|one| one.energy).sum(),
        matrices: if ask.matrices.len() > 1 { measured().map(stacked).collect() } else { Vec::new() },
        points: points
            .iter()
            .map(|point| analysis::Point {
                scheme: Scheme::Affine(point.scheme),
                loss: point.noises.iter().zip(measured()).map(|(noise, one)| objective.loss(*noise, one)).sum(),
                sqnr_db: hundredths(rate_distortion::sqnr_db(point.noises.iter().copied().zip(measured()))),
                standard_error: point.standard_error,
            })
            .collect(),
    }
}

/// Rounded to two decimals: what a reader wants, and a number that prints short.
pub(super) fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
