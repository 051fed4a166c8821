//! Tensors that are stored in a [`Scheme`] of a codec, as outputs are. They decode to `f32`, in whole rows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::prequantized::{Packing, Paired, PartUse};
use super::stream::Reader;
use super::{Checkpoint, Part, Tensor};
use crate::band::Matrix;
use crate::codec::{Extent, Rows, Scheme};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};

/// The most parts that a codec stores for a matrix.
const MOST_PARTS: usize = 3;

/// A scheme, and the parts that hold a matrix in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedTensor {
    scheme: Scheme,
    /// Element type of the scales.
    float: Float,
    /// In the codec's order.
    parts: [Option<usize>; MOST_PARTS],
}

impl EncodedTensor {
    fn parts(self) -> impl Iterator<Item = usize> {
        self.parts.into_iter().flatten()
    }
}

impl Tensor {
    /// The tensor of this shape that `parts` store in `scheme`, in the codec's order. `None` if it is too large.
    pub(crate) fn encoded(
        all: &[Part],
        (scheme, float): (Scheme, Float),
        shape: &[u64],
        parts: &[usize],
    ) -> Option<Self> {
        let elements = shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length))?;
        let bytes = Dtype::F32.bytes(elements)?;
        let mut held = [None; MOST_PARTS];
        held.iter_mut().zip(parts).for_each(|(place, &part)| *place = Some(part));
        let packing = Packing::Encoded(EncodedTensor { scheme, float, parts: held });
        let part = *parts.first().filter(|_| parts.len() <= MOST_PARTS)?;
        Some(Self {
            name: all[part].name.clone(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            part,
            bytes,
            packing,
            unneeded: None,
        })
    }
}

impl Paired {
    /// The same parts, with a tensor for each part that is stored in blocks of a codec.
    #[must_use]
    pub(crate) fn with_blocks(self, parts: &[Part]) -> Self {
        let of = |(at, part): (usize, &Part)| {
            let scheme = Scheme::of_blocks(part.dtype)?;
            let cols = part.shape.last().copied().unwrap_or(0);
            Tensor::encoded(parts, (scheme, Float::F32), &part.shape, &[at]).filter(|_| scheme.fits(cols))
        };
        let encoded: Vec<Tensor> = parts.iter().enumerate().filter_map(of).collect();
        if encoded.is_empty() { self } else { self.with_encoded(encoded) }
    }

    /// The same parts, with the tensors `encoded` instead of what their parts were taken for.
    #[must_use]
    pub(crate) fn with_encoded(self, encoded: Vec<Tensor>) -> Self {
        let Self { tensors: others, uses, mut faults } = self;
        // The part with the elements of the tensor that each part belongs to.
        let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
        for (part, used) in uses.iter().enumerate() {
            if let PartUse::Elements(tensor) | PartUse::Companion(tensor) = used {
                owners.insert(part, others[*tensor].part);
            }
        }
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        for tensor in &encoded {
            if let Packing::Encoded(of) = tensor.packing {
                taken.extend(of.parts().map(|part| (part, tensor.part)));
            }
        }
        faults.retain(|(part, _)| !taken.contains_key(part));
        let mut tensors: Vec<Tensor> = others.into_iter().filter(|tensor| !taken.contains_key(&tensor.part)).collect();
        tensors.extend(encoded);
        tensors.sort_by_key(|tensor| tensor.part);
        owners.extend(taken);
        let numbers: BTreeMap<usize, usize> =
            tensors.iter().enumerate().map(|(at, tensor)| (tensor.part, at)).collect();
        let used = |(part, used): (usize, PartUse)| match owners.get(&part).map(|owner| (*owner, numbers.get(owner))) {
            None => used,
            Some((owner, Some(&tensor))) if owner == part => PartUse::Elements(tensor),
            Some((_, Some(&tensor))) => PartUse::Companion(tensor),
            Some((_, None)) => PartUse::Unused("its weight is read in another form"),
        };
        let uses = uses.into_iter().enumerate().map(used).collect();
        Self { tensors, uses, faults }
    }
}

/// Buffers for decoding.
#[derive(Default)]
pub(super) struct DecodeBuffers {
    parts: [Vec<u8>; MOST_PARTS],
    rows: Vec<f32>,
}

impl Reader {
    /// Reads the bytes `range` of `tensor`, which is stored as `encoded`. Whole rows are decoded.
    pub(super) fn encoded(
        &mut self,
        checkpoint: &Checkpoint,
        (tensor, EncodedTensor { scheme, float, parts }): (&Tensor, EncodedTensor),
        range: &Range<u64>,
    ) -> Result<&[u8]> {
        let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
        let row_bytes = cols * size_of::<f32>() as u64;
        let rows = range.start / row_bytes..range.end.div_ceil(row_bytes);
        let codec = scheme.codec().ok_or_else(|| Error::Bug(format!("`{}` has no codec", tensor.name)))?;
        let specs = codec.parts(scheme, Matrix { rows: tensor.elements() / cols, cols, float });
        let mut buffers = std::mem::take(&mut self.decoding);
        for ((spec, part), data) in specs.iter().zip(parts.iter().flatten()).zip(&mut buffers.parts) {
            let part = &checkpoint.parts[*part];
            let stored = match spec.extent {
                Extent::PerRow(_) => rows.start * spec.row_bytes()..rows.end * spec.row_bytes(),
                Extent::Fixed(_) => 0..part.bytes,
            };
            data.clear();
            data.extend_from_slice(self.stored(checkpoint, part, stored)?);
        }
        self.decoding = buffers;
        let DecodeBuffers { parts, rows: out } = &mut self.decoding;
        let data: Vec<&[u8]> = parts.iter().take(specs.len()).map(Vec::as_slice).collect();
        let cols = usize::try_from(cols).map_err(|_| Error::Bug("row length".to_owned()))?;
        out.resize((rows.end - rows.start) as usize * cols, 0.0);
        codec.decode(scheme, Rows { cols, float }, &data, out);
        let from = (range.start - rows.start * row_bytes) as usize;
        Ok(&bytemuck::cast_slice(out)[from..from + (range.end - range.start) as usize])
    }
}
