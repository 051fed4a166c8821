//! One file of a checkpoint. Each thread that reads it opens it for itself.

use std::fs::File;
use std::path::PathBuf;

use crate::container::{self, Header};
use crate::error::{Error, FileFault, Result};

/// A file of tensors with a checked header.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The path, symbolic links resolved.
    pub path: PathBuf,
    /// The file name in the checkpoint's directory.
    pub name: String,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// Length of everything before the data, in bytes.
    pub header_bytes: u64,
    /// SHA-256 of the header's text.
    pub header_sha256: String,
}

impl Shard {
    /// Opens `path`, which the checkpoint calls `name`, and checks its header.
    ///
    /// # Errors
    /// As [`Container::read`](container::Container::read).
    pub fn open(path: PathBuf, name: String) -> Result<(Self, Header)> {
        let file = File::open(&path).map_err(Error::io("opening", &path))?;
        let bytes = file.metadata().map_err(Error::io("reading", &path))?.len();
        let header = container::of_file(&name).unwrap_or(&container::Safetensors).read(&file, &path, bytes)?;
        Ok((Self::with((path, name), bytes, &header), header))
    }

    /// The file at this path, which the checkpoint calls by this name, of `bytes` bytes with a `header` that was read.
    pub(super) fn with((path, name): (PathBuf, String), bytes: u64, header: &Header) -> Self {
        Self { path, name, bytes, header_bytes: header.bytes, header_sha256: header.sha256.clone() }
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// [`Error::Io`]; [`FileFault::Changed`] if its length has changed since [`open`](Self::open).
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

#[cfg(test)]
mod tests {
    use super::*;

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
