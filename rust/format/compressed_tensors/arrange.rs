//! The tensors of an output: those of the release, under their names, with one tensor for each expert.

use crate::arch::families::{Becomes, ModelFamily, Transform};
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::error::{Error, Result};
use crate::format::readable::{check_names, is_beyond_layers, matrices, model_family, tied_head, weight_name};
use crate::format::{Arrangement, Disposition, Target};
use crate::name::Name;

/// The tensors that the runtimes read, and what becomes of each tensor of `checkpoint`.
pub(super) fn arrange(checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
    let family = model_family(checkpoint, generic, "compressed-tensors")?;
    let mut arrangement = Arrangement::default();
    for (at, tensor) in checkpoint.tensors.iter().enumerate() {
        let disposition = if let Some(family) = family {
            place(checkpoint, family, at, tensor, &mut arrangement.targets)?
        } else {
            arrangement.targets.push(named(checkpoint, at, tensor));
            Disposition::Write
        };
        arrangement.dispositions.push(disposition);
    }
    check_names(checkpoint, &arrangement, "the runtime")?;
    Ok(arrangement)
}

/// Tensor `at` under the name of its weight.
fn named(checkpoint: &Checkpoint, at: usize, tensor: &Tensor) -> Target {
    Target { name: weight_name(tensor), ..Target::same(checkpoint, at) }
}

/// Adds the targets of `tensor`, and returns what becomes of it.
fn place(
    checkpoint: &Checkpoint,
    family: &'static ModelFamily,
    at: usize,
    tensor: &Tensor,
    targets: &mut Vec<Target>,
) -> Result<Disposition> {
    if let Some(why) = tensor.unneeded {
        return Ok(Disposition::Drop(why));
    }
    match family.stored(tensor.weight_name()) {
        Some((Becomes::Buffer, _)) => return Ok(Disposition::Drop("the runtime computes it itself")),
        Some((Becomes::TiedHead, _)) => return Ok(Disposition::Drop("the embedding is the head")),
        Some((Becomes::Used(parts), found)) => {
            let is_stack = |(_, transform): &(&str, Transform)| matches!(transform, Transform::Matrices { .. });
            if tensor.shape.len() == 3 && parts.iter().all(is_stack) {
                for &(pattern, transform) in parts {
                    let stored = family.expert_pattern(pattern).replacen('*', found.beginning, 1);
                    targets.extend(experts(checkpoint, at, tensor, &stored, transform)?);
                }
                return Ok(Disposition::Write);
            }
            // A newer name of the same tensor.
            if let &[(pattern, Transform::Same)] = parts
                && !pattern.contains(".experts.")
            {
                let name = pattern.replacen('*', found.beginning, 1);
                targets.push(Target { name, ..named(checkpoint, at, tensor) });
                return Ok(Disposition::Write);
            }
        }
        None => {}
    }
    if let Some(tied) = tied_head(checkpoint, tensor) {
        return Ok(tied);
    }
    let is_beyond = is_beyond_layers(checkpoint, Name::parse(&tensor.name).layer);
    let unquantizable = is_beyond.then_some("beyond the model's layers: it predicts several tokens at once");
    targets.push(Target { unquantizable, ..named(checkpoint, at, tensor) });
    Ok(Disposition::Write)
}

/// The experts of a stack as matrices of their own, named by `pattern`, in which `#` stands for the expert.
fn experts(
    checkpoint: &Checkpoint,
    at: usize,
    tensor: &Tensor,
    pattern: &str,
    transform: Transform,
) -> Result<Vec<Target>> {
    let misfit = |reason: &str| Error::Layout {
        file: checkpoint.file_of(tensor).to_owned(),
        tensor: tensor.name.clone(),
        reason: format!("is {:?}: {reason}", tensor.shape),
    };
    let (Transform::Matrices { input_major, outputs }, &[count, rows, _]) = (transform, tensor.shape.as_slice()) else {
        return Err(misfit("it is no stack of experts"));
    };
    let views = matrices(View::whole(at, tensor), (count, rows), (input_major, outputs)).map_err(misfit)?;
    let one = |(expert, view): (usize, View)| Target {
        name: pattern.replacen('#', &expert.to_string(), 1),
        shape: vec![view.rows, view.cols],
        views: vec![view],
        ..Target::same(checkpoint, at)
    };
    Ok(views.into_iter().enumerate().map(one).collect())
}
