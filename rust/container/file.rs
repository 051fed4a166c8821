//! Positional reads and writes, and page-aligned buffers.
//!
//! Files are read into buffers, not mapped. Truncating a mapped file kills the process, mapped pages count as memory of
//! the process, and the copy is cheap if the buffer is page-aligned (see `docs/design.md`).

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Fills `buffer` with the bytes of `file` from `offset`; `path` is for errors.
///
/// # Errors
/// [`Error::Io`], also if the file is too short.
pub fn read_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(Error::io("reading", path))
}

/// Bytes that can be read from any position: those of a file, or of a file in memory.
pub(crate) trait Source {
    /// Fills `buffer` with the bytes from `offset` on; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Io`], also if there are fewer bytes.
    fn fill(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()>;
}

impl Source for File {
    fn fill(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
        read_at(self, path, buffer, offset)
    }
}

impl Source for &[u8] {
    fn fill(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..buffer.len()));
        let from = from.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()).map_err(Error::io("reading", path))?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}

/// Writes `content` to `file` from `offset` on; `path` is for errors.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_at(file: &File, path: &Path, content: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(content, offset).map_err(Error::io("writing", path))
}

/// Asks the system to read `bytes` of `file` from `offset` on in the background. This is a hint: failures are ignored.
pub(crate) fn prefetch(file: &File, offset: u64, bytes: u64) {
    let Some(bytes) = NonZeroU64::new(bytes) else { return };
    #[cfg(target_os = "linux")]
    if is_cached(file, offset + bytes.get() - 1) {
        // `fadvise` would look up every page of the range.
        return;
    }
    #[cfg(target_vendor = "apple")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, bytes.get());
    #[cfg(not(target_vendor = "apple"))]
    let _ = rustix::fs::fadvise(file, offset, Some(bytes), rustix::fs::Advice::WillNeed);
}

/// Whether the byte at `offset` of `file` is in the page cache.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, offset: u64) -> bool {
    use std::io::IoSliceMut;

    use rustix::io::{ReadWriteFlags, preadv2};

    preadv2(file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT).is_ok_and(|bytes| bytes == 1)
}

const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// A buffer that starts on a page boundary. On some CPUs the system copies into unaligned buffers several times slower;
/// and no vector load crosses a cache line.
#[derive(Default)]
pub struct PageBuffer {
    pages: Vec<Page>,
}

impl PageBuffer {
    /// Returns the first `bytes` of the buffer, and grows it if necessary. Their content is unspecified.
    pub fn get(&mut self, bytes: usize) -> &mut [u8] {
        let pages = bytes.div_ceil(PAGE_BYTES);
        if self.pages.len() < pages {
            self.pages.resize(pages, Page([0; PAGE_BYTES]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..bytes]
    }

    /// Returns the first `count` elements of the buffer. See [`get`](Self::get).
    pub fn elements<T: bytemuck::Pod>(&mut self, count: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(self.get(count * size_of::<T>()))
    }

    /// Returns the first `bytes` of the buffer, without growing it.
    ///
    /// # Panics
    /// If it is shorter.
    #[must_use]
    pub fn held(&self, bytes: usize) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_starts_on_a_page_however_it_grows() {
        let mut buffer = PageBuffer::default();
        for bytes in [0, 1, 4096, 4097, 1 << 20, 5] {
            let slice = buffer.get(bytes);
            assert_eq!(slice.len(), bytes);
            assert_eq!(slice.as_ptr().align_offset(PAGE_BYTES), 0);
        }
    }
}
