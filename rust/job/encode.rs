//! The second pass: writes every unit and hashes every byte of the source.
//!
//! Digests and units are independent pieces of work, and each reads the source for itself. They are queued in the order of
//! the source data, so that files are read from beginning to end, and the second read of a byte range is served by the page
//! cache.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use super::part::JobPart;
use super::rebuild::Differences;
use super::source_digest::{self, DigestChunk, KnownShards, SourceDigests};
use super::unit::{self, RecordFold, UnitChunk, UnitId, UnitRecord, UnitSpan, WriteJob};
use super::unit_journal::{FinishedUnits, UnitJournal};
use crate::band::{cut, rows_of};
use crate::checkpoint::prequantized::{Packing, PartUse};
use crate::checkpoint::stream::{Pass, Reader};
use crate::checkpoint::view::unravel;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::{Band, Encoder, Metric, PassedRows, Scheme, Scratch};
use crate::container::file::write_at;
use crate::container::{Location, StoredTensor};
use crate::digest::Digest;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::pool::Queue;
use crate::progress::Stage;
use crate::rate_distortion::Noise;
use crate::schema::manifest::FileDigest;
use crate::sensitivity::MatrixSensitivity;

/// How an output tensor is stored.
#[derive(Clone, Copy)]
pub(crate) enum StoreMode<'a> {
    /// Copied byte for byte.
    Copied,
    /// Written as plain numbers, in another order or under another name.
    Converted,
    /// Passed through in the prequantized form of the source.
    PassedThrough(Scheme, Float),
    /// Encoded, with one sensitivity per matrix.
    Encoded(Scheme, Float, &'a [MatrixSensitivity]),
}

/// The records and digests of a pass.
pub(crate) struct EncodedOutput {
    /// SHA-256 of the data of each source part, in checkpoint order.
    pub parts_sha256: Vec<String>,
    /// For each output, the records of its units.
    pub records: Vec<Vec<UnitRecord>>,
    /// Digests of the source's shards.
    pub source_files: Vec<FileDigest>,
}

/// One piece of work.
enum Work {
    Digest(DigestChunk),
    Unit(UnitChunk),
}

struct Piece {
    work: Work,
    /// Bytes that the progress counts for this piece.
    bytes: u64,
}

/// The stored data and errors of a chunk.
#[derive(Default)]
pub(crate) struct WrittenChunk {
    /// Bytes of each part.
    pub parts: Vec<Vec<u8>>,
    /// One entry per band, so that the sum does not depend on the chunk size.
    pub noise: Vec<Noise>,
}

/// The result of a piece of work.
enum Done {
    Bytes(Vec<u8>),
    Written(WrittenChunk),
}

/// Writes the units of an output.
pub(crate) struct Writer<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) encoder: Encoder,
    pub(super) files: &'a [(File, PathBuf)],
    pub(super) jobs: &'a [WriteJob<'a>],
    pub(super) units: UnitJournal<'a>,
    /// The units that are written.
    selection: Selection,
    /// Where differences go, if the units are compared with what is stored, and not written.
    differences: Option<&'a Differences>,
    /// For each output, the first row of each view.
    first_rows: Vec<Vec<u64>>,
}

/// Which units of a job are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Selection {
    All,
    Part(JobPart),
    /// About this share of them: those whose name and view have a small SHA-256.
    Sample(f64),
}

/// Where a unit's rows of one part are.
pub(super) struct RowsPlace {
    pub file: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// Writes the outputs of `writer`, except for the units that are `finished`. Returns `None` for a part of the job, whose
/// records are in the journal, and for a comparison.
///
/// # Errors
/// The errors of reading and writing, and [`Error::NonFinite`].
pub(crate) fn encode(writer: &Writer<'_>, finished: FinishedUnits) -> Result<Option<EncodedOutput>> {
    let pass = writer.pass;
    writer.write_fixed_parts()?;
    let mut known = source_digest::known_shards(pass)?;
    for shard in (0..pass.checkpoint.shards.len()).filter(|shard| !writer.has_shard(*shard)) {
        known.entry(shard).or_default();
    }
    let ranges = source_digest::queues(pass);
    let mut queues: Vec<Vec<Piece>> = ranges.iter().map(|_| Vec::new()).collect();
    let units = writer.units_by_tensor(&finished);
    for part in 0..pass.checkpoint.parts.len() {
        let shard = pass.checkpoint.parts[part].shard;
        let queue = ranges.iter().position(|shards| shards.contains(&shard)).unwrap_or_default();
        writer.pieces(part, &units, &known, &mut queues[queue]);
    }
    pass.progress.begin(Stage::Encode, queues.iter().flatten().map(|piece| piece.bytes).sum());
    let mut folds = Vec::with_capacity(ranges.len());
    for shards in ranges {
        folds.push((SourceDigests::new(pass, shards, &known)?, RecordFold::default()));
    }
    let queue = |(pieces, fold): (Vec<Piece>, _)| {
        let (digests, records): &mut (SourceDigests<'_>, RecordFold) = fold;
        let consume = |piece: &Piece, done| {
            match (&piece.work, done) {
                (Work::Digest(chunk), Done::Bytes(bytes)) => digests.take(chunk, &bytes)?,
                (Work::Unit(chunk), Done::Written(made)) => {
                    if let Some(record) = records.take(chunk, &made) {
                        writer.units.add(chunk.id, Some(record))?;
                    }
                }
                _ => return Err(Error::Bug("a piece of work returned a result of another kind".to_owned())),
            }
            Ok(())
        };
        Queue { pieces, consume }
    };
    pass.workers.in_queues(
        pass.progress,
        queues.into_iter().zip(&mut folds).map(queue).collect(),
        || (Reader::default(), Scratch::default()),
        |(reader, scratch), piece| {
            let done = match &piece.work {
                Work::Digest(DigestChunk { part, range, .. }) => {
                    let part = &pass.checkpoint.parts[*part];
                    Done::Bytes(reader.stored(pass.checkpoint, part, range.clone())?.to_vec())
                }
                Work::Unit(chunk) => Done::Written(writer.write_chunk(chunk, reader, scratch)?),
            };
            pass.progress.advance(piece.bytes);
            Ok(done)
        },
    )?;
    writer.units.commit()?;
    let is_whole = writer.selection == Selection::All && !writer.is_comparing();
    if is_whole { collect(writer, finished, folds).map(Some) } else { Ok(None) }
}

/// Collects the results of all queues.
fn collect(
    writer: &Writer<'_>,
    finished: FinishedUnits,
    folds: Vec<(SourceDigests<'_>, RecordFold)>,
) -> Result<EncodedOutput> {
    let checkpoint = writer.pass.checkpoint;
    let mut records: Vec<Vec<Option<UnitRecord>>> =
        writer.jobs.iter().map(|job| job.target.views.iter().map(|_| None).collect()).collect();
    for (UnitId { output, view }, record) in finished {
        records[output][view] = Some(record);
    }
    let (mut parts_sha256, mut source_files) = (Vec::new(), Vec::new());
    for (digests, found) in folds {
        parts_sha256.extend(digests.parts_sha256);
        source_files.extend(digests.files);
        for (UnitId { output, view }, record) in found.records() {
            records[output][view] = Some(record);
        }
    }
    let records: Option<Vec<Vec<UnitRecord>>> = records.into_iter().map(|views| views.into_iter().collect()).collect();
    let complete = source_files.len() == checkpoint.shards.len() && parts_sha256.len() == checkpoint.parts.len();
    match records.filter(|_| complete) {
        Some(records) => Ok(EncodedOutput { parts_sha256, records, source_files }),
        None => Err(Error::Bug("some parts were not written or hashed".to_owned())),
    }
}

impl<'a> Writer<'a> {
    /// A writer of some units of the plan whose schemes have the digest `plan`.
    pub(crate) fn new(
        pass: Pass<'a>,
        (encoder, plan, selection): (Encoder, &str, Selection),
        files: &'a [(File, PathBuf)],
        jobs: &'a [WriteJob<'a>],
    ) -> Self {
        let first_rows = |job: &WriteJob<'_>| {
            let views = job.target.views.iter();
            views.scan(0, |next, view| Some(std::mem::replace(next, *next + view.rows))).collect()
        };
        let part = match selection {
            Selection::Part(part) => Some(part),
            Selection::All | Selection::Sample(_) => None,
        };
        let units = UnitJournal::new(pass.journal, (plan, part), files);
        let first_rows = jobs.iter().map(first_rows).collect();
        Self { pass, encoder, files, jobs, units, selection, differences: None, first_rows }
    }

    /// Whether units are compared with what is stored: only what is the output's may be put there.
    pub(super) fn is_comparing(&self) -> bool {
        self.differences.is_some()
    }

    /// The same, which compares the units with what is stored, and adds to `differences`.
    pub(crate) fn comparing(self, differences: &'a Differences) -> Self {
        Self { differences: Some(differences), ..self }
    }

    /// The units that are written, in order.
    pub(crate) fn own_units(&self) -> BTreeSet<UnitId> {
        let cost = |view: &View| view.rows * view.cols;
        let total: u64 = self.jobs.iter().flat_map(|job| job.target.views.iter().map(cost)).sum();
        let (mut own, mut before) = (BTreeSet::new(), 0);
        for (output, job) in self.jobs.iter().enumerate() {
            for (view, found) in job.target.views.iter().enumerate() {
                let is_own = match self.selection {
                    Selection::All => true,
                    Selection::Part(part) => part.has(before + cost(found) / 2, total),
                    Selection::Sample(share) => is_sampled(&job.target.name, view, share),
                };
                if is_own {
                    own.insert(UnitId { output, view });
                }
                before += cost(found);
            }
        }
        own
    }

    /// Whether the digests of shard `shard` are computed.
    fn has_shard(&self, shard: usize) -> bool {
        let count = self.pass.checkpoint.shards.len() as u64;
        match self.selection {
            // What was written says what was read.
            _ if self.is_comparing() => false,
            Selection::All => true,
            Selection::Part(part) => part.has(2 * shard as u64 + 1, 2 * count),
            Selection::Sample(_) => false,
        }
    }

    /// Writes `bytes` of part `part` of output `output` from `offset` of the part on, or compares them with what is stored.
    fn put(&self, (output, part): (usize, usize), offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(differences) = self.differences {
            return differences.compare(self, (output, part), (offset, bytes));
        }
        let location = self.jobs[output].locations[part];
        let (file, path) = &self.files[location.file];
        write_at(file, path, bytes, location.offset + offset)
    }

    /// The places of unit `id`, of no bytes for a part whose size does not depend on the rows.
    pub(super) fn places(&self, id: UnitId) -> Vec<RowsPlace> {
        let job = &self.jobs[id.output];
        let (height, rows) = (job.target.rows(), self.view(id).rows);
        let place = |(part, location): (&StoredTensor, &Location)| {
            let row_bytes = part.row_bytes(height);
            let offset = location.offset + self.first_rows[id.output][id.view] * row_bytes;
            RowsPlace { file: location.file, offset, bytes: rows * row_bytes }
        };
        job.parts.iter().zip(job.locations).map(place).collect()
    }

    fn view(&self, id: UnitId) -> View {
        self.jobs[id.output].target.views[id.view]
    }

    /// For each source tensor, the units that read it and are not `finished`.
    fn units_by_tensor(&self, finished: &FinishedUnits) -> Vec<Vec<UnitId>> {
        let mut units: Vec<Vec<UnitId>> = vec![Vec::new(); self.pass.checkpoint.tensors.len()];
        for id in self.own_units().into_iter().filter(|id| !finished.contains_key(id)) {
            units[self.view(id).tensor].push(id);
        }
        units
    }

    /// Appends the digest of part `part` to `pieces`, if it is not `known`, and the units of the tensor whose elements it
    /// holds. If one unit copies or encodes the whole part as it is stored, the pieces of both are interleaved.
    fn pieces(&self, part: usize, units: &[Vec<UnitId>], known: &KnownShards, pieces: &mut Vec<Piece>) {
        let checkpoint = self.pass.checkpoint;
        let unit = |chunk: UnitChunk| Piece { bytes: chunk.bytes, work: Work::Unit(chunk) };
        let (tensor, units) = match checkpoint.uses[part] {
            PartUse::Elements(tensor) => (Some(&checkpoint.tensors[tensor]), units[tensor].as_slice()),
            PartUse::Companion(_) | PartUse::Unused(_) => (None, [].as_slice()),
        };
        let chunks =
            |id: UnitId, tensor: &Tensor| unit::chunks(self.pass, id, &self.jobs[id.output], self.view(id), tensor);
        let is_known = known.contains_key(&checkpoint.parts[part].shard);
        if let (Some(tensor), [only], false) = (tensor, units, is_known)
            && tensor.packing == Packing::Plain
            && self.view(*only).is_whole(tensor)
        {
            let mut read = 0;
            for chunk in chunks(*only, tensor) {
                // The last band may have fewer rows than it counts for.
                let range = read..(read + chunk.bytes).min(tensor.bytes);
                read = range.end;
                let digest = DigestChunk { part, range, is_last: chunk.is_last };
                pieces.push(Piece { work: Work::Digest(digest), bytes: 0 });
                pieces.push(unit(chunk));
            }
            return;
        }
        let digest =
            |chunk: DigestChunk| Piece { bytes: chunk.range.end - chunk.range.start, work: Work::Digest(chunk) };
        if !is_known {
            pieces.extend(source_digest::chunks(self.pass, part).into_iter().map(digest));
        }
        for (id, tensor) in units.iter().filter_map(|id| Some((*id, tensor?))) {
            pieces.extend(chunks(id, tensor).into_iter().map(unit));
        }
    }

    fn write_chunk(&self, chunk: &UnitChunk, reader: &mut Reader, scratch: &mut Scratch) -> Result<WrittenChunk> {
        match &chunk.span {
            UnitSpan::Bytes(range) => self.copy(chunk.id, range, reader),
            UnitSpan::Bands(bands) => self.encode_bands(chunk.id, bands, reader, scratch),
            UnitSpan::Rows(rows) => {
                let job = &self.jobs[chunk.id.output];
                let parts = kept_rows(self.pass.checkpoint, job, chunk.id.view, rows, reader)?;
                self.write_rows(chunk.id, rows.start, &parts)?;
                Ok(WrittenChunk { parts, noise: Vec::new() })
            }
        }
    }

    /// Copies bytes of the source unchanged.
    fn copy(&self, id: UnitId, range: &Range<u64>, reader: &mut Reader) -> Result<WrittenChunk> {
        let tensor = &self.pass.checkpoint.tensors[self.view(id).tensor];
        let source = reader.bytes(self.pass.checkpoint, tensor, range.clone())?;
        let first = range.start / (tensor.dtype.bits() / 8).max(1);
        check_numbers(self.pass.checkpoint, tensor, source, |element| first + element)?;
        self.put((id.output, 0), range.start, source)?;
        Ok(WrittenChunk { parts: vec![source.to_vec()], noise: Vec::new() })
    }

    /// Encodes bands of a unit and writes their parts.
    fn encode_bands(
        &self,
        id: UnitId,
        bands: &Range<u64>,
        reader: &mut Reader,
        scratch: &mut Scratch,
    ) -> Result<WrittenChunk> {
        let (view, job, checkpoint) = (self.view(id), &self.jobs[id.output], self.pass.checkpoint);
        let StoreMode::Encoded(scheme, float, sensitivities) = job.mode else {
            return Err(Error::Bug("a chunk of bands belongs to an output without a scheme".to_owned()));
        };
        let vectors = &sensitivities[id.view].vectors;
        let metric = Metric::diagonal(&vectors.importance);
        let matrix = view
            .matrix(checkpoint)
            .ok_or_else(|| Error::Bug("a chunk of bands belongs to a view that is not a matrix".to_owned()))?;
        let (all, rows) = (rows_of(matrix, bands), job.target.rows());
        let room = |part: &StoredTensor| Vec::with_capacity((part.row_bytes(rows) * (all.end - all.start)) as usize);
        let mut made = WrittenChunk { parts: job.parts.iter().map(room).collect(), noise: Vec::new() };
        reader.bands((checkpoint, self.pass.isa), view, bands, |rows, columns, stored| {
            let band = Band { rows: (rows.end - rows.start) as usize, stored, columns };
            let errors = self.encoder.encode(scheme, (float, scratch), band, &metric, &mut made.parts);
            made.noise.push(Noise::of(&errors[..band.rows], &vectors.gain, rows.start as usize));
            Ok(())
        })?;
        self.write_rows(id, all.start, &made.parts)?;
        Ok(made)
    }

    /// Writes the data of a unit's rows, from row `first` on, at their locations.
    pub(super) fn write_rows(&self, id: UnitId, first: u64, made: &[Vec<u8>]) -> Result<()> {
        let job = &self.jobs[id.output];
        let rows = job.target.rows();
        for (at, (part, bytes)) in job.parts.iter().zip(made).enumerate().filter(|(_, (_, bytes))| !bytes.is_empty()) {
            let place = (self.first_rows[id.output][id.view] + first) * part.row_bytes(rows);
            self.put((id.output, at), place, bytes)?;
        }
        Ok(())
    }

    /// Writes the parts whose size does not depend on the rows.
    fn write_fixed_parts(&self) -> Result<()> {
        for (output, job) in self.jobs.iter().enumerate() {
            for (part, bytes) in job.fixed_parts(self.pass.checkpoint) {
                self.put((output, part), 0, &bytes)?;
            }
        }
        Ok(())
    }
}

/// Whether a sample of this share has view `view` of output `name`: the first 8 bytes of the SHA-256 of both, as a fraction of
/// 2⁶⁴, are below the share.
fn is_sampled(name: &str, view: usize, share: f64) -> bool {
    let mut digest = Digest::default();
    digest.text(name);
    digest.update(&(view as u64).to_le_bytes());
    let first = u64::from_str_radix(&digest.finish()[..16], 16).unwrap_or_default();
    (first as f64) < share * 18_446_744_073_709_551_616.0
}

/// Rejects non-finite values. A kept weight may be infinite (attention masks are) but not NaN; a decoded weight may be
/// neither. `place` maps an element of `source` to its position in the tensor.
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

/// Rows of view `at` of a kept output that is not a copy: as plain numbers, or passed through.
fn kept_rows(
    checkpoint: &Checkpoint,
    job: &WriteJob<'_>,
    at: usize,
    rows: &Range<u64>,
    reader: &mut Reader,
) -> Result<Vec<Vec<u8>>> {
    let view = job.target.views[at];
    let tensor = &checkpoint.tensors[view.tensor];
    let mut parts = vec![Vec::new(); job.parts.len()];
    if let StoreMode::PassedThrough(scheme, float) = job.mode
        && let Some(codec) = scheme.codec()
    {
        let (codes, scales) = reader.packed_rows(checkpoint, view, rows)?;
        let count = (rows.end - rows.start) as usize;
        codec.pass_through(scheme, float, PassedRows { rows: count, codes: &codes, scales: &scales }, &mut parts);
        return Ok(parts);
    }
    let bytes = reader.rows(checkpoint, view, rows)?;
    let cols = view.cols.max(1);
    let place = |element: u64| view.element(rows.start + element / cols, element % cols);
    check_numbers(checkpoint, tensor, bytes, place)?;
    let changed = job.target.plus_one || job.target.dtype != tensor.dtype;
    let floats = Float::of(tensor.dtype).zip(Float::of(job.target.dtype));
    if let Some((from, to)) = floats.filter(|_| changed) {
        let mut values = vec![0.0; bytes.len() / from.bytes()];
        from.widen(bytes, &mut values);
        if job.target.plus_one {
            for value in &mut values {
                *value += 1.0;
            }
        }
        to.append(&values, &mut parts[0]);
    } else {
        parts[0].extend_from_slice(bytes);
    }
    Ok(parts)
}

/// SHA-256 of each part of a kept output, computed from the source.
///
/// # Errors
/// The errors of reading, and [`Error::NonFinite`].
pub(crate) fn kept_digests(pass: Pass<'_>, job: &WriteJob<'_>) -> Result<Vec<String>> {
    let mut digests = vec![Digest::default(); job.parts.len()];
    for (at, bytes) in job.fixed_parts(pass.checkpoint) {
        digests[at].update(&bytes);
    }
    let mut reader = Reader::default();
    for (at, view) in job.target.views.iter().enumerate() {
        let step = (pass.chunk_bytes / (4 * view.cols.max(1))).max(1);
        for rows in cut(view.rows, step) {
            pass.progress.check()?;
            let parts = kept_rows(pass.checkpoint, job, at, &rows, &mut reader)?;
            digests.iter_mut().zip(&parts).for_each(|(digest, bytes)| digest.update(bytes));
        }
    }
    Ok(digests.into_iter().map(Digest::finish).collect())
}
