//! The tensors that `mlx-lm` reads, from those of a checkpoint: applies the table of [families](crate::arch::families).

use serde_json::Value;

use crate::arch::families::{Becomes, ModelFamily};
use crate::arch::pattern::{PatternMatch, matches};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::arrange::{self, DropReasons, Rules};
use crate::format::readable::{check_names, model_family, weight_name};
use crate::format::{Arrangement, Disposition, Target, foreign};
use crate::name::{Name, Role};

/// The tensors that `mlx-lm` reads, and what becomes of each tensor of `checkpoint`.
pub(super) fn arrange(checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
    let family = model_family(checkpoint, generic, "MLX")?;
    if let Some(reason) = family.and_then(|_| unlike_mlx(checkpoint)) {
        let model_type = checkpoint.model_type().unwrap_or_default().to_owned();
        return Err(Error::UnknownModel { model_type, format: "MLX", reason: Some(reason) });
    }
    match family {
        Some(family) if !checkpoint.is_laid_out_for_mlx() => arrange::arrange(checkpoint, family, &MlxRules),
        _ => as_named(checkpoint, family),
    }
}

/// The tensors under their own names: those of a generic output, or of a checkpoint that is laid out for MLX already.
fn as_named(checkpoint: &Checkpoint, family: Option<&'static ModelFamily>) -> Result<Arrangement> {
    let mut arrangement = Arrangement::default();
    for (at, tensor) in checkpoint.tensors.iter().enumerate() {
        let left_out = family.and_then(|_| arrange::left_out(checkpoint, tensor, &REASONS));
        if left_out.is_none() {
            let name = if family.is_some() { tensor.weight_name().to_owned() } else { weight_name(tensor) };
            let target = as_stack(Target { name, ..Target::same(checkpoint, at) });
            arrangement.targets.push(finished(target, family));
        }
        arrangement.dispositions.push(left_out.unwrap_or(Disposition::Write));
    }
    check_names(checkpoint, &arrangement, MlxRules.reader())?;
    Ok(arrangement)
}

/// Why `mlx-lm` has no model of this configuration, though it has one of the type.
fn unlike_mlx(checkpoint: &Checkpoint) -> Option<&'static str> {
    let size = |key: &str| checkpoint.config_size(key);
    let is_four_widths = |inner: &str, width: &str| {
        let (inner, width) = (size(inner), size(width));
        inner.zip(width).is_none_or(|(inner, width)| Some(inner) == width.checked_mul(4))
    };
    let listed = |key: &str| checkpoint.config_value(key).and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    match checkpoint.model_type()? {
        "qwen2_moe" if listed("mlp_only_layers") || size("decoder_sparse_step").is_some_and(|step| step != 1) => {
            Some("mlx-lm has experts in all of its layers")
        }
        "gpt2" if !is_four_widths("n_inner", "n_embd") => Some("mlx-lm's MLP has four times the width (n_inner)"),
        "gpt_neox" if !is_four_widths("intermediate_size", "hidden_size") => {
            Some("mlx-lm's MLP has four times the width (intermediate_size)")
        }
        _ => None,
    }
}

const REASONS: DropReasons = DropReasons {
    tower: "mlx-lm reads the language model only",
    several_tokens: "mlx-lm does not predict several tokens at once",
    beyond_layers: "beyond the model's layers: mlx-lm does not predict several tokens at once",
    buffer: "mlx-lm computes it itself",
};

struct MlxRules;

impl Rules for MlxRules {
    fn reader(&self) -> &'static str {
        "mlx-lm"
    }

    fn reasons(&self) -> &'static DropReasons {
        &REASONS
    }

    fn stored<'n>(&self, family: &'static ModelFamily, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        family.stored_for_mlx(name).or_else(|| family.stored(name))
    }

    fn name(&self, family: &'static ModelFamily, used: &str) -> Option<String> {
        Some(family.mlx_name(used))
    }

    fn adds_one(&self, family: &'static ModelFamily) -> bool {
        family.mlx.plus_one
    }

    fn formed(&self, family: &'static ModelFamily, target: Target) -> std::result::Result<Target, String> {
        Ok(finished(target, Some(family)))
    }
}

/// `target`, marked if `mlx-lm` cannot read it quantized.
fn finished(target: Target, family: Option<&ModelFamily>) -> Target {
    let raw = family.is_some_and(|family| family.mlx.raw.iter().any(|raw| matches(raw, &target.name).is_some()));
    Target { unquantizable: raw.then_some("mlx-lm holds it outside of any module"), ..target }
}

/// `target` as a stack of matrices, if it has three dimensions and the role of a linear layer.
fn as_stack(mut target: Target) -> Target {
    use Role::{Down, Gate, GateUp, Key, Output, Query, QueryKeyValue, Up, Value};
    let is_linear = [Query, Key, Value, QueryKeyValue, Output, Gate, Up, GateUp, Down];
    if is_linear.contains(&Name::parse(&target.name).role) {
        foreign::as_stack(&mut target);
    }
    target
}
