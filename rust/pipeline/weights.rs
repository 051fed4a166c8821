//! `weights`: decodes one tensor of a checkpoint.

use std::path::Path;

use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::stream::Reader;
use crate::checkpoint::view::unravel;
use crate::checkpoint::{Checkpoint, Part, Tensor};
use crate::codec::{Rows, Scheme};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::job::decode::find;
use crate::name::Name;
use crate::option::OptionName;
use crate::schema::manifest::{FILE_NAME, Manifest};

/// The decoded elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Elements in row-major order.
    pub values: Vec<f32>,
}

/// Returns the elements of `tensor` of the checkpoint at `model`, decoded if it is stored as codes: of an output of ramrs,
/// or of a prequantized source.
///
/// # Errors
/// [`Error::Option`] for an unknown tensor, [`Error::Layout`] for a tensor without a float type or with scales of the
/// wrong shape, [`Error::NonFinite`] for codes that decode to NaN or infinity, and the errors of opening and reading.
pub fn weights(model: &Path, tensor: &str) -> Result<Weights> {
    let manifest = model.join(FILE_NAME);
    if !manifest.is_file() {
        return of_checkpoint(&Checkpoint::open(model)?, tensor);
    }
    let manifest = Manifest::read(&manifest)?;
    let output = Checkpoint::open_as_stored(model)?;
    let format = manifest.settings.open_format()?;
    let scheme = scheme_of(&*format, &manifest, &output, tensor);
    let Some((scheme, codec)) = scheme.and_then(|scheme| Some((scheme, scheme.codec()?))) else {
        return of_checkpoint(&output, tensor);
    };
    let Some((matrix, parts)) = find(&*format, &output, tensor, scheme) else {
        let reason = format!("is not stored as {scheme}, which config.json says of it");
        return Err(Error::Layout { file: model.join("config.json"), tensor: tensor.to_owned(), reason });
    };
    let mut reader = Reader::default();
    let read = |part: &&Tensor| Ok(reader.bytes(&output, part, 0..part.bytes)?.to_vec());
    let stored: Vec<Vec<u8>> = parts.iter().map(read).collect::<Result<_>>()?;
    let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
    let (rows, cols) = (usize::try_from(matrix.rows), usize::try_from(matrix.cols));
    let too_large = || Error::option(OptionName::Tensor, tensor, "is too large for this machine");
    let (rows, cols) = (rows.map_err(|_| too_large())?, cols.map_err(|_| too_large())?);
    let mut values = vec![0.0; rows.checked_mul(cols).ok_or_else(too_large)?];
    codec.decode(scheme, Rows { cols, float: matrix.float }, &stored, &mut values);
    let above = parts[0].shape.split_last().map_or(&[][..], |(_, above)| above);
    Ok(Weights { shape: above.iter().copied().chain([matrix.cols]).collect(), values })
}

/// The scheme of `tensor` in an output; `None` for plain numbers.
fn scheme_of(format: &dyn Format, manifest: &Manifest, output: &Checkpoint, tensor: &str) -> Option<Scheme> {
    if output.tensor(tensor).is_some_and(|found| Float::of(found.dtype).is_some()) {
        return None;
    }
    let written = manifest.ledger.iter().flat_map(|line| &line.quantized).find(|quantized| quantized.into == tensor);
    if let Some(quantized) = written {
        return Some(quantized.scheme);
    }
    // What was passed through has no entry of its own in the ledger.
    let described = output.config.as_ref().and_then(|config| format.described(config)(&Name::parse(tensor).module));
    described.filter(|scheme| !scheme.is_kept())
}

fn of_checkpoint(checkpoint: &Checkpoint, tensor: &str) -> Result<Weights> {
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
    let bytes = reader.bytes(checkpoint, found, 0..found.bytes)?;
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
