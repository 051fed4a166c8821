//! What a quantization that was stopped continues from.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::sensitivity::is_file;
use super::{AnalysisRequest, QuantizeRequest, Resources};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::job::conversion::Conversion;
use crate::job::identity::{JobIdentity, stamps};
use crate::job::staging::Staging;
use crate::option::OptionName;
use crate::schema::{Saved, Tool, text};

/// The longest time between records of finished work, in seconds.
const LONGEST_INTERVAL: f64 = 1e6;

/// The least time between records of finished work.
///
/// # Errors
/// [`Error::Option`].
pub(super) fn interval(resources: &Resources) -> Result<Duration> {
    let seconds = resources.record_seconds;
    if !(0.0..=LONGEST_INTERVAL).contains(&seconds) {
        return Err(Error::option(OptionName::RecordSeconds, seconds, format!("not between 0 and {LONGEST_INTERVAL}")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The identity of the job of `request`, whose analysis is that of `analysis`: everything that decides a byte.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn identity(
    request: &QuantizeRequest,
    analysis: &AnalysisRequest,
    conversion: &Conversion,
) -> Result<JobIdentity> {
    let digest = |saved: &Option<Saved>| saved.as_ref().map(Saved::digest).transpose();
    let of_file = |path: &Path| fs::read(path).map(|bytes| Digest::of(&bytes)).map_err(Error::io("reading", path));
    let sensitivity =
        if is_file(analysis) { of_file(&analysis.sensitivity)? } else { analysis.sensitivity.display().to_string() };
    let header = analysis.header.as_deref().map(of_file).transpose()?;
    // Paths and resources decide no byte, and a program lays a source out anew for every run.
    let mut of_analysis = value(analysis)?;
    for (option, value) in [("sensitivity", json!(sensitivity)), ("header", json!(header))] {
        of_analysis[option] = value;
    }
    for option in ["model", "resources"] {
        of_analysis.as_object_mut().and_then(|options| options.shift_remove(option));
    }
    let plan = &request.plan;
    let options = json!({
        "plan": digest(&request.saved_plan)?,
        "analysis": digest(&plan.analysis)?,
        "budget": plan.budget,
        "uniform": plan.uniform,
        "shard_bytes": plan.shard_bytes,
        "check": request.check,
        "policy": value(&plan.policy)?,
        "model": of_analysis,
    });
    let files = if analysis.layout.is_some() { Vec::new() } else { stamps(&conversion.checkpoint)? };
    Ok(JobIdentity { tool: Tool::this(), source: conversion.id(), files, request: options })
}

/// The request of a job of several parts, as JSON: without a part, and for any working directory.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn request_text(request: &QuantizeRequest) -> Result<String> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("resolving", path));
    let mut request = QuantizeRequest { part: None, ..request.clone() };
    let analysis = &mut request.plan.model;
    analysis.model = absolute(&analysis.model)?;
    if let Some(header) = &mut analysis.header {
        *header = absolute(header)?;
    }
    if is_file(analysis) {
        analysis.sensitivity = absolute(&analysis.sensitivity)?;
    }
    for saved in [&mut request.saved_plan, &mut request.plan.analysis].into_iter().flatten() {
        if let Saved::File(path) = saved {
            *path = absolute(path)?;
        }
    }
    text(&request)
}

fn value(of: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|fault| Error::Bug(fault.to_string()))
}

/// Returns `error`, which ended the job of `staging`. Deletes what the job has recorded, unless the same job may succeed with it.
pub(super) fn ended(staging: Staging, error: Error) -> Error {
    if !matches!(error.kind(), Kind::Io | Kind::Interrupted) {
        staging.discard();
    }
    error
}
