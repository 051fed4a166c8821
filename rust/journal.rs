//! Records of finished work, in a file that only grows: a job that was killed continues from them.
//!
//! A record has a key, a value, and a digest of both. Opening a journal reads all records and cuts off what follows the last
//! whole one, which a kill or a power cut left incomplete. A lost record costs time: its work is done again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Bytes of a record before its key: the lengths of key and value, little-endian.
const HEAD_BYTES: usize = 16;

/// Bytes of a record after its value: SHA-256 of the rest, in hexadecimal.
const TAIL_BYTES: usize = 64;

/// Bytes that are read at a time when a journal is opened.
const BLOCK_BYTES: usize = 1 << 20;

/// The longest key, in bytes. A longer one is not of a record.
const LONGEST_KEY: u64 = 1 << 12;

/// The records of a job. Without a file it records nothing and has nothing.
#[derive(Debug, Default)]
pub struct Journal(Option<Mutex<Records>>);

#[derive(Debug)]
struct Records {
    file: File,
    path: PathBuf,
    /// The place of each record's value.
    values: BTreeMap<String, Range<u64>>,
    /// The end of the last record.
    end: u64,
    /// The least time from one record to the next, of work that may be recorded at any time.
    interval: Duration,
    last: Instant,
}

impl Journal {
    /// The journal of a job that cannot be continued.
    pub const NONE: &'static Self = &Self(None);

    /// Opens the journal at `path`, or creates it. [`is_due`](Self::is_due) asks for a record every `interval`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(path: &Path, interval: Duration) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io("opening", path))?;
        let (values, end) = scan(&file).map_err(Error::io("reading", path))?;
        file.set_len(end).map_err(Error::io("writing", path))?;
        let (path, last) = (path.to_owned(), Instant::now());
        Ok(Self(Some(Mutex::new(Records { file, path, values, end, interval, last }))))
    }

    /// Opens the journal at `path` to read it, whole records only.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let (values, end) = scan(&file).map_err(Error::io("reading", path))?;
        let (path, interval, last) = (path.to_owned(), Duration::MAX, Instant::now());
        Ok(Self(Some(Mutex::new(Records { file, path, values, end, interval, last }))))
    }

    /// Whether there are records.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.with(|records| Ok(records.values.is_empty())).ok().flatten().unwrap_or(true)
    }

    /// Whether records are kept.
    #[must_use]
    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it is time to record what is finished: a record of little work costs more than the work.
    #[must_use]
    pub(crate) fn is_due(&self) -> bool {
        self.with(|records| Ok(records.last.elapsed() >= records.interval)).ok().flatten().unwrap_or(false)
    }

    /// Flushes all records to disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn sync(&self) -> Result<()> {
        self.with(|Records { file, path, .. }| file.sync_data().map_err(Error::io("flushing", path))).map(|_| ())
    }

    /// Whether there is a record `key`.
    ///
    /// # Errors
    /// None of its own.
    pub(crate) fn has(&self, key: &str) -> Result<bool> {
        Ok(self.with(|records| Ok(records.values.contains_key(key)))?.unwrap_or(false))
    }

    /// The value of record `key`; `None` if there is no such record, or it is not a `T`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn find<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let found = self.with(|Records { file, path, values, .. }| {
            let Some(range) = values.get(key) else { return Ok(None) };
            let length =
                usize::try_from(range.end - range.start).map_err(|_| Error::Bug("record length".to_owned()))?;
            let mut value = vec![0; length];
            file.read_exact_at(&mut value, range.start).map_err(Error::io("reading", path))?;
            Ok(Some(value))
        })?;
        Ok(found.flatten().and_then(|value| postcard::from_bytes(&value).ok()))
    }

    /// The values of all records whose keys begin with `prefix`, by key, of those that are a `T`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn find_all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>> {
        let keys = self.with(|records| {
            let from = records.values.range(prefix.to_owned()..).map(|(key, _)| key);
            Ok(from.take_while(|key| key.starts_with(prefix)).cloned().collect::<Vec<_>>())
        })?;
        let mut found = Vec::new();
        for key in keys.unwrap_or_default() {
            if let Some(value) = self.find(&key)? {
                found.push((key, value));
            }
        }
        Ok(found)
    }

    /// Adds the records of the journal at `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn import(&self, path: &Path) -> Result<()> {
        let Some(other) = Self::read(path)?.0 else { return Ok(()) };
        let other = other.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.with(|records| {
            let mut block = vec![0; BLOCK_BYTES];
            let mut from = 0;
            while from < other.end {
                let now = &mut block[..usize::try_from(other.end - from).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES)];
                other.file.read_exact_at(now, from).map_err(Error::io("reading", path))?;
                records.file.write_all_at(now, records.end + from).map_err(Error::io("writing", &records.path))?;
                from += now.len() as u64;
            }
            let end = records.end;
            let moved = |(key, value): (String, Range<u64>)| (key, end + value.start..end + value.end);
            records.values.extend(other.values.into_iter().map(moved));
            records.end += other.end;
            Ok(())
        })
        .map(|_| ())
    }

    /// Adds a record. A later record of the same key takes the place of an earlier one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Bug`] if `value` has no binary form.
    pub(crate) fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<()> {
        self.with(|records| {
            let mut record = vec![0; HEAD_BYTES];
            record.extend_from_slice(key.as_bytes());
            let from = record.len();
            record =
                postcard::to_extend(value, record).map_err(|fault| Error::Bug(format!("record {key}: {fault}")))?;
            let value = from as u64..record.len() as u64;
            record[..8].copy_from_slice(&(key.len() as u64).to_le_bytes());
            record[8..HEAD_BYTES].copy_from_slice(&(value.end - value.start).to_le_bytes());
            let digest = Digest::of(&record);
            record.extend_from_slice(digest.as_bytes());
            let Records { file, path, values, end, last, .. } = records;
            file.write_all_at(&record, *end).map_err(Error::io("writing", path))?;
            values.insert(key.to_owned(), *end + value.start..*end + value.end);
            *end += record.len() as u64;
            *last = Instant::now();
            Ok(())
        })
        .map(|_| ())
    }

    /// The value of record `key`. If there is none, makes it and adds the record.
    ///
    /// # Errors
    /// Those of `make`, [`find`](Self::find) and [`put`](Self::put).
    pub(crate) fn once<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(found) = self.find(key)? {
            return Ok(found);
        }
        let made = make()?;
        self.put(key, &made)?;
        Ok(made)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Records) -> Result<R>) -> Result<Option<R>> {
        let Some(records) = &self.0 else { return Ok(None) };
        // A panic within a change leaves at most a record that is not known of.
        act(&mut records.lock().unwrap_or_else(PoisonError::into_inner)).map(Some)
    }
}

/// The places of all values, and the end of the last whole record.
fn scan(file: &File) -> std::io::Result<(BTreeMap<String, Range<u64>>, u64)> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(BLOCK_BYTES, file);
    let (mut values, mut end) = (BTreeMap::new(), 0);
    while let Some((key, value)) = record(&mut reader, end, length)? {
        end = value.end + TAIL_BYTES as u64;
        values.insert(key, value);
    }
    Ok((values, end))
}

/// The record from `start` on: its key, and the place of its value. `None` if it is incomplete or damaged.
fn record(reader: &mut impl Read, start: u64, length: u64) -> std::io::Result<Option<(String, Range<u64>)>> {
    let room = length - start;
    if room < (HEAD_BYTES + TAIL_BYTES) as u64 {
        return Ok(None);
    }
    let mut head = [0; HEAD_BYTES];
    reader.read_exact(&mut head)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let (key_bytes, value_bytes) = (number(&head[..8]), number(&head[8..]));
    // Lengths are checked before anything is allocated by them.
    let room = room - (HEAD_BYTES + TAIL_BYTES) as u64;
    if key_bytes > LONGEST_KEY || key_bytes > room || value_bytes > room - key_bytes {
        return Ok(None);
    }
    let mut key = vec![0; key_bytes as usize];
    reader.read_exact(&mut key)?;
    let mut digest = Digest::default();
    digest.update(&head);
    digest.update(&key);
    let from = start + HEAD_BYTES as u64 + key_bytes;
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = value_bytes;
    while left > 0 {
        let now = &mut block[..usize::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES)];
        reader.read_exact(now)?;
        digest.update(now);
        left -= now.len() as u64;
    }
    let mut tail = [0; TAIL_BYTES];
    reader.read_exact(&mut tail)?;
    let key = String::from_utf8(key).ok().filter(|_| digest.finish().as_bytes() == tail);
    Ok(key.map(|key| (key, from..from + value_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        (dir, path)
    }

    #[test]
    fn records_are_found_again_and_the_last_one_of_a_key_counts() {
        let (_dir, path) = path();
        let journal = Journal::open(&path, Duration::ZERO).unwrap();
        assert!(journal.is_empty());
        let values = vec![0.1_f64, f64::MIN_POSITIVE, -0.0, 1e300];
        journal.put("a", &1_u64).unwrap();
        journal.put("vectors", &values).unwrap();
        journal.put("a", &2_u64).unwrap();
        for journal in [journal, Journal::open(&path, Duration::ZERO).unwrap()] {
            assert_eq!(journal.find("a").unwrap(), Some(2_u64));
            let found: Vec<f64> = journal.find("vectors").unwrap().unwrap();
            assert!(found.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert_eq!(journal.find::<u64>("b").unwrap(), None);
            assert!(!journal.is_empty());
        }
    }

    #[test]
    fn a_value_is_made_once() {
        let (_dir, path) = path();
        let journal = Journal::open(&path, Duration::ZERO).unwrap();
        assert_eq!(journal.once("a", || Ok(7_u32)).unwrap(), 7);
        let again = Journal::open(&path, Duration::ZERO).unwrap();
        assert_eq!(again.once::<u32>("a", || panic!("it is recorded")).unwrap(), 7);
        assert_eq!(Journal::NONE.once("a", || Ok(7_u32)).unwrap(), 7);
        assert_eq!(Journal::NONE.once("a", || Ok(8_u32)).unwrap(), 8);
        assert!(Journal::NONE.is_empty());
    }

    #[test]
    fn the_records_of_another_journal_are_taken_over() {
        let (dir, path) = path();
        let other = dir.path().join("other");
        let of_other = Journal::open(&other, Duration::ZERO).unwrap();
        of_other.put("units/1", &vec![1_u32; 1_000_000]).unwrap();
        of_other.put("units/2", &vec![2_u32]).unwrap();
        let journal = Journal::open(&path, Duration::ZERO).unwrap();
        journal.put("a", &1_u8).unwrap();
        journal.import(&other).unwrap();
        journal.put("b", &2_u8).unwrap();
        for journal in [journal, Journal::open(&path, Duration::ZERO).unwrap()] {
            assert_eq!((journal.find("a").unwrap(), journal.find("b").unwrap()), (Some(1_u8), Some(2_u8)));
            let units: Vec<(String, Vec<u32>)> = journal.find_all("units/").unwrap();
            assert_eq!(units, [("units/1".to_owned(), vec![1; 1_000_000]), ("units/2".to_owned(), vec![2])]);
        }
    }

    #[test]
    fn a_journal_cut_anywhere_has_its_whole_records_and_goes_on() {
        let (_dir, path) = path();
        let journal = Journal::open(&path, Duration::ZERO).unwrap();
        let mut ends = vec![0];
        for at in 0..4_u64 {
            journal.put(&format!("record {at}"), &vec![at; 5]).unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let journal = Journal::open(&path, Duration::ZERO).unwrap();
            let kept = ends.iter().filter(|&&end| end > 0 && end <= cut as u64).count() as u64;
            for at in 0..4 {
                let found: Option<Vec<u64>> = journal.find(&format!("record {at}")).unwrap();
                assert_eq!(found, (at < kept).then(|| vec![at; 5]), "cut at {cut}");
            }
            journal.put("next", &cut).unwrap();
            assert_eq!(Journal::open(&path, Duration::ZERO).unwrap().find("next").unwrap(), Some(cut));
        }
    }

    #[test]
    fn a_damaged_record_and_what_follows_it_are_not_believed() {
        let (_dir, path) = path();
        let journal = Journal::open(&path, Duration::ZERO).unwrap();
        journal.put("first", &1_u8).unwrap();
        let from = std::fs::metadata(&path).unwrap().len() as usize;
        journal.put("second", &2_u8).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in from..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&path, damaged).unwrap();
            let journal = Journal::open(&path, Duration::ZERO).unwrap();
            assert_eq!(journal.find("first").unwrap(), Some(1_u8));
            assert_eq!(journal.find::<u8>("second").unwrap(), None, "byte {at}");
        }
    }
}
