//! `analyze`: one pass over all weights, one over sampled rows, and the curves of every matrix.

use std::path::Path;
use std::sync::Arc;

use super::source::Source;
use super::{AnalysisRequest, Engine};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, Tensor};
use crate::digest::Digest;
use crate::document::analysis::{self, Analysis};
use crate::document::{Settings, Tool};
use crate::error::Result;
use crate::math::decibels;
use crate::progress::{Progress, Stage};
use crate::quant::Encoder;
use crate::rd::{self, Objective};
use crate::scheme::Scheme;
use crate::sensitivity::file::SensitivityFile;
use crate::sensitivity::{Gain, Measured, Origin, Vectors, prior, weights};
use crate::stats::{self, Ask};

/// The sensitivity of all candidates of a source, in their order.
pub(super) struct Sensitivity {
    pub measured: Vec<Measured>,
    pub settings: Settings,
}

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

/// Measures the candidates of `source`, and gives each its sensitivity.
pub(super) fn measure(pass: Pass<'_>, source: &Source, request: &AnalysisRequest) -> Result<Sensitivity> {
    let matrices: Vec<(&Tensor, Matrix)> = source.candidates().map(|(tensor, matrix, _)| (tensor, matrix)).collect();
    pass.progress.begin(Stage::Measure, matrices.iter().map(|(tensor, _)| tensor.bytes).sum());
    let (label, measured) = match (request.objective, &request.sensitivity) {
        (Objective::Mse | Objective::Mint, _) => ("none", unweighted(pass, &matrices)?),
        (Objective::Output, None) => ("weights", weights::derive(pass, &matrices, request.prior)?),
        (Objective::Output, Some(path)) => ("file", from_file(pass, &matrices, path, request)?),
    };
    let settings = Settings {
        format: source.format.name().to_owned(),
        generic: source.generic,
        effort: request.effort,
        objective: request.objective,
        sensitivity: label.to_owned(),
        sensitivity_sha256: digest(&matrices, &measured),
        prior: request.prior,
        prior_version: prior::VERSION,
    };
    Ok(Sensitivity { measured, settings })
}

fn from_file(
    pass: Pass<'_>,
    matrices: &[(&Tensor, Matrix)],
    path: &Path,
    request: &AnalysisRequest,
) -> Result<Vec<Measured>> {
    SensitivityFile::open(path)?.measure(pass, matrices, request.prior)
}

/// All weights alike: `½ · 2 · 1 · Δw²` is the squared error.
fn unweighted(pass: Pass<'_>, matrices: &[(&Tensor, Matrix)]) -> Result<Vec<Measured>> {
    let ones: Vec<Arc<[f32]>> = matrices.iter().map(|(_, matrix)| vec![1.0; matrix.cols as usize].into()).collect();
    let asks: Vec<_> = matrices.iter().zip(&ones).map(|(&(tensor, matrix), k)| Ask { tensor, matrix, k }).collect();
    let energies = stats::energies(pass, &asks)?;
    let measured = |(k, energy): (Arc<[f32]>, stats::Energy)| Measured {
        vectors: Vectors { k, r: Gain::Same(2.0) },
        signal: energy.plain,
        energy: energy.plain,
        origin: Origin::Unweighted,
    };
    Ok(ones.into_iter().zip(energies).map(measured).collect())
}

/// Digest of all vectors.
fn digest(matrices: &[(&Tensor, Matrix)], measured: &[Measured]) -> String {
    let mut digest = Digest::default();
    for ((tensor, _), measured) in matrices.iter().zip(measured) {
        digest.text(&tensor.name);
        digest.update(bytemuck::cast_slice(&measured.vectors.k));
        match &measured.vectors.r {
            Gain::Same(gain) => digest.update(&gain.to_le_bytes()),
            Gain::Each(gains) => digest.update(bytemuck::cast_slice(gains)),
        }
    }
    digest.finish()
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
