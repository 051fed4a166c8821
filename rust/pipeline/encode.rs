//! The second pass: all of the source read, encoded or copied, written and hashed.
//!
//! Parts are taken in the order of the files, so that these are read from the beginning to the end and their digests come
//! along. A part that becomes one matrix of the output as it is stored is read once, for its digest and its codes; what is
//! packed, fused or transposed is read for its digest first, and then again, from memory by now, view by view.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use crate::checkpoint::prequantized::{Packing, Use};
use crate::checkpoint::stream::{Pass, Reader, bands, chunk_bands, cut, rows_of};
use crate::checkpoint::view::unravel;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::encoder::{Encoded, Encoder};
use crate::digest::Digest;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::{Format, Target};
use crate::pool::Queue;
use crate::progress::Stage;
use crate::rate_distortion::Noise;
use crate::schema::manifest::FileDigest;
use crate::scheme::{Affine, Packed};
use crate::sensitivity::MatrixSensitivity;
use crate::simd::vector::BAND_ROWS;
use crate::writer::layout::{Location, Stored};
use crate::writer::partial::write_at;

/// What is done to one target.
pub(super) struct Task<'a> {
    pub target: &'a Target,
    pub way: Way<'a>,
    /// The tensors it is stored in, and where they belong.
    pub parts: &'a [Stored],
    pub locations: &'a [Location],
}

impl Task<'_> {
    /// Bytes of one row of `part`, one of the task's.
    fn row_bytes(&self, part: &Stored) -> u64 {
        let rows: u64 = self.target.views.iter().map(|view| view.rows).sum();
        part.bytes.checked_div(rows).unwrap_or(0)
    }
}

/// How a target is stored.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// Byte for byte.
    Copied,
    /// As numbers.
    Plain,
    /// As the source packs it.
    Packed(Packed, Float),
    /// Encoded, each matrix by its sensitivity.
    Encoded(Affine, Float, &'a [MatrixSensitivity]),
}

/// What was found and written of one view.
#[derive(Clone, Default)]
pub(super) struct Done {
    /// SHA-256 of its share of each part.
    pub parts_sha256: Vec<String>,
    /// The error of what was written.
    pub noise: Noise,
}

/// All that was read and written.
pub(super) struct Outcome {
    /// SHA-256 of the data of each part of the checkpoint, in their order.
    pub parts_sha256: Vec<String>,
    /// For each target, what was written of each view.
    pub targets: Vec<Vec<Done>>,
    /// The source's shards.
    pub source_files: Vec<FileDigest>,
}

/// The files that are written.
pub(super) struct Output<'a> {
    pub format: &'static dyn Format,
    pub files: &'a [(File, PathBuf)],
}

/// A view, by its target and its place there.
type At = (usize, usize);

/// What is done at a time.
struct Piece {
    part: usize,
    work: Work,
    /// Whether the part's bytes are hashed here, and whether these are the last of them.
    hashes: Option<bool>,
    /// How many bytes, for the progress.
    bytes: u64,
}

enum Work {
    /// Bytes of the part are read, and nothing else.
    Read(Range<u64>),
    /// Bytes of the part are copied.
    Copy { at: At, range: Range<u64>, is_last: bool },
    /// Bands of a view are encoded.
    Bands { at: At, bands: Range<u64>, is_last: bool },
    /// Rows of a view are written as they are.
    Rows { at: At, rows: Range<u64>, is_last: bool },
}

impl Work {
    /// The view that is worked on, and whether that is the last of it.
    fn view(&self) -> Option<(At, bool)> {
        match *self {
            Self::Read(_) => None,
            Self::Copy { at, is_last, .. } | Self::Bands { at, is_last, .. } | Self::Rows { at, is_last, .. } => {
                Some((at, is_last))
            }
        }
    }
}

/// What a worker made of a piece.
#[derive(Default)]
struct Made {
    source: Vec<u8>,
    parts: Vec<Vec<u8>>,
    /// Per band, so that they are added up alike for any size of piece.
    noise: Vec<Noise>,
}

/// What all pieces need.
struct Job<'a> {
    pass: Pass<'a>,
    encoder: Encoder,
    output: &'a Output<'a>,
    tasks: &'a [Task<'a>],
    /// For each target, which of its rows is the first of each view.
    first_rows: Vec<Vec<u64>>,
}

/// Does `tasks`.
pub(super) fn encode(pass: Pass<'_>, encoder: Encoder, output: &Output<'_>, tasks: &[Task<'_>]) -> Result<Outcome> {
    let first_rows = tasks
        .iter()
        .map(|task| {
            let rows = task.target.views.iter().scan(0, |next, view| Some(std::mem::replace(next, *next + view.rows)));
            rows.collect()
        })
        .collect();
    let job = Job { pass, encoder, output, tasks, first_rows };
    let pieces = job.pieces();
    pass.progress.begin(Stage::Encode, pieces.iter().map(|piece| piece.bytes).sum());
    let lanes = lanes(pass);
    let mut hashings = Vec::with_capacity(lanes.len());
    for shards in &lanes {
        hashings.push(Hashing::new(pass.checkpoint, shards.clone())?);
    }
    let mut of_lane: Vec<Vec<Piece>> = lanes.iter().map(|_| Vec::new()).collect();
    for piece in pieces {
        let shard = pass.checkpoint.parts[piece.part].shard;
        let lane = lanes.iter().position(|shards| shards.contains(&shard));
        of_lane[lane.unwrap_or_default()].push(piece);
    }
    let lane = |(pieces, hashing): (Vec<Piece>, _)| {
        let hashing: &mut Hashing<'_> = hashing;
        Queue { pieces, consume: |piece: &Piece, made| hashing.take(piece, made) }
    };
    pass.workers.in_lanes(
        pass.progress,
        of_lane.into_iter().zip(&mut hashings).map(lane).collect(),
        || (Reader::default(), Encoded::default()),
        |(reader, encoded), piece| {
            let made = job.made(piece, reader, encoded)?;
            pass.progress.advance(piece.bytes);
            Ok(made)
        },
    )?;
    outcome(pass.checkpoint, tasks, hashings)
}

/// Ranges of shards that are worked on side by side, of about as many bytes: a shard's digest is made by one thread at a
/// time, and should not be what all wait for.
fn lanes(pass: Pass<'_>) -> Vec<Range<usize>> {
    let shards = &pass.checkpoint.shards;
    let count = pass.workers.threads().min(shards.len()).max(1) as u64;
    let all: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let mut lanes: Vec<Range<usize>> = Vec::new();
    let (mut first, mut before) = (0, 0);
    for (at, shard) in shards.iter().enumerate() {
        before += shard.bytes;
        // Each lane ends with the shard that reaches its share of the bytes.
        if before * count >= all * (lanes.len() as u64 + 1) || at + 1 == shards.len() {
            lanes.push(first..at + 1);
            first = at + 1;
        }
    }
    lanes
}

/// What was found in all lanes.
fn outcome(checkpoint: &Checkpoint, tasks: &[Task<'_>], hashings: Vec<Hashing<'_>>) -> Result<Outcome> {
    let mut targets: Vec<Vec<Option<Done>>> =
        tasks.iter().map(|task| task.target.views.iter().map(|_| None).collect()).collect();
    let (mut parts_sha256, mut source_files) = (Vec::new(), Vec::new());
    for hashing in hashings {
        parts_sha256.extend(hashing.parts_sha256);
        source_files.extend(hashing.files);
        for (at, done) in hashing.done {
            targets[at.0][at.1] = Some(done);
        }
    }
    let targets: Option<Vec<Vec<Done>>> = targets.into_iter().map(|views| views.into_iter().collect()).collect();
    let complete = source_files.len() == checkpoint.shards.len() && parts_sha256.len() == checkpoint.parts.len();
    match targets.filter(|_| complete) {
        Some(targets) => Ok(Outcome { parts_sha256, targets, source_files }),
        None => Err(Error::Bug("not everything was hashed".to_owned())),
    }
}

impl Job<'_> {
    fn view(&self, at: At) -> View {
        self.tasks[at.0].target.views[at.1]
    }

    /// All pieces, in the order of the parts.
    fn pieces(&self) -> Vec<Piece> {
        let checkpoint = self.pass.checkpoint;
        let mut views: Vec<Vec<At>> = vec![Vec::new(); checkpoint.tensors.len()];
        for (target, task) in self.tasks.iter().enumerate() {
            for (at, view) in task.target.views.iter().enumerate() {
                views[view.tensor].push((target, at));
            }
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for (part, found) in checkpoint.parts.iter().enumerate() {
            let (tensor, views) = match checkpoint.uses[part] {
                Use::Elements(tensor) => (Some(&checkpoint.tensors[tensor]), views[tensor].as_slice()),
                Use::Beside(_) | Use::None(_) => (None, [].as_slice()),
            };
            let as_stored = |at: &At| {
                let is_whole = |tensor: &Tensor| tensor.packing == Packing::Plain && self.view(*at).is_whole(tensor);
                tensor.is_some_and(is_whole)
            };
            let alone = matches!(views, [only] if as_stored(only));
            let before = pieces.len();
            if alone {
                self.work_on(part, views[0], true, &mut pieces);
            } else {
                // Whole elements, whatever the type.
                let step = (self.pass.chunk_bytes / 8 * 8).max(8);
                pieces.extend(cut(found.bytes, step).map(|range| Piece {
                    part,
                    bytes: range.end - range.start,
                    work: Work::Read(range),
                    hashes: Some(false),
                }));
                if pieces.len() == before {
                    pieces.push(Piece { part, bytes: 0, work: Work::Read(0..0), hashes: Some(false) });
                }
            }
            if let Some(last) = pieces[before..].last_mut() {
                last.hashes = Some(true);
            }
            for at in views.iter().filter(|_| !alone) {
                self.work_on(part, *at, false, &mut pieces);
            }
        }
        pieces
    }

    /// Adds the work on view `at`, which hashes the part's bytes on the way or does not.
    fn work_on(&self, part: usize, at: At, hashes: bool, pieces: &mut Vec<Piece>) {
        let (view, task) = (self.view(at), &self.tasks[at.0]);
        let tensor = &self.pass.checkpoint.tensors[view.tensor];
        let row_bytes = (view.cols * tensor.dtype.bits() / 8).max(1);
        let chunk = self.pass.chunk_bytes;
        let matrix = view.matrix(self.pass.checkpoint);
        let (length, step, unit) = match (task.way, matrix) {
            (Way::Copied, _) => (tensor.bytes, (chunk / 8 * 8).max(8), 1),
            (Way::Encoded(..), Some(matrix)) => {
                (bands(matrix), chunk_bands(matrix, chunk), row_bytes * BAND_ROWS as u64)
            }
            _ => (view.rows, (chunk / row_bytes).max(1), row_bytes),
        };
        let mut ranges: Vec<Range<u64>> = cut(length, step).collect();
        if ranges.is_empty() {
            ranges.push(0..0);
        }
        let count = ranges.len();
        for (number, range) in ranges.into_iter().enumerate() {
            let (bytes, is_last) = ((range.end - range.start) * unit, number + 1 == count);
            let work = match task.way {
                Way::Copied => Work::Copy { at, range, is_last },
                Way::Encoded(..) => Work::Bands { at, bands: range, is_last },
                Way::Plain | Way::Packed(..) => Work::Rows { at, rows: range, is_last },
            };
            pieces.push(Piece { part, work, hashes: hashes.then_some(false), bytes });
        }
    }

    fn made(&self, piece: &Piece, reader: &mut Reader, encoded: &mut Encoded) -> Result<Made> {
        match &piece.work {
            Work::Read(range) => {
                let checkpoint = self.pass.checkpoint;
                let source = reader.stored(checkpoint, &checkpoint.parts[piece.part], range.clone())?.to_vec();
                Ok(Made { source, ..Made::default() })
            }
            Work::Copy { at, range, .. } => self.copied(*at, range, reader),
            Work::Bands { at, bands, .. } => self.encoded(*at, bands, piece.hashes.is_some(), (reader, encoded)),
            Work::Rows { at, rows, .. } => self.rows(*at, rows, piece.hashes.is_some(), reader),
        }
    }

    /// Reads bytes, and writes them as they are.
    fn copied(&self, at: At, range: &Range<u64>, reader: &mut Reader) -> Result<Made> {
        let tensor = &self.pass.checkpoint.tensors[self.view(at).tensor];
        let source = reader.bytes(self.pass.checkpoint, tensor, range.clone())?.to_vec();
        let first = range.start / (tensor.dtype.bits() / 8).max(1);
        check_numbers(self.pass.checkpoint, tensor, &source, |element| first + element)?;
        let location = self.tasks[at.0].locations[0];
        let (file, path) = &self.output.files[location.file];
        write_at(file, path, &source, location.offset + range.start)?;
        Ok(Made { parts: vec![source.clone()], source, noise: Vec::new() })
    }

    /// Writes rows of a view as numbers, or as the source packs them.
    fn rows(&self, at: At, rows: &Range<u64>, hashes: bool, reader: &mut Reader) -> Result<Made> {
        let task = &self.tasks[at.0];
        let mut made = kept_rows(self.pass.checkpoint, self.output.format, task, at.1, rows, reader)?;
        if !hashes {
            made.source.clear();
        }
        self.put(at, rows.start, &made.parts)?;
        Ok(made)
    }

    /// Encodes bands of a view, and writes their parts.
    fn encoded(
        &self,
        at: At,
        bands: &Range<u64>,
        hashes: bool,
        (reader, encoded): (&mut Reader, &mut Encoded),
    ) -> Result<Made> {
        let (view, task, checkpoint) = (self.view(at), &self.tasks[at.0], self.pass.checkpoint);
        let Way::Encoded(scheme, store, measured) = task.way else {
            return Err(Error::Bug("a piece is encoded without a scheme".to_owned()));
        };
        let vectors = &measured[at.1].vectors;
        let matrix = view.matrix(checkpoint).ok_or_else(|| Error::Bug("a piece of what is no matrix".to_owned()))?;
        let all = rows_of(matrix, bands);
        let room = |part: &Stored| Vec::with_capacity((task.row_bytes(part) * (all.end - all.start)) as usize);
        let mut made = Made { parts: task.parts.iter().map(room).collect(), ..Made::default() };
        reader.bands((checkpoint, self.pass.isa), view, bands, |rows, band, source| {
            let count = (rows.end - rows.start) as usize;
            self.encoder.encode(scheme, store, (source, band), &vectors.importance, encoded);
            self.output.format.append(self.pass.isa, (scheme, store), encoded, count, &mut made.parts);
            let errors = self.encoder.error(scheme, band, &vectors.importance, encoded);
            made.noise.push(Noise::of(&errors[..count], &vectors.gain, rows.start as usize));
            if hashes {
                made.source.extend_from_slice(source);
            }
            Ok(())
        })?;
        self.put(at, all.start, &made.parts)?;
        Ok(made)
    }

    /// Writes what was made of rows of a view, from row `first` on, to where they belong.
    fn put(&self, at: At, first: u64, made: &[Vec<u8>]) -> Result<()> {
        let task = &self.tasks[at.0];
        for ((part, location), bytes) in task.parts.iter().zip(task.locations).zip(made) {
            let (file, path) = &self.output.files[location.file];
            let place = (self.first_rows[at.0][at.1] + first) * task.row_bytes(part);
            write_at(file, path, bytes, location.offset + place)?;
        }
        Ok(())
    }
}

/// A kept weight may be infinite (masks are), but not NaN; what codes decode to may be neither. `place` is where in the
/// tensor an element of `source` is.
fn check_numbers(checkpoint: &Checkpoint, tensor: &Tensor, source: &[u8], place: impl Fn(u64) -> u64) -> Result<()> {
    let Some(float) = Float::of(tensor.dtype) else { return Ok(()) };
    let mut values = vec![0.0; source.len() / float.bytes()];
    float.widen(source, &mut values);
    let wrong = |value: &f32| if tensor.packing == Packing::Plain { value.is_nan() } else { !value.is_finite() };
    let count = values.iter().filter(|value| wrong(value)).count();
    let Some(first) = values.iter().position(wrong) else { return Ok(()) };
    let first = unravel(&tensor.shape, place(first as u64));
    let rows = (0, tensor.shape.first().copied().unwrap_or(1));
    let file = checkpoint.file_of(tensor).to_owned();
    Err(Error::NonFinite { file, tensor: tensor.name.clone(), count, rows, first })
}

/// Rows of view `at` of a target that is kept in another form than the source's: as numbers, or as the source packs them.
fn kept_rows(
    checkpoint: &Checkpoint,
    format: &dyn Format,
    task: &Task<'_>,
    at: usize,
    rows: &Range<u64>,
    reader: &mut Reader,
) -> Result<Made> {
    let view = task.target.views[at];
    let tensor = &checkpoint.tensors[view.tensor];
    let mut made = Made { parts: vec![Vec::new(); task.parts.len()], ..Made::default() };
    if let Way::Packed(packed, float) = task.way {
        let (codes, scales) = reader.packed_rows(checkpoint, view, rows)?;
        format.append_packed(packed, float, &codes, &scales, &mut made.parts);
        return Ok(made);
    }
    let bytes = reader.rows(checkpoint, view, rows)?.to_vec();
    let cols = view.cols.max(1);
    let place =
        |element: u64| view.offset + (rows.start + element / cols) * view.row_stride + element % cols * view.col_stride;
    check_numbers(checkpoint, tensor, &bytes, place)?;
    if let Some(float) = Float::of(tensor.dtype).filter(|_| task.target.adds_one) {
        let mut values = vec![0.0; bytes.len() / float.bytes()];
        float.widen(&bytes, &mut values);
        for value in &mut values {
            *value += 1.0;
        }
        float.append(&values, &mut made.parts[0]);
    } else {
        made.parts[0].clone_from(&bytes);
    }
    made.source = bytes;
    Ok(made)
}

/// SHA-256 of each part of a target that is kept, made again from the source.
pub(super) fn kept_digests(pass: Pass<'_>, format: &dyn Format, task: &Task<'_>) -> Result<Vec<String>> {
    let mut digests = vec![Digest::default(); task.parts.len()];
    let mut reader = Reader::default();
    for (at, view) in task.target.views.iter().enumerate() {
        let step = (pass.chunk_bytes / (4 * view.cols.max(1))).max(1);
        for rows in cut(view.rows, step) {
            pass.progress.check()?;
            let made = kept_rows(pass.checkpoint, format, task, at, &rows, &mut reader)?;
            digests.iter_mut().zip(&made.parts).for_each(|(digest, bytes)| digest.update(bytes));
        }
    }
    Ok(digests.into_iter().map(Digest::finish).collect())
}

/// Digests of some shards, their parts and the views made of them, fed in order.
struct Hashing<'a> {
    checkpoint: &'a Checkpoint,
    /// The shards that are still to come.
    shards: Range<usize>,
    parts_sha256: Vec<String>,
    done: Vec<(At, Done)>,
    source: Digest,
    parts: Vec<Digest>,
    noise: Noise,
    file: Digest,
    files: Vec<FileDigest>,
}

impl<'a> Hashing<'a> {
    fn new(checkpoint: &'a Checkpoint, shards: Range<usize>) -> Result<Self> {
        let mut hashing = Self {
            checkpoint,
            shards,
            parts_sha256: Vec::new(),
            done: Vec::new(),
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
        let Some(shard) = self.checkpoint.shards[self.shards.clone()].first() else { return Ok(()) };
        let mut head = vec![0; shard.header_bytes as usize];
        crate::checkpoint::shard::read_at(&shard.file()?, &shard.path, &mut head, 0)?;
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

    fn take(&mut self, piece: &Piece, made: Made) -> Result<()> {
        if let Some((at, is_last)) = piece.work.view() {
            self.parts.resize(made.parts.len(), Digest::default());
            for (digest, bytes) in self.parts.iter_mut().zip(&made.parts) {
                digest.update(bytes);
            }
            for noise in made.noise {
                self.noise.add(noise);
            }
            if is_last {
                let parts_sha256 = std::mem::take(&mut self.parts).into_iter().map(Digest::finish).collect();
                self.done.push((at, Done { parts_sha256, noise: std::mem::take(&mut self.noise) }));
            }
        }
        let Some(is_last) = piece.hashes else { return Ok(()) };
        self.source.update(&made.source);
        self.file.update(&made.source);
        if !is_last {
            return Ok(());
        }
        self.parts_sha256.push(std::mem::take(&mut self.source).finish());
        let next = self.checkpoint.parts.get(piece.part + 1);
        if next.is_none_or(|next| next.shard != self.checkpoint.parts[piece.part].shard) {
            self.end_file()?;
        }
        Ok(())
    }
}
