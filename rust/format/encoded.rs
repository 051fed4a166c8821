//! Opens outputs: finds the tensors that a format stores as codes, from what `config.json` says of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{FORMATS, Format, Runtime, stored_tensors};
use crate::arch::{self, ReleaseNames};
use crate::checkpoint::prequantized::{Packing, PartUse, pair};
use crate::checkpoint::{Checkpoint, Config, Matrix, Part, Tensor};
use crate::codec::{Extent, Scheme};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name::Name;

/// The parts of a tensor in a scheme.
pub(crate) struct TensorParts<P> {
    /// All rows of the tensor.
    pub matrix: Matrix,
    /// Dimensions of the tensor, outermost first.
    pub shape: Vec<u64>,
    /// In the codec's order.
    pub parts: Vec<P>,
}

/// Finds the parts of tensor `target` in `scheme`: `part` returns the stored part of a name with its element type and
/// dimensions. `None` if a part is missing or has another type or shape.
#[must_use]
pub(crate) fn find_parts<'a, P>(
    format: &dyn Format,
    (target, scheme): (&str, Scheme),
    part: impl Fn(&str) -> Option<(P, Dtype, &'a [u64])>,
) -> Option<TensorParts<P>> {
    let codec = scheme.codec()?;
    let of_kind = |kind: &str| part(&format.part_name(scheme, target, kind));
    let (cols, float) = codec.row_of(scheme, &|kind| {
        let (_, dtype, shape) = of_kind(kind)?;
        Some((dtype, *shape.last()?))
    })?;
    // Every part that grows with the rows has the same leading dimensions as the tensor.
    let one_row = codec.parts(scheme, Matrix { rows: 1, cols, float });
    let of_rows = one_row.iter().find(|part| matches!(part.extent, Extent::PerRow(_)))?;
    let (_, above) = of_kind(of_rows.kind)?.2.split_last()?;
    let matrix = Matrix { rows: above.iter().product(), cols, float };
    let shape: Vec<u64> = above.iter().copied().chain([cols]).collect();
    let stored = stored_tensors(format, (target, &shape), matrix, scheme);
    let found = stored.iter().map(|stored| {
        let (found, dtype, shape) = part(&stored.name)?;
        (dtype == stored.dtype && shape == stored.shape).then_some(found)
    });
    let parts = found.collect::<Option<Vec<_>>>()?;
    (scheme.fits(cols) && matrix.rows > 0).then_some(TensorParts { matrix, shape, parts })
}

/// Opens the checkpoint at `path`, whose tensors may be stored in any format that is written. Tensors of these decode to
/// `f32`; all others are those of [`Checkpoint::open`].
///
/// # Errors
/// Those of [`Checkpoint::open`], and [`Error::Layout`] for codes that are not read.
pub(crate) fn open_output(path: &Path) -> Result<Checkpoint> {
    let checkpoint = arch::open_with(path, ReleaseNames::Stored, |parts, config| {
        let encoded = config.map_or_else(Vec::new, |config| encoded(parts, config));
        pair(parts, config).with_encoded(encoded)
    })?;
    let fault = checkpoint.faults.first().cloned().or_else(|| unread(&checkpoint));
    match fault {
        None => Ok(checkpoint),
        Some((part, reason)) => {
            let Part { name, shard, .. } = &checkpoint.parts[part];
            Err(Error::Layout { file: checkpoint.shards[*shard].path.clone(), tensor: name.clone(), reason })
        }
    }
}

/// The first part with codes of MLX that no tensor was found for, and a reason.
fn unread(checkpoint: &Checkpoint) -> Option<(usize, String)> {
    let is_plain = |part: usize| match checkpoint.uses[part] {
        PartUse::Elements(tensor) => checkpoint.tensors[tensor].packing == Packing::Plain,
        PartUse::Companion(_) | PartUse::Unused(_) => false,
    };
    let names: BTreeMap<&str, usize> =
        checkpoint.parts.iter().enumerate().map(|(at, part)| (part.name.as_str(), at)).collect();
    let of = |part: &Part| {
        let module = part.name.strip_suffix(".scales")?;
        names.get(format!("{module}.weight").as_str()).copied()
    };
    let codes = checkpoint.parts.iter().filter_map(of).find(|&part| is_plain(part))?;
    Some((codes, "config.json does not describe its codes, or describes a form that is not read".to_owned()))
}

/// The tensors of `parts` that `config` says are stored as codes of a format.
fn encoded(parts: &[Part], config: &Config) -> Vec<Tensor> {
    let by_name: BTreeMap<&str, usize> = parts.iter().enumerate().map(|(at, part)| (part.name.as_str(), at)).collect();
    let stored = |name: &str| {
        let at = *by_name.get(name)?;
        Some((at, parts[at].dtype, parts[at].shape.as_slice()))
    };
    let modules: Vec<String> = parts
        .iter()
        .map(|part| Name::parse(&part.name))
        .filter(|name| name.is_weight)
        .map(|name| name.module)
        .collect();
    let mut found = Vec::new();
    for format in FORMATS.iter().filter_map(|open| open(&Runtime::default()).ok()) {
        let described = format.described(config);
        for module in &modules {
            let Some(scheme) = described(module).filter(|scheme| !scheme.is_kept()) else { continue };
            let of = find_parts(&*format, (&format!("{module}.weight"), scheme), stored);
            let tensor = of.and_then(|of| Tensor::encoded(parts, (scheme, of.matrix.float), &of.shape, &of.parts));
            found.extend(tensor);
        }
    }
    found
}
