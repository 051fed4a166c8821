//! One file of a checkpoint, and reading from it.
//!
//! Files are read with positional reads into buffers of our own, not mapped: a mapped file that someone truncates
//! kills the process, its pages count as our memory, and the copy is cheap if the buffer is page-aligned (see
//! `docs/design.md`). No file stays open but the one a thread reads from.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{self, Header};
use crate::error::{Error, FileFault, Result};

/// A safetensors file whose header was checked.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Where it is, symbolic links resolved.
    pub path: PathBuf,
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Length of its header, with the eight bytes before it.
    pub header_bytes: u64,
    /// SHA-256 of the header's text.
    pub header_sha256: String,
}

impl Shard {
    /// Opens `path`, known in the checkpoint as `name`, and checks its header.
    ///
    /// # Errors
    /// As [`header::read`].
    pub fn open(path: PathBuf, name: String) -> Result<(Self, Header)> {
        let file = File::open(&path).map_err(Error::io("opening", &path))?;
        let bytes = file.metadata().map_err(Error::io("reading", &path))?.len();
        let header = header::read(&file, &path, bytes)?;
        let (header_bytes, header_sha256) = (header.bytes, header.sha256.clone());
        Ok((Self { path, name, bytes, header_bytes, header_sha256 }, header))
    }

    /// The file, for reading.
    ///
    /// # Errors
    /// [`Error::Io`]; [`FileFault::Changed`] if its length is not what it was.
    pub fn file(&self) -> Result<File> {
        let file = File::open(&self.path).map_err(Error::io("opening", &self.path))?;
        let bytes = file.metadata().map_err(Error::io("reading", &self.path))?.len();
        if bytes == self.bytes {
            Ok(file)
        } else {
            let fault = FileFault::Changed(format!("it was {} bytes long and is {bytes} now", self.bytes));
            Err(Error::file(&self.path, fault))
        }
    }
}

/// Fills `buffer` with the bytes of `file` from `offset`; `path` is for errors.
///
/// # Errors
/// [`Error::Io`], also if the file ends before.
pub fn read_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(Error::io("reading", path))
}

/// Tells the system that `bytes` of `file` from `offset` on are read soon. It reads them while others compute; whether it
/// does is its own affair, and so is any failure.
pub fn read_soon(file: &File, offset: u64, bytes: u64) {
    let Some(bytes) = NonZeroU64::new(bytes) else { return };
    #[cfg(target_os = "linux")]
    if is_at_hand(file, offset + bytes.get() - 1) {
        // Asking would look for each of its pages.
        return;
    }
    #[cfg(target_vendor = "apple")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, bytes.get());
    #[cfg(not(target_vendor = "apple"))]
    let _ = rustix::fs::fadvise(file, offset, Some(bytes), rustix::fs::Advice::WillNeed);
}

/// Whether the byte at `offset` of `file` is in memory.
#[cfg(target_os = "linux")]
fn is_at_hand(file: &File, offset: u64) -> bool {
    use std::io::IoSliceMut;

    use rustix::io::{ReadWriteFlags, preadv2};

    preadv2(file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT).is_ok_and(|bytes| bytes == 1)
}

const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// A buffer that starts on a page: the kernel's copy into one that does not is several times slower on some CPUs, and what a
/// register takes from one does not lie across two lines of the cache.
#[derive(Default)]
pub struct PageBuffer {
    pages: Vec<Page>,
}

impl PageBuffer {
    /// The first `bytes` of the buffer, grown if need be. What they hold is whatever was there before.
    pub fn get(&mut self, bytes: usize) -> &mut [u8] {
        let pages = bytes.div_ceil(PAGE_BYTES);
        if self.pages.len() < pages {
            self.pages.resize(pages, Page([0; PAGE_BYTES]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..bytes]
    }

    /// The first `count` elements of the buffer, as [`get`](Self::get) gives bytes.
    pub fn elements<T: bytemuck::Pod>(&mut self, count: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(self.get(count * size_of::<T>()))
    }

    /// The first `bytes` of the buffer, which was that long before.
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

    #[test]
    fn a_file_that_changed_its_length_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let (shard, header) = Shard::open(path.clone(), "x.safetensors".to_owned()).unwrap();
        assert!(header.entries.is_empty() && shard.file().is_ok());
        std::fs::write(&path, b"").unwrap();
        assert_eq!(shard.file().unwrap_err().slug(), "source-changed");
    }
}
