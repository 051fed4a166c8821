//! The tensors of an output: those of the release, under their names, with one tensor for each expert.

use crate::arch::families::{Becomes, ModelFamily, Outputs, Transform};
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::error::{Error, Result};
use crate::format::readable::{check_names, check_source, model_family, unpacked};
use crate::format::{Arrangement, Disposition, Target};
use crate::name::{Name, Role};

/// The tensors that the runtimes read, and what becomes of each tensor of `checkpoint`.
pub(super) fn arrange(checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
    check_source(checkpoint)?;
    let family = model_family(checkpoint, generic, "compressed-tensors")?;
    let mut arrangement = Arrangement::default();
    for (at, tensor) in checkpoint.tensors.iter().enumerate() {
        let disposition = match family {
            Some(family) => place(checkpoint, family, at, tensor, &mut arrangement.targets)?,
            None => {
                arrangement.targets.push(named(checkpoint, at, tensor));
                Disposition::Write
            }
        };
        arrangement.dispositions.push(disposition);
    }
    check_names(checkpoint, &arrangement, "the runtime")?;
    Ok(arrangement)
}

/// Tensor `at` under the name of its weight.
fn named(checkpoint: &Checkpoint, at: usize, tensor: &Tensor) -> Target {
    let name = match tensor.packing {
        Packing::Mxfp4 { .. } => format!("{}.weight", tensor.name.strip_suffix("_blocks").unwrap_or(&tensor.name)),
        _ => unpacked(tensor).to_owned(),
    };
    Target { name, ..Target::same(checkpoint, at) }
}

/// Adds the targets of `tensor`, and returns what becomes of it.
fn place(
    checkpoint: &Checkpoint,
    family: &'static ModelFamily,
    at: usize,
    tensor: &Tensor,
    targets: &mut Vec<Target>,
) -> Result<Disposition> {
    let Name { role, layer, .. } = Name::parse(&tensor.name);
    let name = unpacked(tensor);
    match family.stored(name) {
        Some((Becomes::Buffer, _)) => return Ok(Disposition::Drop("the runtime computes it itself")),
        Some((Becomes::TiedHead, _)) => return Ok(Disposition::Drop("the embedding is the head")),
        Some((Becomes::Used(parts), found)) => {
            let is_stack = |(_, transform): &(&str, Transform)| matches!(transform, Transform::Matrices { .. });
            if tensor.shape.len() == 3 && parts.iter().all(is_stack) {
                for &(pattern, transform) in parts {
                    let name = pattern.replacen('*', found.beginning, 1);
                    targets.extend(experts(checkpoint, at, tensor, &name, transform)?);
                }
                return Ok(Disposition::Write);
            }
        }
        None => {}
    }
    if role == Role::Head && name.ends_with("lm_head.weight") && checkpoint.is_tied() == Some(true) {
        let is_embedding = |tensor: &&Tensor| Name::parse(&tensor.name).role == Role::Embedding;
        if let Some(embedding) = checkpoint.tensors.iter().find(is_embedding) {
            return Ok(Disposition::Tied(embedding.name.clone()));
        }
    }
    let layers = checkpoint.config_size("num_hidden_layers");
    let is_beyond = layer.zip(layers).is_some_and(|(layer, layers)| layer as u64 >= layers);
    let unquantizable = is_beyond.then_some("beyond the model's layers: it predicts several tokens at once");
    targets.push(Target { unquantizable, ..named(checkpoint, at, tensor) });
    Ok(Disposition::Write)
}

/// The experts of a stack as matrices of their own. `name` is the stack's name, and ends in `experts.PROJECTION.weight`.
fn experts(
    checkpoint: &Checkpoint,
    at: usize,
    tensor: &Tensor,
    name: &str,
    transform: Transform,
) -> Result<Vec<Target>> {
    let misfit = |reason: &str| Error::Layout {
        file: checkpoint.file_of(tensor).to_owned(),
        tensor: tensor.name.clone(),
        reason: format!("is {:?}: {reason}", tensor.shape),
    };
    let (Transform::Matrices { input_major, outputs }, Some((before, projection)), &[count, rows, _]) =
        (transform, name.split_once(".experts."), tensor.shape.as_slice())
    else {
        return Err(misfit("it is no stack of experts"));
    };
    let whole = View::whole(at, tensor);
    let rows = if input_major { whole.cols } else { rows };
    if outputs != Outputs::All && !rows.is_multiple_of(2) {
        return Err(misfit("its outputs do not divide into two"));
    }
    let one = |expert: u64| {
        let stored = whole.matrix_of(expert, count);
        let view = outputs.of(if input_major { stored.transposed() } else { stored }, rows);
        Target {
            name: format!("{before}.experts.{expert}.{projection}"),
            shape: vec![view.rows, view.cols],
            views: vec![view],
            ..Target::same(checkpoint, at)
        }
    };
    Ok((0..count).map(one).collect())
}
