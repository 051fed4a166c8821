//! `analyze`: one pass over all weights, one over sampled rows, and the curves of every matrix.

use super::sensitivity::{Sensitivity, measure};
use super::source::Source;
use super::{AnalysisRequest, Engine};
use crate::checkpoint::stream::Pass;
use crate::document::Tool;
use crate::document::analysis::{self, Analysis};
use crate::error::Result;
use crate::math::decibels;
use crate::progress::{Progress, Stage};
use crate::quant::Encoder;
use crate::rd::{self, Objective};
use crate::scheme::Scheme;
use crate::sensitivity::Measured;

/// Analyzes the checkpoint of `request`.
///
/// # Errors
/// Those of opening and reading it.
pub fn analyze(request: &AnalysisRequest, progress: &Progress) -> Result<Analysis> {
    let source = Source::open(&request.model, &request.format, request.generic)?;
    let engine = Engine::new(&request.resources)?;
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
    let asks: Vec<rd::Ask<'_>> = source
        .candidates()
        .zip(&sensitivity.measured)
        .map(|((tensor, matrix, entry), measured)| {
            let schemes = entry.candidate.as_ref().map(|(_, schemes)| schemes.clone()).unwrap_or_default();
            rd::Ask { tensor, matrix, schemes, measured }
        })
        .collect();
    let bytes = asks.iter().map(|ask| rd::sampled_bytes(ask.matrix, request.sample_bands)).sum();
    pass.progress.begin(Stage::Curves, bytes);
    let encoder = Encoder { level: pass.level, effort: request.effort };
    let mut curves = rd::curves(pass, encoder, &asks, request.sample_bands)?.into_iter().zip(&sensitivity.measured);
    let tensors = source.written().map(|(tensor, entry)| analysis::Tensor {
        curve: entry.candidate.as_ref().ok().and_then(|_| curves.next()).map(|(points, measured)| analysis::Curve {
            family: entry.name.module.clone(),
            origin: measured.origin,
            signal: measured.signal,
            energy: measured.energy,
            points: points.iter().map(|point| recorded(point, measured, request.objective)).collect(),
        }),
        ..entry.described(tensor)
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

fn recorded(point: &rd::Point, measured: &Measured, objective: Objective) -> analysis::Point {
    analysis::Point {
        scheme: Scheme::Affine(point.scheme),
        loss: objective.loss(point.noise, measured),
        sqnr_db: hundredths(decibels(measured.signal / point.noise.weighted)),
        standard_error: point.standard_error,
    }
}

/// Rounded to two decimals: what a reader wants, and a number that prints short.
pub(super) fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
