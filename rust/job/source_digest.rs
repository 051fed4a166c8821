//! SHA-256 of each part and each file of the source, independent of any other work on the source.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::band::cut;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::Pass;
use crate::container::file::read_at;
use crate::digest::Digest;
use crate::error::Result;
use crate::job::unit::whole_elements;
use crate::journal::Journal;
use crate::schema::manifest::FileDigest;

/// A range of bytes of a part.
#[derive(Clone, Debug)]
pub(crate) struct DigestChunk {
    pub part: usize,
    pub range: Range<u64>,
    /// Whether the part ends with this chunk.
    pub is_last: bool,
}

/// All chunks of part `part`.
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

/// Splits the shards into queues of about equal bytes that are processed in parallel. One thread at a time hashes a
/// shard, so a queue should not take longer than the others.
#[must_use]
pub(crate) fn queues(pass: Pass<'_>) -> Vec<Range<usize>> {
    let shards = &pass.checkpoint.shards;
    let count = pass.workers.threads().min(shards.len()).max(1) as u64;
    let all: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let mut queues: Vec<Range<usize>> = Vec::new();
    let (mut first, mut before) = (0, 0);
    for (at, shard) in shards.iter().enumerate() {
        before += shard.bytes;
        // A queue ends with the shard that reaches its share of the bytes.
        if before * count >= all * (queues.len() as u64 + 1) || at + 1 == shards.len() {
            queues.push(first..at + 1);
            first = at + 1;
        }
    }
    queues
}

/// The digests of a shard that was read to the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ShardDigests {
    file: FileDigest,
    parts_sha256: Vec<String>,
}

/// The digests that earlier runs have recorded, by the shard's number.
pub(crate) type KnownShards = BTreeMap<usize, ShardDigests>;

fn key(name: &str) -> String {
    format!("source/{name}")
}

/// The digests of shards that earlier runs have recorded.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub(crate) fn known_shards(pass: Pass<'_>) -> Result<KnownShards> {
    let mut known = KnownShards::new();
    for (at, shard) in pass.checkpoint.shards.iter().enumerate() {
        if let Some(digests) = pass.journal.find(&key(&shard.name))? {
            known.insert(at, digests);
        }
    }
    Ok(known)
}

/// Digests of a range of shards and their parts. The chunks must be added in data order, without those of shards that are known.
pub(crate) struct SourceDigests<'a> {
    checkpoint: &'a Checkpoint,
    journal: &'a Journal,
    known: &'a KnownShards,
    /// The shards that have not begun.
    shards: Range<usize>,
    part: Digest,
    file: Digest,
    /// SHA-256 of each complete part.
    pub parts_sha256: Vec<String>,
    /// Digest of each complete file.
    pub files: Vec<FileDigest>,
}

impl<'a> SourceDigests<'a> {
    /// Starts the digests of `shards` and reads their headers.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`], and [`crate::error::FileFault::Changed`].
    pub(crate) fn new(pass: Pass<'a>, shards: Range<usize>, known: &'a KnownShards) -> Result<Self> {
        let Pass { checkpoint, journal, .. } = pass;
        let (part, file, parts_sha256, files) = Default::default();
        let mut digests = Self { checkpoint, journal, known, shards, part, file, parts_sha256, files };
        digests.begin_file()?;
        Ok(digests)
    }

    /// Hashes the header of the next shard, and of any following shards without tensors.
    fn begin_file(&mut self) -> Result<()> {
        let Some(shard) = self.checkpoint.shards[self.shards.clone()].first() else { return Ok(()) };
        if let Some(known) = self.known.get(&self.shards.start) {
            self.parts_sha256.extend_from_slice(&known.parts_sha256);
            self.files.push(known.file.clone());
            self.shards.start += 1;
            return self.begin_file();
        }
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
        let file = FileDigest { name: shard.name.clone(), bytes: shard.bytes, sha256 };
        let parts = self.checkpoint.parts.iter().filter(|part| part.shard == self.shards.start).count();
        let parts_sha256 = self.parts_sha256[self.parts_sha256.len() - parts..].to_vec();
        self.journal.put(&key(&shard.name), &ShardDigests { file: file.clone(), parts_sha256 })?;
        self.files.push(file);
        self.shards.start += 1;
        self.begin_file()
    }

    /// Adds the bytes of the next chunk.
    ///
    /// # Errors
    /// The errors of reading the next shard's header.
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
