//! Compares what the units of an output are encoded to again with what is stored.

use std::sync::Mutex;

use crate::container::file::{PageBuffer, read_at};
use crate::digest::Digest;
use crate::error::Result;
use crate::job::encode::Writer;
use crate::pool::lock;

/// Bytes of a stored tensor that are not what its source is encoded to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteDifference {
    /// Name of the stored tensor.
    pub tensor: String,
    /// The first byte that differs, from the beginning of the tensor.
    pub offset: u64,
    /// SHA-256 of the bytes that were compared with it, as they are stored.
    pub stored_sha256: String,
    /// The same, as they are encoded again.
    pub rebuilt_sha256: String,
}

/// The differences that were found, in any order.
#[derive(Debug, Default)]
pub(crate) struct Differences(Mutex<Vec<ByteDifference>>);

impl Differences {
    /// The first difference of each tensor.
    #[must_use]
    pub(crate) fn first_of_each(self) -> Vec<ByteDifference> {
        let mut all = std::mem::take(&mut *lock(&self.0));
        all.sort();
        all.dedup_by(|next, first| next.tensor == first.tensor);
        all
    }

    /// Compares `rebuilt` with the bytes of part `part` of output `output` from `offset` of the part on.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub(super) fn compare(
        &self,
        writer: &Writer<'_>,
        (output, part): (usize, usize),
        (offset, rebuilt): (u64, &[u8]),
    ) -> Result<()> {
        let job = &writer.jobs[output];
        let location = job.locations[part];
        let (file, path) = &writer.files[location.file];
        let mut buffer = PageBuffer::default();
        let stored = buffer.get(rebuilt.len());
        read_at(file, path, stored, location.offset + offset)?;
        if let Some(at) = stored.iter().zip(rebuilt).position(|(stored, rebuilt)| stored != rebuilt) {
            lock(&self.0).push(ByteDifference {
                tensor: job.parts[part].name.clone(),
                offset: offset + at as u64,
                stored_sha256: Digest::of(stored),
                rebuilt_sha256: Digest::of(rebuilt),
            });
        }
        Ok(())
    }
}
