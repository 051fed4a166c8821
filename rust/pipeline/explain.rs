//! Sentences about a plan: the limits on its size, and warnings.

use super::plan::Planner;
use crate::allocate::{self, FusionGroup, SchemeCost};
use crate::band::Matrix;
use crate::budget::size;
use crate::dtype::Float;
use crate::schema::analysis::AnalyzedTensor;
use crate::schema::plan::{PlannedTensor, Totals};

/// Bits per code below which the sum of the matrices' losses underestimates their combined loss.
const ADDITIVE_BITS: f64 = 3.0;

/// Explains the size of the smallest plan, with headers of `header_bytes` bytes.
pub(super) fn explain_minimum(planner: &Planner<'_>, header_bytes: u64) -> String {
    let matrices = allocate::minimum(&planner.groups);
    let floored = match planner.floored {
        0 => String::new(),
        floored => format!(
            " ({floored} of them are denied 2 bits by the floor on their signal-to-noise ratio; ⟨min_bits=2⟩ lifts it)"
        ),
    };
    let is_kept_by_rule =
        |group: &&FusionGroup| matches!(group.points[..], [SchemeCost { scheme, .. }] if scheme.is_kept());
    let kept_by_rule_bytes: u64 =
        planner.groups.iter().filter(is_kept_by_rule).map(|group| group.points[0].bytes).sum();
    let kept_by_rule = match planner.groups.iter().filter(is_kept_by_rule).count() {
        0 => String::new(),
        count => format!(" ({count} of them, {}, are kept by your rules)", size(kept_by_rule_bytes)),
    };
    let kept: Vec<&AnalyzedTensor> = planner.analysis.tensors.iter().filter(|tensor| tensor.curve.is_none()).collect();
    // The first of several largest tensors: `max_by_key` returns the last.
    let largest = kept.iter().rev().max_by_key(|tensor| tensor.bytes).map_or_else(String::new, |tensor| {
        let why = tensor.kept.as_deref().unwrap_or_default();
        format!(" (the largest, `{}`, {}: {why})", tensor.name, size(tensor.bytes))
    });
    let headers = if header_bytes > 0 { format!(", and headers {}", size(header_bytes)) } else { String::new() };
    format!(
        "{} matrices at their smallest take {}{floored}{kept_by_rule}, {} tensors that are kept as they are {}{largest}{headers}",
        planner.groups.len(),
        size(matrices),
        kept.len(),
        size(planner.kept_bytes)
    )
}

/// The warnings of a plan, after those of the analysis. They are stored in the plan file, so their text is fixed and
/// spells options as on the command line.
pub(super) fn warnings(planner: &Planner<'_>, planned: &[PlannedTensor], totals: &Totals) -> Vec<String> {
    let tensors = || planner.analysis.tensors.iter().zip(planned);
    let quantized = || tensors().filter(|(_, planned)| !planned.scheme.is_kept());
    let mut warnings = planner.analysis.warnings.clone();
    warnings.extend(bits(planner, quantized()));
    warnings.extend(wide_scales(quantized(), totals.file_bytes));
    let mut twice = quantized().filter(|(tensor, _)| tensor.packed.is_some());
    if let Some((first, _)) = twice.next() {
        warnings.push(format!(
            "{} tensors that the release stores in 4 bits are rounded a second time (first `{}`): a model that was \
             trained in its grid may lose more than predicted; with more bytes they are passed on as they are",
            1 + twice.count(),
            first.name
        ));
    }
    if totals.best_uniform.as_ref().is_some_and(|uniform| uniform.is_the_plan) {
        warnings.push("no mixture is better than one scheme for all matrices: that is the plan".to_owned());
    }
    let uncertain = quantized()
        .filter_map(|(tensor, planned)| Some((tensor.name.as_str(), tensor.point(planned.scheme)?.standard_error)));
    if let Some((tensor, error)) = uncertain.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, error)| *error > 0.05) {
        warnings.push(format!(
            "the loss of `{tensor}` is known to {:.0} % only; --sample-bands 0 measures all rows",
            100.0 * error
        ));
    }
    warnings
}

/// Warns if nothing is quantized, or if the average code is short.
fn bits<'a>(
    planner: &Planner<'_>,
    quantized: impl Iterator<Item = (&'a AnalyzedTensor, &'a PlannedTensor)>,
) -> Option<String> {
    let (mut codes, mut weights) = (0.0, 0.0);
    for (tensor, planned) in quantized {
        if let Some(bits) = planned.scheme.code_bits() {
            let elements = tensor.shape.iter().product::<u64>() as f64;
            codes += elements * bits.per_weight();
            weights += elements;
        }
    }
    if weights == 0.0 && !planner.groups.is_empty() {
        Some("nothing is quantized: the budget leaves room for everything at the source's precision".to_owned())
    } else if weights == 0.0 {
        Some("nothing can be quantized: no matrix has rows that divide into groups".to_owned())
    } else if codes / weights < ADDITIVE_BITS {
        Some(format!(
            "the codes have {:.2} bits on average: below 3 bits losses add up to more than their sum, and the \
             predicted loss is too low; measure the result",
            codes / weights
        ))
    } else {
        None
    }
}

/// The share of the files from which on a saving is mentioned, as its inverse.
const WORTH_A_WARNING: u64 = 1_000;

/// Warns about scales and biases in F32, and states the bytes that a cast of the source would save.
fn wide_scales<'a>(
    quantized: impl Iterator<Item = (&'a AnalyzedTensor, &'a PlannedTensor)>,
    file_bytes: u64,
) -> Option<String> {
    let saved = |(tensor, planned): (&AnalyzedTensor, &PlannedTensor)| {
        let matrix = tensor.matrix().filter(|matrix| matrix.float == Float::F32)?;
        let bytes = |float| planned.scheme.stored_bytes(Matrix { float, ..matrix });
        Some(bytes(Float::F32) - bytes(Float::BF16))
    };
    let saved: u64 = quantized.filter_map(saved).sum();
    (saved > file_bytes / WORTH_A_WARNING).then(|| {
        format!(
            "the source is in F32, and so are scales and biases: cast to BF16 or F16 first, it would take {} less",
            size(saved)
        )
    })
}
