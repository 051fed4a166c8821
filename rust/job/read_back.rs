//! Reads an output back and compares digests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::checkpoint::Shard;
use crate::container::{self, TensorEntry};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::schema::manifest::{FileDigest, Manifest};

const BUFFER_BYTES: usize = 1 << 20;

/// The digest of a file and, if it is a file of tensors, of each tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub file: FileDigest,
    /// Digests of the tensors, in data order.
    pub tensors: Vec<(TensorEntry, String)>,
    /// Digests of the tensors that were written in slices, for those whose slices all match.
    pub stacks: Vec<(String, String)>,
}

/// Length and SHA-256 of each slice in which a tensor was written, by tensor name.
pub(crate) type Slices = BTreeMap<String, Vec<(u64, String)>>;

/// The remaining slices of a tensor that is being read.
#[derive(Default)]
struct SliceCheck<'a> {
    rest: &'a [(u64, String)],
    /// Bytes left in the current slice.
    left: u64,
    digest: Digest,
    differs: bool,
}

impl<'a> SliceCheck<'a> {
    fn new(slices: &'a [(u64, String)]) -> Self {
        Self { rest: slices, left: slices.first().map_or(0, |slice| slice.0), ..Self::default() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while let Some(((_, expected), rest)) = self.rest.split_first() {
            let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.digest.update(&bytes[..now]);
            (bytes, self.left) = (&bytes[now..], self.left - now as u64);
            if self.left > 0 {
                return;
            }
            self.differs |= std::mem::take(&mut self.digest).finish() != *expected;
            self.rest = rest;
            self.left = rest.first().map_or(0, |slice| slice.0);
        }
    }

    fn is_equal(&self) -> bool {
        self.rest.is_empty() && !self.differs
    }
}

/// Reads `dir`/`name` from beginning to end. Tensors in `slices` are also compared slice by slice.
///
/// # Errors
/// [`Error::Io`], and the errors of [`Shard::open`].
pub(crate) fn content(dir: &Path, name: &str, slices: &Slices, progress: &Progress) -> Result<FileContent> {
    let path = dir.join(name);
    let entries = if container::of_file(name).is_some() {
        Shard::open(path.clone(), name.to_owned())?.1.entries
    } else {
        Vec::new()
    };
    let mut file = File::open(&path).map_err(Error::io("opening", &path))?;
    let (mut whole, mut bytes) = (Digest::default(), 0_u64);
    let mut tensors: Vec<(TensorEntry, String)> = Vec::with_capacity(entries.len());
    let mut stacks = Vec::new();
    let slices_of = |entry: Option<&TensorEntry>| {
        SliceCheck::new(entry.and_then(|entry| slices.get(&entry.name)).map(Vec::as_slice).unwrap_or_default())
    };
    let mut entries = entries.into_iter().peekable();
    let mut current = Digest::default();
    let mut sliced = slices_of(entries.peek());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        progress.check()?;
        // A tensor without data ends at the offset where it begins.
        while let Some(entry) = entries.next_if(|entry| entry.offset + entry.bytes == bytes) {
            let sha256 = std::mem::take(&mut current).finish();
            sliced.update(&[]);
            if slices.contains_key(&entry.name) && sliced.is_equal() {
                stacks.push((entry.name.clone(), sha256.clone()));
            }
            tensors.push((entry, sha256));
            sliced = slices_of(entries.peek());
        }
        // A read ends at or before the end of a tensor.
        let wanted = entries.peek().map_or(u64::MAX, |entry| {
            let edge = if bytes < entry.offset { entry.offset } else { entry.offset + entry.bytes };
            edge - bytes
        });
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        let read = file.read(&mut buffer[..wanted]).map_err(Error::io("reading", &path))?;
        if read == 0 {
            break;
        }
        whole.update(&buffer[..read]);
        if entries.peek().is_some_and(|entry| bytes >= entry.offset) {
            current.update(&buffer[..read]);
            sliced.update(&buffer[..read]);
        }
        bytes += read as u64;
        progress.advance(read as u64);
    }
    let file = FileDigest { name: name.to_owned(), bytes, sha256: whole.finish() };
    Ok(FileContent { file, tensors, stacks })
}

/// A difference between an output and its manifest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The tensor, if the problem concerns one.
    pub tensor: Option<String>,
    /// Description of the difference.
    pub what: String,
}

impl Problem {
    #[must_use]
    pub fn file(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), tensor: None, what: what.into() }
    }

    #[must_use]
    pub fn tensor(file: &str, tensor: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), tensor: Some(tensor.to_owned()), what: what.into() }
    }
}

/// Compares the digests of the files with `manifest`.
#[must_use]
pub(crate) fn compare(manifest: &Manifest, found: &[FileContent]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let found_files: BTreeMap<&str, &FileContent> =
        found.iter().map(|found| (found.file.name.as_str(), found)).collect();
    for expected in &manifest.files {
        match found_files.get(expected.name.as_str()) {
            None => problems.push(Problem::file(&expected.name, "is missing")),
            Some(found) if found.file.bytes != expected.bytes => {
                let what = format!("is {} bytes long, but {} bytes were written", found.file.bytes, expected.bytes);
                problems.push(Problem::file(&expected.name, what));
            }
            Some(found) if found.file.sha256 != expected.sha256 => {
                problems.push(Problem::file(&expected.name, "has another SHA-256 than the data that were written"));
            }
            Some(_) => {}
        }
    }
    let mut found_tensors: BTreeMap<&str, (&str, &TensorEntry, &str)> = BTreeMap::new();
    for file in found {
        for (entry, sha256) in &file.tensors {
            found_tensors.insert(&entry.name, (&file.file.name, entry, sha256));
        }
    }
    for expected in &manifest.tensors {
        let Some((file, entry, sha256)) = found_tensors.remove(expected.name.as_str()) else {
            problems.push(Problem::tensor(&expected.file, &expected.name, "is missing"));
            continue;
        };
        let same = file == expected.file && entry.dtype.name() == expected.dtype && entry.shape == expected.shape;
        if !same {
            let what = format!("is {} {:?}, not {} {:?}", entry.dtype, entry.shape, expected.dtype, expected.shape);
            problems.push(Problem::tensor(file, &expected.name, what));
        } else if sha256 != expected.sha256 {
            problems.push(Problem::tensor(file, &expected.name, "has another SHA-256 than the data that were written"));
        }
    }
    problems.extend(
        found_tensors.into_iter().map(|(name, (file, ..))| Problem::tensor(file, name, "is not in the manifest")),
    );
    problems
}
