//! Digests of the source: of each part, and of each file. A stage of its own, whatever else is done with the source.

use std::ops::Range;

use crate::band::cut;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::Pass;
use crate::container::file::read_at;
use crate::digest::Digest;
use crate::error::Result;
use crate::job::unit::whole_elements;
use crate::schema::manifest::FileDigest;

/// Some of the bytes of a part.
#[derive(Clone, Debug)]
pub(crate) struct DigestChunk {
    /// Of which part.
    pub part: usize,
    /// Which bytes of its data.
    pub range: Range<u64>,
    /// Whether they are the last.
    pub is_last: bool,
}

/// All of part `part`, in pieces.
#[must_use]
pub(crate) fn chunks(pass: Pass<'_>, part: usize) -> Vec<DigestChunk> {
    let mut ranges: Vec<Range<u64>> =
        cut(pass.checkpoint.parts[part].bytes, whole_elements(pass.chunk_bytes)).collect();
    if ranges.is_empty() {
        ranges.push(0..0);
    }
    let count = ranges.len();
    let chunk = |(at, range)| DigestChunk { part, range, is_last: at + 1 == count };
    ranges.into_iter().enumerate().map(chunk).collect()
}

/// Ranges of shards that are worked on side by side, of about as many bytes: a shard's digest is made by one thread at a
/// time, and should not be what all wait for.
#[must_use]
pub(crate) fn queues(pass: Pass<'_>) -> Vec<Range<usize>> {
    let shards = &pass.checkpoint.shards;
    let count = pass.workers.threads().min(shards.len()).max(1) as u64;
    let all: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let mut queues: Vec<Range<usize>> = Vec::new();
    let (mut first, mut before) = (0, 0);
    for (at, shard) in shards.iter().enumerate() {
        before += shard.bytes;
        // Each queue ends with the shard that reaches its share of the bytes.
        if before * count >= all * (queues.len() as u64 + 1) || at + 1 == shards.len() {
            queues.push(first..at + 1);
            first = at + 1;
        }
    }
    queues
}

/// Digests of some shards and their parts, fed in the order of the data.
pub(crate) struct SourceDigests<'a> {
    checkpoint: &'a Checkpoint,
    /// The shards that are still to come.
    shards: Range<usize>,
    part: Digest,
    file: Digest,
    /// SHA-256 of each part that is complete.
    pub parts_sha256: Vec<String>,
    /// Each file that is complete.
    pub files: Vec<FileDigest>,
}

impl<'a> SourceDigests<'a> {
    /// Digests of these shards. Reads their headers.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`], and [`crate::error::FileFault::Changed`].
    pub(crate) fn new(checkpoint: &'a Checkpoint, shards: Range<usize>) -> Result<Self> {
        let (part, file) = (Digest::default(), Digest::default());
        let mut digests = Self { checkpoint, shards, part, file, parts_sha256: Vec::new(), files: Vec::new() };
        digests.begin_file()?;
        Ok(digests)
    }

    /// Takes in the header of the next shard, and of those after it that hold no tensor.
    fn begin_file(&mut self) -> Result<()> {
        let Some(shard) = self.checkpoint.shards[self.shards.clone()].first() else { return Ok(()) };
        let mut head = vec![0; shard.header_bytes as usize];
        read_at(&shard.file()?, &shard.path, &mut head, 0)?;
        self.file.update(&head);
        if self.checkpoint.parts.iter().any(|part| part.shard == self.shards.start) {
            return Ok(());
        }
        self.end_file()
    }

    fn end_file(&mut self) -> Result<()> {
        let shard = &self.checkpoint.shards[self.shards.start];
        let sha256 = std::mem::take(&mut self.file).finish();
        self.files.push(FileDigest { name: shard.name.clone(), bytes: shard.bytes, sha256 });
        self.shards.start += 1;
        self.begin_file()
    }

    /// Takes in the bytes of the next chunk.
    ///
    /// # Errors
    /// Those of reading the next shard's header.
    pub(crate) fn take(&mut self, chunk: &DigestChunk, bytes: &[u8]) -> Result<()> {
        self.part.update(bytes);
        self.file.update(bytes);
        if !chunk.is_last {
            return Ok(());
        }
        self.parts_sha256.push(std::mem::take(&mut self.part).finish());
        let next = self.checkpoint.parts.get(chunk.part + 1);
        if next.is_none_or(|next| next.shard != self.checkpoint.parts[chunk.part].shard) {
            self.end_file()?;
        }
        Ok(())
    }
}
