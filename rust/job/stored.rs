//! Stored tensors and sizes of an output. They depend on shapes and schemes only.

use crate::codec::Scheme;
use crate::container::{Layout, STEM, StoredTensor, lay_out};
use crate::error::{Error, Result};
use crate::format::{Format, SchemeUse, stored_tensors};
use crate::schema::analysis::AnalyzedTensor;
use crate::schema::plan::Totals;

/// The stored tensors of `tensor` in `scheme`.
///
/// # Errors
/// [`Error::Scheme`] if the scheme does not fit the tensor.
pub(crate) fn stored(format: &dyn Format, tensor: &AnalyzedTensor, scheme: Scheme) -> Result<Vec<StoredTensor>> {
    let wrong = |reason: String| Error::Scheme { tensor: tensor.name.clone(), reason };
    let of = (tensor.name.as_str(), tensor.shape.as_slice());
    let stored_in = if scheme.is_kept() { tensor.packed() } else { Some(scheme) };
    if let Some(scheme) = stored_in {
        let matrix = tensor.matrix().filter(|matrix| scheme.fits(matrix.cols));
        let matrix = matrix.ok_or_else(|| wrong(format!("{scheme} does not fit its shape {:?}", tensor.shape)))?;
        return Ok(stored_tensors(format, of, matrix, scheme));
    }
    let dtype = tensor.dtype().ok_or_else(|| wrong("its dtype is not one of the format's".to_owned()))?;
    let (name, shape, bytes) = (tensor.name.clone(), tensor.shape.clone(), tensor.bytes);
    Ok(vec![StoredTensor { name, dtype, shape, bytes, grows: true }])
}

/// The stored tensors of an output in their schemes, and their locations.
pub(crate) struct StoredOutput {
    /// The stored tensors of each output tensor.
    pub modules: Vec<Vec<StoredTensor>>,
    pub layout: Layout,
    /// Bits of the codes and of the kept tensors, without scales and biases.
    pub payload_bits: u64,
}

impl StoredOutput {
    /// Lays out `tensors` in their schemes, in files of at most `shard_bytes` bytes of tensor data.
    ///
    /// # Errors
    /// As [`stored`].
    pub(crate) fn new<'a>(
        format: &dyn Format,
        tensors: impl Iterator<Item = (&'a AnalyzedTensor, Scheme)>,
        shard_bytes: u64,
    ) -> Result<Self> {
        Self::named(STEM, format, tensors, shard_bytes)
    }

    /// The same, in files whose names begin with `stem`.
    ///
    /// # Errors
    /// As [`stored`].
    pub(crate) fn named<'a>(
        stem: &str,
        format: &dyn Format,
        tensors: impl Iterator<Item = (&'a AnalyzedTensor, Scheme)>,
        shard_bytes: u64,
    ) -> Result<Self> {
        let (mut modules, mut uses, mut payload_bits) = (Vec::new(), Vec::new(), 0);
        for (tensor, scheme) in tensors {
            payload_bits += match scheme.code_bits() {
                Some(bits) => bits.total(tensor.shape.iter().product()),
                None => 8 * tensor.bytes,
            };
            let parts = stored(format, tensor, scheme)?;
            if let Some(part) = parts.first() {
                uses.push(SchemeUse { dtype: part.dtype, elements: tensor.shape.iter().product() });
            }
            modules.push(parts);
        }
        let layout = lay_out(format.container(), stem, &modules, shard_bytes, &format.metadata(&uses));
        Ok(Self { modules, layout, payload_bits })
    }

    /// Sizes of the output, for a source of `parameters` weights. Loss and budget are left at their defaults.
    #[must_use]
    pub(crate) fn totals(&self, parameters: u64) -> Totals {
        let parameters = parameters.max(1) as f64;
        let tensor_bytes: u64 = self.modules.iter().flatten().map(|tensor| tensor.bytes).sum();
        Totals {
            tensor_bytes,
            file_bytes: self.layout.file_bytes(),
            effective_bpw: 8.0 * tensor_bytes as f64 / parameters,
            payload_bpw: self.payload_bits as f64 / parameters,
            ..Totals::default()
        }
    }
}
