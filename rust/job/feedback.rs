//! Encoding with error feedback, layer by layer: the covariances of a layer's inputs exist only while it is visited.

use std::collections::BTreeMap;

use super::encode::{StoreMode, Writer, WrittenChunk};
use super::unit::{RecordFold, UnitChunk, UnitId, UnitRecord, UnitSpan};
use super::unit_journal::KnownUnits;
use crate::arch::{Linear, Runnable};
use crate::band::{Matrix, bands, cut, rows_of};
use crate::checkpoint::View;
use crate::checkpoint::stream::Reader;
use crate::codec::feedback::{self, Factor, Feedback, FeedbackTarget, SLAB_ROWS, Slab};
use crate::codec::{Band, Metric, Scheme, Scratch};
use crate::container::StoredTensor;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::probe::feedback::{Recording, visit};
use crate::rate_distortion::Noise;
use crate::sensitivity::MatrixSensitivity;
use crate::simd::vector::BAND_ROWS;

/// A unit that may be encoded with error feedback.
#[derive(Clone, Copy)]
struct FeedbackUnit<'a> {
    id: UnitId,
    view: View,
    scheme: Scheme,
    codec: &'a dyn Feedback,
    float: Float,
    sensitivity: &'a MatrixSensitivity,
}

/// Slabs of a unit that are at least encoded in both ways, if it has as many.
const LEAST_COMPARED: usize = 4;

/// One slab of these many is encoded in both ways, of units that have many.
const COMPARED_SHARE: usize = 16;

/// A slab of a unit, and whether it is also encoded without feedback, for comparison.
struct SlabPiece {
    chunk: UnitChunk,
    is_compared: bool,
}

/// The bands of a slab, encoded with feedback.
struct EncodedSlab {
    /// The first row.
    first: u64,
    fed: WrittenChunk,
    /// The noise of the search without feedback, under the same metric, if the slab is compared.
    plain: Option<Vec<Noise>>,
}

/// Whether slab `at` of `count` is compared: [`LEAST_COMPARED`] of them or one of [`COMPARED_SHARE`], spread evenly.
fn is_compared(at: usize, count: usize) -> bool {
    let compared = count.div_ceil(COMPARED_SHARE).max(LEAST_COMPARED).min(count);
    at * compared % count < compared
}

impl Writer<'_> {
    /// Visits the layers of `model`, and writes the units of each for which error feedback lowers the loss. Adds them to the
    /// finished ones of `known`, and passes over what is known.
    ///
    /// # Errors
    /// Those of running the model, reading and writing.
    pub(crate) fn write_with_feedback(
        &self,
        model: &Runnable<'_>,
        recording: &Recording,
        known: &mut KnownUnits,
    ) -> Result<()> {
        let (mut units, own) = (self.feedback_units(), self.own_units());
        for of_tensor in units.values_mut() {
            of_tensor.retain(|unit| {
                own.contains(&unit.id) && !known.finished.contains_key(&unit.id) && !known.plain.contains(&unit.id)
            });
        }
        units.retain(|_, of_tensor| !of_tensor.is_empty());
        if units.is_empty() {
            return Ok(());
        }
        let is_needed = |linear: &Linear<'_>| {
            let whole = linear.view(self.pass.checkpoint);
            whole.is_some_and(|whole| units.contains_key(&whole.tensor))
        };
        let bytes = |unit: &FeedbackUnit<'_>| unit.view.rows * unit.view.cols * unit.float.bytes() as u64;
        let all: u64 = units.values().flatten().map(bytes).sum();
        visit((self.pass, model), recording, (all, &is_needed), &mut |linear, factor| {
            let Some(whole) = linear.view(self.pass.checkpoint) else { return Ok(()) };
            for unit in units.get(&whole.tensor).into_iter().flatten().filter(|unit| covers(whole, unit.view)) {
                self.pass.progress.advance(if factor.is_some() { 0 } else { bytes(unit) });
                let Some(factor) = factor else { continue };
                let record = self.write_unit(unit, factor, &linear)?;
                self.units.add(unit.id, record.as_ref())?;
                known.finished.extend(record.map(|record| (unit.id, record)));
            }
            Ok(())
        })?;
        self.units.commit()
    }

    /// By source tensor, the units whose codec can feed errors back.
    fn feedback_units(&self) -> BTreeMap<usize, Vec<FeedbackUnit<'_>>> {
        let mut units: BTreeMap<usize, Vec<FeedbackUnit<'_>>> = BTreeMap::new();
        for (output, job) in self.jobs.iter().enumerate() {
            let StoreMode::Encoded(scheme, float, sensitivities) = job.mode else { continue };
            let Some(codec) = scheme.codec().and_then(|codec| codec.feedback()) else { continue };
            for (view, (found, sensitivity)) in job.target.views.iter().zip(sensitivities).enumerate() {
                let id = UnitId { output, view };
                let unit = FeedbackUnit { id, view: *found, scheme, codec, float, sensitivity };
                units.entry(found.tensor).or_default().push(unit);
            }
        }
        units
    }

    /// Writes `unit`, and returns its record, unless the search without feedback has less loss in the slabs that are compared:
    /// a unit without a record is written again.
    fn write_unit(&self, unit: &FeedbackUnit<'_>, factor: &Factor, linear: &Linear<'_>) -> Result<Option<UnitRecord>> {
        let matrix = unit.view.matrix(self.pass.checkpoint);
        let matrix = matrix
            .filter(|matrix| matrix.cols as usize == factor.order())
            .ok_or_else(|| Error::Bug(format!("`{}` has another number of columns than inputs", linear.weight.name)))?;
        let slabs: Vec<_> = cut(bands(matrix), (SLAB_ROWS / BAND_ROWS) as u64).collect();
        let count = slabs.len();
        let piece = |(at, bands): (usize, std::ops::Range<u64>)| SlabPiece {
            chunk: UnitChunk {
                id: unit.id,
                bytes: (rows_of(matrix, &bands).end - rows_of(matrix, &bands).start) * matrix.row_bytes(),
                span: UnitSpan::Bands(bands),
                is_last: at + 1 == count,
            },
            is_compared: is_compared(at, count),
        };
        let pieces: Vec<SlabPiece> = slabs.into_iter().enumerate().map(piece).collect();
        let (mut fold, mut with, mut without) = (RecordFold::default(), Noise::default(), Noise::default());
        let mut held = Vec::new();
        self.pass.workers.in_order(
            self.pass.progress,
            &pieces,
            || (Reader::default(), Scratch::default()),
            |(reader, scratch), piece| {
                let found = self.encode_slab(unit, factor, piece, (reader, scratch))?;
                self.pass.progress.advance(piece.chunk.bytes);
                Ok(found)
            },
            |piece, found: EncodedSlab| {
                if let Some(plain) = found.plain {
                    for (fed, plain) in found.fed.noise.iter().zip(plain) {
                        with.add(*fed);
                        without.add(plain);
                    }
                }
                let _ = fold.take(&piece.chunk, &found.fed);
                if self.is_comparing() {
                    held.push((found.first, found.fed.parts));
                }
                Ok(())
            },
        )?;
        let is_better = with.weighted < without.weighted;
        if is_better {
            held.iter().try_for_each(|(first, parts)| self.write_rows(unit.id, *first, parts))?;
        }
        let record = fold.records().next().map(|(_, record)| UnitRecord { has_feedback: true, ..record });
        Ok(record.filter(|_| is_better))
    }

    fn encode_slab(
        &self,
        unit: &FeedbackUnit<'_>,
        factor: &Factor,
        SlabPiece { chunk, is_compared }: &SlabPiece,
        (reader, scratch): (&mut Reader, &mut Scratch),
    ) -> Result<EncodedSlab> {
        let UnitSpan::Bands(range) = &chunk.span else {
            return Err(Error::Bug("a slab has bands".to_owned()));
        };
        let (pass, job) = (self.pass, &self.jobs[unit.id.output]);
        let matrix = Matrix { rows: unit.view.rows, cols: unit.view.cols, float: unit.float };
        let all = rows_of(matrix, range);
        let (first, rows) = (all.start as usize, (all.end - all.start) as usize);
        let mut slab = Vec::new();
        let vectors = &unit.sensitivity.vectors;
        let metric = Metric::diagonal(&vectors.importance);
        let (mut stored, mut decoded) = (vec![Vec::new(); job.parts.len()], Vec::new());
        reader.bands((pass.checkpoint, pass.isa), unit.view, range, |of, columns, source| {
            let band = Band { rows: (of.end - of.start) as usize, stored: source, columns };
            if *is_compared {
                stored.iter_mut().for_each(Vec::clear);
                self.encoder.encode(unit.scheme, (unit.float, scratch), band, &metric, &mut stored);
                decoded.push(feedback::off(unit.scheme, unit.float, band, &stored));
            }
            slab.push(columns.to_vec());
            Ok(())
        })?;
        let target = FeedbackTarget { isa: pass.isa, float: unit.float };
        let height = job.target.rows();
        let room = |part: &StoredTensor| Vec::with_capacity(part.row_bytes(height) as usize * rows);
        let mut fed = WrittenChunk { parts: job.parts.iter().map(room).collect(), noise: Vec::new() };
        let slab = Slab { bands: &slab, rows };
        let errors = feedback::encode((unit.scheme, target), unit.codec, factor, &slab, &mut fed.parts);
        let noise = |(at, errors): (usize, &[_; BAND_ROWS])| {
            let from = at * BAND_ROWS;
            Noise::of(&errors[..(rows - from).min(BAND_ROWS)], &vectors.gain, first + from)
        };
        fed.noise = errors.iter().enumerate().map(noise).collect();
        let plain = is_compared.then(|| {
            let errors = feedback::errors_of(pass.isa, factor, &decoded);
            errors.iter().enumerate().map(noise).collect()
        });
        if !self.is_comparing() {
            self.write_rows(unit.id, all.start, &fed.parts)?;
        }
        Ok(EncodedSlab { first: all.start, fed, plain })
    }
}

/// Whether `view` has the columns of `whole`, and some of its rows.
fn covers(whole: View, view: View) -> bool {
    let has_columns = view.cols == whole.cols && view.col_stride == whole.col_stride;
    let after = view.offset.checked_sub(whole.offset);
    has_columns && after.is_some_and(|after| after % whole.row_stride == 0 && after / whole.row_stride < whole.rows)
}
