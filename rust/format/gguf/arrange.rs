//! The tensors that llama.cpp reads: under its names, with experts stacked, the channels of heads in its order, and norms,
//! vectors and routers in F32.

use crate::arch::conventions::Conventions;
use crate::arch::families::ModelFamily;
use crate::arch::families::gguf::{GgufModel, of_type};
use crate::checkpoint::{Checkpoint, View};
use crate::container::KeyValues;
use crate::container::gguf::value::{Value, ValueRef};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::format::arrange::{self, DropReasons, Rules};
use crate::format::readable::model_family;
use crate::format::{Arrangement, Disposition, Target, foreign};
use crate::name::{Name, Role};

/// The longest name of a tensor, in bytes: ggml has 64, with the zero at the end.
const MAX_NAME_BYTES: usize = 63;

/// The tensors that llama.cpp reads, and what becomes of each tensor of `checkpoint`. `tokens` is the number of tokens that the
/// output's tokenizer knows, if that is known.
///
/// # Errors
/// [`Error::UnknownModel`], [`Error::Layout`], [`Error::Mismatch`] for a name that llama.cpp does not load.
pub(super) fn arrange(checkpoint: &Checkpoint, tokens: Option<u64>) -> Result<Arrangement> {
    let arrangement = if checkpoint.is_gguf() { as_stored(checkpoint) } else { of_release(checkpoint, tokens)? };
    let is_long = |target: &&Target| target.name.len() > MAX_NAME_BYTES;
    match arrangement.targets.iter().find(is_long) {
        None => Ok(arrangement),
        Some(Target { name, views, .. }) => {
            let of_view = |view: &View| checkpoint.file_of(&checkpoint.tensors[view.tensor]).to_owned();
            let file = views.first().map_or_else(|| checkpoint.dir.clone(), of_view);
            let reason = format!(
                "its name has {} bytes, and llama.cpp loads no file with a name of more than {MAX_NAME_BYTES}",
                name.len()
            );
            let hint = "rename the tensor with the program that wrote the file".to_owned();
            Err(Error::Mismatch { file, tensor: name.clone(), reason, hint })
        }
    }
}

/// The tensors for a release, and what becomes of its own.
fn of_release(checkpoint: &Checkpoint, tokens: Option<u64>) -> Result<Arrangement> {
    let unknown = |model_type: &str, reason| Error::UnknownModel {
        model_type: model_type.to_owned(),
        format: "GGUF",
        reason: Some(reason),
    };
    let model_type = checkpoint.model_type().unwrap_or_default();
    let Some(family) = model_family(checkpoint, false, "GGUF")? else {
        return Err(unknown(model_type, "its family is not known"));
    };
    let Some(model) = of_type(model_type) else {
        let reason = "its names in llama.cpp are not known here: convert it with `python convert_hf_to_gguf.py MODEL --outtype \
                      bf16`, then quantize the GGUF file that this writes";
        return Err(unknown(model_type, reason));
    };
    let size = |key: &str| checkpoint.config_size(key);
    let queries = size("num_attention_heads").unwrap_or(0);
    let heads = [queries, size("num_key_value_heads").unwrap_or(queries)];
    let rules = GgufRules { model, heads, tokens };
    let mut arrangement = arrange::arrange(checkpoint, family, &rules)?;
    let factors = Conventions::of(checkpoint).map(|conventions| conventions.rope.factors(rules.head_size(checkpoint)));
    for (name, values) in factors.unwrap_or_default() {
        arrangement.targets.push(Target::of_values(name, values));
    }
    Ok(arrangement)
}

/// The tensors of a GGUF file under their own names.
fn as_stored(checkpoint: &Checkpoint) -> Arrangement {
    let mut arrangement = Arrangement::default();
    for (at, tensor) in checkpoint.tensors.iter().enumerate() {
        let name = checkpoint.parts[tensor.part].stored_name().to_owned();
        let mut target = Target { name, ..Target::same(checkpoint, at) };
        if is_stack(&target.name) {
            foreign::as_stack(&mut target);
        }
        arrangement.targets.push(kept_in_full(target));
        arrangement.dispositions.push(Disposition::Write);
    }
    arrangement
}

/// Whether the tensor `name` is a stack of experts.
fn is_stack(name: &str) -> bool {
    Name::parse(name).module.ends_with("_exps")
}

/// `target`, marked if llama.cpp does not read it quantized.
fn kept_in_full(target: Target) -> Target {
    let is_router = Name::parse(&target.name).role == Role::Router;
    Target { unquantizable: is_router.then_some("llama.cpp keeps routers in F32"), ..target }
}

const REASONS: DropReasons = DropReasons {
    tower: "llama.cpp reads the language model from this file only",
    several_tokens: "heads that predict several tokens at once are not written",
    beyond_layers: "beyond the model's layers: it predicts several tokens at once",
    buffer: "llama.cpp computes it itself",
};

struct GgufRules {
    model: &'static GgufModel,
    /// Heads of queries, and of keys.
    heads: [u64; 2],
    /// Tokens that the tokenizer knows.
    tokens: Option<u64>,
}

impl GgufRules {
    /// Channels of a head.
    fn head_size(&self, checkpoint: &Checkpoint) -> usize {
        let size = |key: &str| checkpoint.config_size(key);
        let share = size("hidden_size").and_then(|width| width.checked_div(self.heads[0]));
        size("head_dim").or(share).map_or(0, |size| size as usize)
    }
}

impl Rules for GgufRules {
    fn reader(&self) -> &'static str {
        "llama.cpp"
    }

    fn reasons(&self) -> &'static DropReasons {
        &REASONS
    }

    fn name(&self, _family: &'static ModelFamily, used: &str) -> Option<String> {
        self.model.name(used)
    }

    fn adds_one(&self, _family: &'static ModelFamily) -> bool {
        false
    }

    fn formed(&self, _family: &'static ModelFamily, target: Target) -> std::result::Result<Target, String> {
        let name = Name::parse(&target.name);
        let target = match self.tokens.filter(|_| self.model.cuts_embedding && name.role == Role::Embedding) {
            Some(tokens) => with_rows(target, tokens),
            None => target,
        };
        let heads = match name.role {
            Role::Query => Some(self.heads[0]),
            Role::Key => Some(self.heads[1]),
            Role::QueryKeyValue if self.model.has_adjacent_pairs => {
                return Err("queries and keys must be separate for llama.cpp to rotate them".to_owned());
            }
            _ => None,
        };
        let target = match heads.filter(|_| self.model.has_adjacent_pairs) {
            Some(heads) => with_adjacent_pairs(target, heads)?,
            None => target,
        };
        let is_vector = target.shape.iter().filter(|length| **length > 1).count() <= 1 && !target.stacked;
        let is_small = is_vector || matches!(name.role, Role::Norm | Role::Router | Role::Parameter) || !name.is_weight;
        let is_float = Float::of(target.dtype).is_some();
        let dtype = if is_small && is_float { Dtype::F32 } else { target.dtype };
        Ok(kept_in_full(Target { dtype, ..target }))
    }
}

/// `target` without the rows after the first `rows`.
fn with_rows(mut target: Target, rows: u64) -> Target {
    if let ([view], [all, _]) = (target.views.as_mut_slice(), target.shape.as_mut_slice())
        && rows < *all
    {
        (view.rows, *all) = (rows, rows);
    }
    target
}

/// Adds the key-values that llama.cpp's converter computes when it reads tensors, and that a header without tensors lacks.
pub(super) fn add_unstated(checkpoint: &Checkpoint, key_values: &mut KeyValues) {
    let Some(architecture) = key_values.get("general.architecture").and_then(ValueRef::text).map(str::to_owned) else {
        return;
    };
    let factor = Conventions::of(checkpoint).ok().and_then(|conventions| conventions.rope.attention_of_factors());
    let key = format!("{architecture}.rope.scaling.attn_factor");
    if let Some(factor) = factor.filter(|_| key_values.get(&key).is_none()) {
        key_values.set(&key, &Value::F32(factor as f32));
    }
}

/// `target`, a weight or a bias of queries or keys, with the halves of each of its `heads` alternating.
fn with_adjacent_pairs(target: Target, heads: u64) -> std::result::Result<Target, String> {
    let [view] = target.views.as_slice() else { return Err("it is not one matrix".to_owned()) };
    // A vector has one element per row.
    let view =
        if target.shape.len() == 1 { View { rows: view.elements(), cols: 1, row_stride: 1, ..*view } } else { *view };
    match view.rows.checked_div(heads) {
        Some(size) if size.is_multiple_of(2) && size > 0 && size * heads == view.rows => {
            Ok(Target { views: vec![view.with_adjacent_pairs(size)], ..target })
        }
        _ => Err(format!("has {} rows, which are not {heads} heads of an even size", view.rows)),
    }
}
