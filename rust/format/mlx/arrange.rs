//! The tensors that `mlx-lm` reads, from those of a checkpoint: applies the table of [families](crate::arch::families).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::arch::families::{Becomes, ModelFamily, Transform};
use crate::arch::pattern::matches;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::readable::{check_names, is_beyond_layers, matrices, model_family, tied_head, weight_name};
use crate::format::{Arrangement, Disposition, Target, foreign};
use crate::name::{Name, Role};

/// The tensors that `mlx-lm` reads, and what becomes of each tensor of `checkpoint`.
pub(super) fn arrange(checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
    let family = model_family(checkpoint, generic, "MLX")?;
    if let Some(reason) = family.and_then(|_| unlike_mlx(checkpoint)) {
        let model_type = checkpoint.model_type().unwrap_or_default().to_owned();
        return Err(Error::UnknownModel { model_type, format: "MLX", reason: Some(reason) });
    }
    let mut arranging = Arranging { checkpoint, family, targets: Vec::new(), stacks: BTreeMap::new() };
    let mut dispositions = Vec::with_capacity(checkpoint.tensors.len());
    for at in 0..checkpoint.tensors.len() {
        dispositions.push(arranging.tensor(at)?);
    }
    let arrangement = Arrangement { targets: arranging.finish()?, dispositions };
    check_names(checkpoint, &arrangement, "mlx-lm")?;
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

/// A stack of experts under construction: its target, and the matrix of each expert so far.
struct Stack {
    target: usize,
    matrices: BTreeMap<usize, View>,
}

struct Arranging<'a> {
    checkpoint: &'a Checkpoint,
    family: Option<&'static ModelFamily>,
    targets: Vec<Target>,
    stacks: BTreeMap<String, Stack>,
}

/// A tensor of the output, and how it is made of one of the source.
#[derive(Debug, PartialEq)]
struct UsedAs {
    name: String,
    transform: Transform,
    /// Number of the expert that it is.
    expert: Option<usize>,
}

/// What `mlx-lm` uses the tensor `name` of a release as, or why it does not use it.
fn uses(family: &ModelFamily, name: &str) -> std::result::Result<Vec<UsedAs>, &'static str> {
    let column = family.mlx;
    let Some((becomes, found)) = family.stored_for_mlx(name).or_else(|| family.stored(name)) else {
        return Ok(vec![UsedAs { name: family.mlx_name(name), transform: Transform::Same, expert: None }]);
    };
    let parts = match becomes {
        Becomes::Used(parts) => parts,
        Becomes::Buffer => return Err("mlx-lm computes it itself"),
        Becomes::TiedHead => return Err("the embedding is the head"),
    };
    let of = |&(pattern, transform): &(&str, Transform)| {
        let name = family.mlx_name(&pattern.replacen('*', found.beginning, 1));
        let transform = if transform == Transform::PlusOne && column.plus_one { Transform::Same } else { transform };
        UsedAs { name, transform, expert: found.number }
    };
    Ok(parts.iter().map(of).collect())
}

impl Arranging<'_> {
    /// Adds the targets of tensor `at`, and returns what becomes of it.
    fn tensor(&mut self, at: usize) -> Result<Disposition> {
        let tensor = &self.checkpoint.tensors[at];
        let name = tensor.weight_name();
        let Some(family) = self.family else {
            let name = weight_name(tensor);
            self.targets.push(as_stack(Target { name, ..Target::same(self.checkpoint, at) }));
            return Ok(Disposition::Write);
        };
        if let Some(disposition) = self.drop_or_tie(tensor) {
            return Ok(disposition);
        }
        if self.checkpoint.is_laid_out_for_mlx() {
            // Already converted for MLX; do not apply the rules twice.
            let same = Target { name: name.to_owned(), ..Target::same(self.checkpoint, at) };
            self.targets.push(self.finished(as_stack(same)));
            return Ok(Disposition::Write);
        }
        match uses(family, name) {
            Err(reason) => Ok(Disposition::Drop(reason)),
            Ok(uses) => {
                uses.into_iter().try_for_each(|one| self.add(at, one))?;
                Ok(Disposition::Write)
            }
        }
    }

    /// What becomes of tensors that are left out in all families: other towers, extra layers, tied heads.
    fn drop_or_tie(&self, tensor: &Tensor) -> Option<Disposition> {
        let Name { role, layer, .. } = Name::parse(&tensor.name);
        if let Some(why) = tensor.unneeded {
            return Some(Disposition::Drop(why));
        }
        match role {
            Role::Tower => Some(Disposition::Drop("mlx-lm reads the language model only")),
            Role::MultiToken => Some(Disposition::Drop("mlx-lm does not predict several tokens at once")),
            _ if is_beyond_layers(self.checkpoint, layer) => {
                Some(Disposition::Drop("beyond the model's layers: mlx-lm does not predict several tokens at once"))
            }
            _ => tied_head(self.checkpoint, tensor),
        }
    }

    /// Adds the target that tensor `at` is used as, or the matrix of a stack that it is.
    fn add(&mut self, at: usize, UsedAs { name, transform, expert }: UsedAs) -> Result<()> {
        let checkpoint = self.checkpoint;
        let tensor = &checkpoint.tensors[at];
        let misfit = |reason: &str| self.misfit(tensor, format!("is {:?}: {reason}", tensor.shape));
        if transform != Transform::Same && (Float::of(tensor.dtype).is_none() || tensor.elements() == 0) {
            return Err(misfit(&format!("{} without elements, or not of a type that is computed with", tensor.dtype)));
        }
        let same = Target { name, ..Target::same(checkpoint, at) };
        let whole = same.views[0];
        let target = match transform {
            Transform::Same => same,
            Transform::PlusOne => Target { plus_one: true, ..same },
            Transform::Expert => return self.expert(at, &same, expert.unwrap_or_default()),
            Transform::SwappedAxes => {
                let &[channels, inputs, taps] = same.shape.as_slice() else {
                    return Err(misfit("a convolution has three dimensions"));
                };
                // With one input channel, exchanging the axes moves no element.
                let channel = |at| whole.matrix_of(at, channels).transposed();
                let views = if inputs == 1 { same.views } else { (0..channels).map(channel).collect() };
                Target { shape: vec![channels, taps, inputs], views, ..same }
            }
            Transform::Interleaved(first) => {
                let width = whole.cols / 2;
                let view = View { offset: first, cols: width, row_stride: whole.cols, col_stride: 2, ..whole };
                let mut shape = same.shape.clone();
                if !whole.cols.is_multiple_of(2) || shape.pop().is_none() {
                    return Err(misfit("it does not divide into two"));
                }
                shape.push(width);
                Target { shape, views: vec![view], ..same }
            }
            Transform::Matrices { input_major, outputs } => {
                let (count, rows) = match *same.shape.as_slice() {
                    [count, rows, _] => (Some(count), rows),
                    [rows, _] => (None, rows),
                    _ => return Err(misfit("it is no matrix, and no stack of them")),
                };
                let whole_stack = (count.unwrap_or(1), rows);
                let views = matrices(whole, whole_stack, (input_major, outputs)).map_err(misfit)?;
                let matrix = views.first().map_or([0, 0], |view| [view.rows, view.cols]);
                Target { shape: count.into_iter().chain(matrix).collect(), views, stacked: count.is_some(), ..same }
            }
            Transform::LatentKeys | Transform::LatentValues => self.latent(tensor, same, transform)?,
        };
        self.targets.push(self.finished(target));
        Ok(())
    }

    /// The keys or values of `target`, head by head.
    fn latent(&self, tensor: &Tensor, target: Target, transform: Transform) -> Result<Target> {
        let size = |key: &str| self.checkpoint.config_size(key);
        let sizes = (size("num_attention_heads"), size("qk_nope_head_dim"), size("v_head_dim"));
        let (Some(heads), Some(keys), Some(values)) = sizes else {
            let reason = "config.json does not say num_attention_heads, qk_nope_head_dim and v_head_dim".to_owned();
            return Err(self.misfit(tensor, reason));
        };
        let whole = target.views[0];
        if heads == 0 || heads.checked_mul(keys.saturating_add(values)) != Some(whole.rows) || tensor.shape.len() != 2 {
            let expected = format!("is {:?}, and should have {heads} heads of {keys} + {values} rows", tensor.shape);
            return Err(self.misfit(tensor, expected));
        }
        let head = |at: u64| {
            let head = whole.matrix_of(at, heads);
            if transform == Transform::LatentKeys {
                head.rows(0, 1, keys).transposed()
            } else {
                head.rows(keys, 1, values)
            }
        };
        let views: Vec<View> = (0..heads).map(head).collect();
        let shape = vec![heads, views[0].rows, views[0].cols];
        Ok(Target { shape, views, stacked: true, ..target })
    }

    /// Adds `one` as matrix `number` of its stack.
    fn expert(&mut self, at: usize, one: &Target, number: usize) -> Result<()> {
        let tensor = &self.checkpoint.tensors[at];
        let target = if let Some(stack) = self.stacks.get(&one.name) {
            stack.target
        } else {
            self.stacks.insert(one.name.clone(), Stack { target: self.targets.len(), matrices: BTreeMap::new() });
            let stack = Target { stacked: true, ..one.clone() };
            self.targets.push(self.finished(stack));
            self.targets.len() - 1
        };
        let first = &self.targets[target];
        if tensor.shape.len() != 2 || (&first.shape, first.dtype) != (&one.shape, one.dtype) {
            let reason = format!(
                "is {} {:?}, and another expert of its stack {} {:?}",
                one.dtype, one.shape, first.dtype, first.shape
            );
            return Err(self.misfit(tensor, reason));
        }
        let stack = self.stacks.get_mut(&one.name);
        match stack.and_then(|stack| stack.matrices.insert(number, one.views[0])) {
            None => Ok(()),
            Some(other) => {
                let reason =
                    format!("it and `{}` are both expert {number}", self.checkpoint.tensors[other.tensor].name);
                Err(self.misfit(tensor, reason))
            }
        }
    }

    /// The targets. Checks that all stacks are complete.
    fn finish(mut self) -> Result<Vec<Target>> {
        let keys = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];
        let counted = keys.iter().find_map(|key| self.checkpoint.config_size(key));
        for Stack { target, matrices } in std::mem::take(&mut self.stacks).into_values() {
            let count = matrices.len();
            let missing = (0..count).find(|expert| !matrices.contains_key(expert));
            let tensor = &self.checkpoint.tensors[self.targets[target].views[0].tensor];
            if let Some(missing) = missing {
                return Err(self.misfit(tensor, format!("expert {missing} of its layer is missing")));
            }
            if let Some(counted) = counted.filter(|counted| *counted != count as u64) {
                let reason = format!("its layer has {count} experts, and config.json counts {counted}");
                return Err(self.misfit(tensor, reason));
            }
            let target = &mut self.targets[target];
            target.shape.insert(0, count as u64);
            target.views = matrices.into_values().collect();
        }
        Ok(self.targets)
    }

    /// `target`, marked if `mlx-lm` cannot read it quantized.
    fn finished(&self, target: Target) -> Target {
        let raw =
            self.family.is_some_and(|family| family.mlx.raw.iter().any(|raw| matches(raw, &target.name).is_some()));
        Target { unquantizable: raw.then_some("mlx-lm holds it outside of any module"), ..target }
    }

    fn misfit(&self, tensor: &Tensor, reason: String) -> Error {
        Error::Layout { file: self.checkpoint.file_of(tensor).to_owned(), tensor: tensor.name.clone(), reason }
    }
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
