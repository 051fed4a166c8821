//! The second pass: every tensor of the source read once, encoded or copied, written and hashed.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use crate::checkpoint::stream::{Pass, Reader, bands, chunk_bands, cut, rows_of};
use crate::checkpoint::{Checkpoint, Matrix, Tensor};
use crate::digest::Digest;
use crate::document::manifest::FileDigest;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::quant::{Encoded, Encoder};
use crate::rd::Noise;
use crate::scheme::Affine;
use crate::sensitivity::Measured;
use crate::writer::layout::{Location, Stored};
use crate::writer::partial::write_at;

/// What is done to one tensor of the source.
pub(super) enum Task<'a> {
    /// Read and hashed, not written.
    Skip,
    /// Copied to where its only part belongs.
    Copy(Location),
    /// Encoded into parts.
    Encode { matrix: Matrix, scheme: Affine, measured: &'a Measured, parts: &'a [Stored], locations: &'a [Location] },
}

/// What was found and written of one tensor of the source.
#[derive(Default)]
pub(super) struct Done {
    /// SHA-256 of its data.
    pub sha256: String,
    /// SHA-256 of each part that was written.
    pub parts_sha256: Vec<String>,
    /// The error of what was written.
    pub noise: Noise,
}

/// All that was read and written.
pub(super) struct Outcome {
    /// One for each tensor, in the order of the checkpoint.
    pub tensors: Vec<Done>,
    /// The source's shards.
    pub source_files: Vec<FileDigest>,
}

/// The files that are written.
pub(super) struct Target<'a> {
    pub format: &'static dyn Format,
    pub files: &'a [(File, PathBuf)],
}

/// Part of one tensor.
struct Piece {
    tensor: usize,
    range: Range<u64>,
    is_last: bool,
}

/// What a worker made of a piece.
struct Made {
    source: Vec<u8>,
    parts: Vec<Vec<u8>>,
    /// Per band, so that they are added up alike for any size of piece.
    noise: Vec<Noise>,
}

/// Does `tasks`, one for each tensor of the checkpoint, in their order.
pub(super) fn encode(pass: Pass<'_>, encoder: Encoder, target: &Target<'_>, tasks: &[Task<'_>]) -> Result<Outcome> {
    let pieces = pieces(pass, tasks);
    let mut hashing = Hashing::new(pass.checkpoint)?;
    pass.workers.in_order(
        pass.progress,
        &pieces,
        || (Reader::default(), Encoded::default()),
        |(reader, encoded), piece| {
            let tensor = &pass.checkpoint.tensors[piece.tensor];
            let made = match &tasks[piece.tensor] {
                Task::Skip => copied(pass, tensor, piece, None, target, reader)?,
                Task::Copy(location) => copied(pass, tensor, piece, Some(*location), target, reader)?,
                task @ Task::Encode { .. } => {
                    encoded_piece(pass, encoder, tensor, task, piece, target, (reader, encoded))?
                }
            };
            pass.progress.advance(made.source.len() as u64);
            Ok(made)
        },
        |piece, made| hashing.take(piece, &made),
    )?;
    hashing.finish()
}

fn pieces(pass: Pass<'_>, tasks: &[Task<'_>]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (at, (tensor, task)) in pass.checkpoint.tensors.iter().zip(tasks).enumerate() {
        let (length, step) = match task {
            Task::Encode { matrix, .. } => (bands(*matrix), chunk_bands(*matrix, pass.chunk_bytes)),
            // Whole elements, whatever the type.
            Task::Skip | Task::Copy(_) => (tensor.bytes, (pass.chunk_bytes / 8 * 8).max(8)),
        };
        let before = pieces.len();
        pieces.extend(cut(length, step).map(|range| Piece { tensor: at, range, is_last: false }));
        if pieces.len() == before {
            pieces.push(Piece { tensor: at, range: 0..0, is_last: true });
        } else if let Some(last) = pieces.last_mut() {
            last.is_last = true;
        }
    }
    pieces
}

/// Reads a piece as bytes, and writes them as they are if there is a place for them.
fn copied(
    pass: Pass<'_>,
    tensor: &Tensor,
    piece: &Piece,
    location: Option<Location>,
    target: &Target<'_>,
    reader: &mut Reader,
) -> Result<Made> {
    let source = reader.bytes(pass.checkpoint, tensor, piece.range.clone())?.to_vec();
    let mut made = Made { source, parts: Vec::new(), noise: Vec::new() };
    if let Some(location) = location {
        check_numbers(pass, tensor, piece, &made.source)?;
        let (file, path) = &target.files[location.file];
        write_at(file, path, &made.source, location.offset + piece.range.start)?;
        made.parts.push(made.source.clone());
    }
    Ok(made)
}

/// A kept weight may be infinite (masks are), but not NaN.
fn check_numbers(pass: Pass<'_>, tensor: &Tensor, piece: &Piece, source: &[u8]) -> Result<()> {
    let Some(float) = Float::of(tensor.dtype) else { return Ok(()) };
    let mut values = vec![0.0; source.len() / float.bytes()];
    float.widen(source, &mut values);
    let count = values.iter().filter(|value| value.is_nan()).count();
    let Some(first) = values.iter().position(|value| value.is_nan()) else { return Ok(()) };
    let mut index = Vec::with_capacity(tensor.shape.len());
    let mut rest = piece.range.start / float.bytes() as u64 + first as u64;
    for &size in tensor.shape.iter().rev() {
        index.push(rest % size);
        rest /= size;
    }
    index.reverse();
    let rows = (0, tensor.shape.first().copied().unwrap_or(1));
    let file = pass.checkpoint.file_of(tensor).to_owned();
    Err(Error::NonFinite { file, tensor: tensor.name.clone(), count, rows, first: index })
}

/// Encodes a piece, and writes its parts.
fn encoded_piece(
    pass: Pass<'_>,
    encoder: Encoder,
    tensor: &Tensor,
    task: &Task<'_>,
    piece: &Piece,
    target: &Target<'_>,
    (reader, encoded): (&mut Reader, &mut Encoded),
) -> Result<Made> {
    let Task::Encode { matrix, scheme, measured, parts, locations } = *task else {
        return Err(Error::Bug("a piece is encoded without a scheme".to_owned()));
    };
    let vectors = &measured.vectors;
    let mut made = Made { source: Vec::new(), parts: vec![Vec::new(); parts.len()], noise: Vec::new() };
    reader.bands(pass.checkpoint, tensor, matrix, &piece.range, |rows, band, source| {
        let count = (rows.end - rows.start) as usize;
        encoder.encode(scheme, matrix.float, band, &vectors.k, encoded);
        target.format.append(scheme, matrix.float, encoded, count, &mut made.parts);
        let errors = encoder.error(scheme, band, &vectors.k, encoded);
        made.noise.push(Noise::of(&errors[..count], &vectors.r, rows.start as usize));
        made.source.extend_from_slice(source);
        Ok(())
    })?;
    let first = rows_of(matrix, &piece.range).start;
    for ((part, location), bytes) in parts.iter().zip(locations).zip(&made.parts) {
        let (file, path) = &target.files[location.file];
        write_at(file, path, bytes, location.offset + first * (part.bytes / matrix.rows))?;
    }
    Ok(made)
}

/// Digests of tensors and files, fed in order.
struct Hashing<'a> {
    checkpoint: &'a Checkpoint,
    done: Vec<Done>,
    source: Digest,
    parts: Vec<Digest>,
    noise: Noise,
    file: Digest,
    files: Vec<FileDigest>,
}

impl<'a> Hashing<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut hashing = Self {
            checkpoint,
            done: Vec::with_capacity(checkpoint.tensors.len()),
            source: Digest::default(),
            parts: Vec::new(),
            noise: Noise::default(),
            file: Digest::default(),
            files: Vec::new(),
        };
        hashing.begin_file()?;
        Ok(hashing)
    }

    /// Takes in the header of the next shard, and of those after it that hold no tensor.
    fn begin_file(&mut self) -> Result<()> {
        let Some(shard) = self.checkpoint.shards.get(self.files.len()) else { return Ok(()) };
        let mut head = vec![0; shard.header_bytes as usize];
        crate::checkpoint::shard::read_at(&shard.file()?, &shard.path, &mut head, 0)?;
        self.file.update(&head);
        if self.checkpoint.tensors.iter().any(|tensor| tensor.shard == self.files.len()) {
            return Ok(());
        }
        self.end_file()
    }

    fn end_file(&mut self) -> Result<()> {
        let shard = &self.checkpoint.shards[self.files.len()];
        let sha256 = std::mem::take(&mut self.file).finish();
        self.files.push(FileDigest { name: shard.name.clone(), bytes: shard.bytes, sha256 });
        self.begin_file()
    }

    fn take(&mut self, piece: &Piece, made: &Made) -> Result<()> {
        self.source.update(&made.source);
        self.file.update(&made.source);
        self.parts.resize(made.parts.len(), Digest::default());
        for (digest, bytes) in self.parts.iter_mut().zip(&made.parts) {
            digest.update(bytes);
        }
        for noise in &made.noise {
            self.noise.weighted += noise.weighted;
            self.noise.plain += noise.plain;
        }
        if !piece.is_last {
            return Ok(());
        }
        self.done.push(Done {
            sha256: std::mem::take(&mut self.source).finish(),
            parts_sha256: std::mem::take(&mut self.parts).into_iter().map(Digest::finish).collect(),
            noise: std::mem::take(&mut self.noise),
        });
        let next = self.checkpoint.tensors.get(piece.tensor + 1);
        if next.is_none_or(|next| next.shard != self.checkpoint.tensors[piece.tensor].shard) {
            self.end_file()?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome> {
        if self.files.len() != self.checkpoint.shards.len() || self.done.len() != self.checkpoint.tensors.len() {
            return Err(Error::Bug("not everything was hashed".to_owned()));
        }
        Ok(Outcome { tensors: self.done, source_files: self.files })
    }
}
