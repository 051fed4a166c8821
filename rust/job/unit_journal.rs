//! Records of units whose bytes are on disk, and the check of those bytes before a job continues.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use super::encode::Writer;
use super::part::JobPart;
use super::unit::{UnitId, UnitRecord};
use crate::band::cut;
use crate::container::file::{PageBuffer, read_at};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::pool::lock;
use crate::progress::Stage;

/// The units of an output that are finished.
pub(crate) type FinishedUnits = BTreeMap<UnitId, UnitRecord>;

/// Flushing the written bytes takes at most one part of these many of the time.
const FLUSH_SHARE: u32 = 20;

/// Bytes that are read back at a time.
const READ_BYTES: u64 = 1 << 20;

/// What is known of the units of a job.
#[derive(Debug, Default)]
pub(crate) struct KnownUnits {
    /// The units whose bytes are on disk, as they were written.
    pub finished: FinishedUnits,
    /// The units that error feedback is no better for: they are to be encoded without.
    pub plain: BTreeSet<UnitId>,
}

/// Records units after their bytes are on disk.
pub(crate) struct UnitJournal<'a> {
    journal: &'a Journal,
    /// What keys begin with: the digest of the plan, and the part of the job.
    place: String,
    /// What the keys of all parts begin with.
    plan: String,
    files: &'a [(File, PathBuf)],
    state: Mutex<Pending>,
}

/// Units with their records; without one where error feedback is no better.
type UnitRecords = Vec<(UnitId, Option<UnitRecord>)>;

/// Units that were written since the last record.
struct Pending {
    units: UnitRecords,
    /// The number of the next record.
    number: usize,
    /// When the files may be flushed again.
    next: Instant,
}

impl<'a> UnitJournal<'a> {
    pub(super) fn new(
        journal: &'a Journal,
        (plan, part): (&str, Option<JobPart>),
        files: &'a [(File, PathBuf)],
    ) -> Self {
        let state = Pending { units: Vec::new(), number: 0, next: Instant::now() };
        let plan = format!("units/{plan}/");
        let place = format!("{plan}{}/", part.map_or_else(|| "whole".to_owned(), JobPart::file_name));
        Self { journal, place, plan, files, state: Mutex::new(state) }
    }

    /// Adds a unit whose bytes were written, and records all units so far if it is time to.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub(super) fn add(&self, id: UnitId, record: Option<&UnitRecord>) -> Result<()> {
        if !self.journal.is_kept() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.units.push((id, record.cloned()));
        if self.journal.is_due() && Instant::now() >= state.next { self.flush(&mut state) } else { Ok(()) }
    }

    /// Records all units so far.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn commit(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if state.units.is_empty() { Ok(()) } else { self.flush(&mut state) }
    }

    fn flush(&self, state: &mut Pending) -> Result<()> {
        let start = Instant::now();
        for (file, path) in self.files {
            file.sync_data().map_err(Error::io("flushing", path))?;
        }
        self.journal.put(&format!("{}{}", self.place, state.number), &std::mem::take(&mut state.units))?;
        state.number += 1;
        state.next = Instant::now() + start.elapsed() * FLUSH_SHARE;
        Ok(())
    }

    /// All recorded units.
    fn recorded(&self) -> Result<BTreeMap<UnitId, Option<UnitRecord>>> {
        let mut state = lock(&self.state);
        let mut all = BTreeMap::new();
        let mut records: Vec<(String, UnitRecords)> = self.journal.find_all(&self.plan)?;
        // In the order in which a part wrote them: a later record of a unit counts.
        let number = |key: &str| key.rsplit('/').next().and_then(|number| number.parse::<usize>().ok());
        records.sort_by_key(|(key, _)| number(key));
        for (key, units) in records {
            if key.starts_with(&self.place) {
                state.number = number(&key).map_or(state.number, |number| number + 1);
            }
            all.extend(units);
        }
        Ok(all)
    }
}

impl Writer<'_> {
    /// The units that an earlier run has recorded. Those whose bytes on disk are not the recorded ones are left out.
    ///
    /// # Errors
    /// Those of reading, and cancellation.
    pub(crate) fn known_units(&self) -> Result<KnownUnits> {
        let mut known = KnownUnits::default();
        let mut written = Vec::new();
        for (id, record) in self.units.recorded()? {
            let is_one = self.jobs.get(id.output).is_some_and(|job| id.view < job.target.views.len());
            match record {
                Some(record) if is_one => written.push((id, record)),
                _ => {
                    known.plain.insert(id);
                }
            }
        }
        if written.is_empty() {
            return Ok(known);
        }
        let bytes = |(id, _): &(UnitId, UnitRecord)| self.places(*id).iter().map(|place| place.bytes).sum::<u64>();
        self.pass.progress.begin(Stage::Resume, written.iter().map(bytes).sum());
        let is_whole = self.pass.workers.map(
            self.pass.progress,
            &written,
            PageBuffer::default,
            |buffer, (id, record): &(UnitId, UnitRecord)| self.is_on_disk(*id, record, buffer),
        )?;
        known.finished =
            written.into_iter().zip(is_whole).filter_map(|(unit, is_whole)| is_whole.then_some(unit)).collect();
        Ok(known)
    }

    fn is_on_disk(&self, id: UnitId, record: &UnitRecord, buffer: &mut PageBuffer) -> Result<bool> {
        let places = self.places(id);
        if places.len() != record.parts_sha256.len() {
            return Ok(false);
        }
        for (place, sha256) in places.iter().zip(&record.parts_sha256) {
            let (file, path) = &self.files[place.file];
            let mut digest = Digest::default();
            for range in cut(place.bytes, READ_BYTES) {
                self.pass.progress.check()?;
                let buffer = buffer.get((range.end - range.start) as usize);
                read_at(file, path, buffer, place.offset + range.start)?;
                digest.update(buffer);
                self.pass.progress.advance(buffer.len() as u64);
            }
            if digest.finish() != *sha256 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
