//! Saved analyses and plans: checks that they match the source, and sizes of edited schemes.

use super::sensitivity::Sensitivity;
use crate::container::STEM;
use crate::error::{DocumentSource, Error, Result};
use crate::job::conversion::Conversion;
use crate::job::stored::StoredOutput;
use crate::schema::analysis::{Analysis, AnalyzedTensor};
use crate::schema::plan::{self, Plan};

fn stale<T>(place: &DocumentSource, reason: impl Into<String>) -> Result<T> {
    Err(Error::Stale { place: place.clone(), reason: reason.into() })
}

/// Reads a saved analysis and checks that it matches the source and its sensitivity.
pub(super) fn fitting(
    analysis: Analysis,
    place: &DocumentSource,
    conversion: &Conversion,
    sensitivity: &Sensitivity,
) -> Result<Analysis> {
    if analysis.source != conversion.id() {
        return stale(place, "it is an analysis of another checkpoint");
    }
    if analysis.settings != sensitivity.settings {
        return stale(place, "it was made with other weights, another sensitivity or other options");
    }
    Ok(analysis)
}

/// Reads a saved plan and checks that it matches the source and the sensitivity that it will be encoded with.
/// Recomputes the totals from its current schemes.
pub(super) fn recounted(
    plan: Plan,
    place: &DocumentSource,
    conversion: &Conversion,
    sensitivity: &Sensitivity,
    shard_bytes: u64,
) -> Result<Plan> {
    if plan.source != conversion.id() {
        return stale(place, "it is a plan for another checkpoint");
    }
    if plan.settings.sensitivity_sha256 != sensitivity.settings.sensitivity_sha256 {
        let reason = "it was made with other weights or another sensitivity (give the same ⟨sensitivity⟩)";
        return stale(place, reason);
    }
    recount(plan, place, conversion, shard_bytes)
}

fn recount(mut plan: Plan, place: &DocumentSource, conversion: &Conversion, shard_bytes: u64) -> Result<Plan> {
    if plan.tensors.len() != conversion.outputs.len() {
        let (listed, written) = (plan.tensors.len(), conversion.outputs.len());
        return stale(place, format!("it lists {listed} tensors, and {written} are written"));
    }
    for (planned, output) in plan.tensors.iter_mut().zip(&conversion.outputs) {
        let name = &output.target.name;
        if planned.name != *name {
            return stale(place, format!("it lists `{}` where `{name}` belongs", planned.name));
        }
        planned.bytes = match &output.candidate {
            _ if planned.scheme.is_kept() => output.kept_bytes(),
            Ok((matrix, schemes)) if schemes.contains(&planned.scheme) => planned.scheme.stored_bytes(*matrix),
            Ok(_) => {
                let reason = format!("{} does not fit it", planned.scheme);
                return Err(Error::Scheme { tensor: name.clone(), reason });
            }
            Err(kept) => return Err(Error::Scheme { tensor: name.clone(), reason: kept.to_string() }),
        };
    }
    let promised = plan.totals.clone();
    let sizes = stored(&plan, conversion, shard_bytes, STEM)?.totals(plan.source.parameters);
    plan.totals = plan::Totals {
        tensor_bytes: sizes.tensor_bytes,
        file_bytes: sizes.file_bytes,
        effective_bpw: sizes.effective_bpw,
        payload_bpw: sizes.payload_bpw,
        ..plan.totals
    };
    if plan.totals != promised || plan.schemes_sha256 != plan::schemes_digest(&plan.tensors) {
        // Budget, bound and best uniform scheme of the original plan do not apply to the edited one.
        plan.budget = None;
        plan.totals.budget_bytes = None;
        plan.totals.lower_bound = None;
        plan.totals.best_uniform = None;
        plan.warnings.push("the plan was edited: its predicted loss is that of the plan before".to_owned());
    }
    Ok(plan)
}

/// The stored tensors of `plan`, whose tensors are those of `conversion`.
pub(super) fn stored(plan: &Plan, conversion: &Conversion, shard_bytes: u64, stem: &str) -> Result<StoredOutput> {
    let described: Vec<AnalyzedTensor> =
        conversion.outputs.iter().map(|output| output.described(&conversion.checkpoint)).collect();
    let schemes = plan.tensors.iter().map(|planned| planned.scheme);
    StoredOutput::named(stem, &*conversion.format, described.iter().zip(schemes), shard_bytes)
}
