//! `weights`: decodes one tensor of a checkpoint.

use std::path::Path;

use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::stream::Reader;
use crate::checkpoint::view::unravel;
use crate::checkpoint::{Checkpoint, Part};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::option::OptionName;

/// The decoded elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Returns the elements of `tensor` of the checkpoint at `model`, decoded if the source is prequantized.
///
/// # Errors
/// [`Error::Option`] for an unknown tensor, [`Error::Layout`] for a tensor without a float type or with scales of the
/// wrong shape, [`Error::NonFinite`] for codes that decode to NaN or infinity, and the errors of opening and reading.
pub fn weights(model: &Path, tensor: &str) -> Result<Weights> {
    let checkpoint = Checkpoint::open(model)?;
    let fault = |part: &Part, reason: String| {
        let (file, tensor) = (checkpoint.shards[part.shard].path.clone(), part.name.clone());
        Err(Error::Layout { file, tensor, reason })
    };
    if let Some((part, reason)) = checkpoint.faults.iter().find(|(part, _)| checkpoint.parts[*part].name == tensor) {
        return fault(&checkpoint.parts[*part], reason.clone());
    }
    let found = checkpoint.tensor(tensor);
    let found =
        found.ok_or_else(|| Error::option(OptionName::Tensor, tensor, "is not one of the checkpoint's weights"))?;
    let Some(float) = Float::of(found.dtype) else {
        return fault(
            &checkpoint.parts[found.part],
            format!("is {}, which is not a float type that ramrs decodes", found.dtype),
        );
    };
    let mut reader = Reader::default();
    let bytes = reader.bytes(&checkpoint, found, 0..found.bytes)?;
    let mut values = vec![0.0; bytes.len() / float.bytes()];
    float.widen(bytes, &mut values);
    let is_wrong = |value: &f32| found.packing != Packing::Plain && !value.is_finite();
    let count = values.iter().filter(|value| is_wrong(value)).count();
    if let Some(first) = values.iter().position(is_wrong) {
        let rows = (0, found.shape.first().copied().unwrap_or(1));
        let first = unravel(&found.shape, first as u64);
        let (file, tensor) = (checkpoint.file_of(found).to_owned(), found.name.clone());
        return Err(Error::NonFinite { file, tensor, count, rows, first });
    }
    Ok(Weights { shape: found.shape.clone(), values })
}
