//! An output that gets its final name only when it is complete, and the journal of the job that writes it.
//!
//! The directory `<out>.partial` holds the lock of the run in progress, the identity of the job, its journal, and in
//! `output` what will be the output. A run that is stopped leaves it, if anything is recorded; the same job continues from
//! it.

use std::cmp::Reverse;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::JobIdentity;
use super::part::JobPart;
use super::place::{FilePlace, parent_of};
use crate::container::file::write_at;
use crate::container::gguf::split;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::option::OptionName;
use crate::schema::manifest::Manifest;
use crate::schema::text;

/// Name of the lock file of a partial output.
const LOCK: &str = ".ramrs-lock";
/// Name of the identity of the job.
const JOB: &str = "job.json";
const JOURNAL: &str = "journal";
/// Name of the directory that becomes the output.
const OUTPUT: &str = "output";
/// Name of an output that is being replaced.
const REPLACED: &str = "replaced";
/// Name of the request that parts of a job have in common.
const REQUEST: &str = "request.json";
/// Key of the record that the output is complete.
const COMPLETE: &str = "complete";

/// What becomes of what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// An output, and the unfinished one of another job, are refused.
    Refused,
    /// An output is replaced at the end, and the unfinished one of another job is refused.
    OutputReplaced,
    /// An output is replaced at the end, and the unfinished one of another job is deleted.
    Replaced,
}

/// The directory `<out>.partial`. Dropping it leaves the directory if the journal has records, and deletes it otherwise.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    dir: PathBuf,
    output: PathBuf,
    existing: Existing,
    journal: Journal,
    /// Whether an earlier run has recorded something.
    is_continued: bool,
    /// The part of the job that the run does; `None` for all of it.
    part: Option<JobPart>,
    _locks: Vec<File>,
}

/// What is left to do for a complete output.
#[derive(Debug, Serialize, Deserialize)]
struct Completion {
    /// Whether an existing output is replaced.
    overwrite: bool,
    /// Files of a replaced output that the new one does not have.
    stale: Vec<PathBuf>,
}

impl Staging {
    /// Opens the partial output of `job` for `out`, or creates it. Deletes a partial output without a job, but not that of a
    /// run in progress. Asks for records every `interval`.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if `out` exists and is not to be replaced, [`Error::Locked`] if another run is writing it,
    /// [`Error::OtherJob`], [`Error::Io`].
    pub(crate) fn open(out: &Path, existing: Existing, job: &JobIdentity, interval: Duration) -> Result<Self> {
        if out.symlink_metadata().is_ok() && existing == Existing::Refused {
            return Err(Error::OutputExists { path: out.to_owned() });
        }
        let (parent, dir) = partial_path(out)?;
        fs::create_dir_all(parent).map_err(Error::io("creating", parent))?;
        if dir.symlink_metadata().is_ok() {
            let lock = lock_abandoned(&dir)?;
            match JobIdentity::read(&dir.join(JOB)) {
                Some(found) if found == *job => return Self::continued(out, dir, existing, lock, interval),
                Some(found) if existing != Existing::Replaced => {
                    return Err(Error::OtherJob { path: dir, difference: job.difference(&found) });
                }
                _ => remove_partial(&dir)?,
            }
        }
        fs::create_dir(&dir).map_err(Error::io("creating", &dir))?;
        let lock = File::create_new(dir.join(LOCK)).map_err(Error::io("creating", &dir))?;
        lock.try_lock().map_err(|fault| Error::io("locking", &dir)(fault.into()))?;
        replace(&dir.join(JOB), text(job)?.as_bytes())?;
        Self::continued(out, dir, existing, lock, interval)
    }

    fn continued(out: &Path, dir: PathBuf, existing: Existing, lock: File, interval: Duration) -> Result<Self> {
        let output = dir.join(OUTPUT);
        fs::create_dir_all(&output).map_err(Error::io("creating", &output))?;
        let journal = Journal::open(&dir.join(JOURNAL), interval)?;
        let is_continued = !journal.is_empty();
        let (out, part, locks) = (out.to_owned(), None, vec![lock]);
        Ok(Self { out, dir, output, existing, journal, is_continued, part, _locks: locks })
    }

    /// Opens the partial output of `job` for `out` to do a part of it, or creates it. Runs of other parts may be at work in it.
    /// `request` is what [`request_of`](Self::request_of) returns.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::Locked`] if another run does the same part or the whole job, [`Error::OtherJob`],
    /// [`Error::Io`].
    pub(crate) fn open_part(
        out: &Path,
        part: JobPart,
        (job, request): (&JobIdentity, &str),
        interval: Duration,
    ) -> Result<Self> {
        if out.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path: out.to_owned() });
        }
        let (_, dir) = partial_path(out)?;
        let output = dir.join(OUTPUT);
        fs::create_dir_all(&output).map_err(Error::io("creating", &output))?;
        let name = part.file_name();
        let lock = |name: &str, shared: bool| {
            let path = dir.join(name);
            let file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path);
            let file = file.map_err(Error::io("creating", &path))?;
            let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
            locked.map(|()| file).map_err(|_| Error::Locked { path })
        };
        let locks = vec![lock(LOCK, true)?, lock(&format!("{LOCK}-{name}"), false)?];
        match JobIdentity::read(&dir.join(JOB)) {
            Some(found) if found == *job => {}
            Some(found) => return Err(Error::OtherJob { path: dir, difference: job.difference(&found) }),
            None => {
                // Parts that begin at the same time write the same.
                for (file, content) in [(REQUEST, request.to_owned()), (JOB, text(job)?)] {
                    let path = dir.join(format!("{file}-{name}"));
                    fs::write(&path, content).map_err(Error::io("writing", &path))?;
                    fs::rename(&path, dir.join(file)).map_err(Error::io("naming", &path))?;
                }
            }
        }
        let journal = Journal::open(&dir.join(format!("{JOURNAL}-{name}")), interval)?;
        let (out, is_continued) = (out.to_owned(), !journal.is_empty());
        Ok(Self {
            out,
            dir,
            output,
            existing: Existing::Refused,
            journal,
            is_continued,
            part: Some(part),
            _locks: locks,
        })
    }

    /// Records that the part is done.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn finish_part(self) -> Result<()> {
        sync(&self.output)?;
        if let Some(part) = self.part {
            self.journal.put(&done(part), &())?;
        }
        self.journal.sync()
    }

    /// The request of the job whose parts are in the partial output for `out`.
    ///
    /// # Errors
    /// [`Error::Parts`] if there is none, [`Error::Io`].
    pub(crate) fn request_of(out: &Path) -> Result<String> {
        let (_, dir) = partial_path(out)?;
        let path = dir.join(REQUEST);
        if !path.is_file() {
            let reason = "no parts are there".to_owned();
            return Err(Error::Parts { path: dir, reason });
        }
        fs::read_to_string(&path).map_err(Error::io("reading", &path))
    }

    /// Takes over the records of all parts.
    ///
    /// # Errors
    /// [`Error::Parts`] if a part is not done, [`Error::Io`].
    pub(crate) fn import_parts(&self) -> Result<()> {
        let prefix = format!("{JOURNAL}-");
        let mut found = Vec::new();
        for name in names_in(&self.dir)? {
            let part = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(JobPart::of_file_name);
            found.extend(part.map(|part| (part, self.dir.join(name))));
        }
        found.sort();
        let faulty = |reason: String| Error::Parts { path: self.dir.clone(), reason };
        let first = found.first().ok_or_else(|| faulty("no parts are there".to_owned()))?.0;
        if let Some((other, _)) = found.iter().find(|(part, _)| !first.all().any(|of| of == *part)) {
            return Err(faulty(format!("it has parts of different divisions, {first} and {other}")));
        }
        let mut missing = Vec::new();
        for part in first.all() {
            let path = found.iter().find(|(found, _)| *found == part).map(|(_, path)| path);
            let is_done = path.map_or(Ok(false), |path| Journal::read(path)?.has(&done(part)))?;
            if !is_done {
                missing.push(part.to_string());
            }
        }
        if !missing.is_empty() {
            return Err(faulty(format!("not done: {}", missing.join(", "))));
        }
        found.iter().try_for_each(|(_, path)| self.journal.import(path))
    }

    /// Checks, before any work, that no other run is writing `out`. Gives a complete output its name, if a run was killed
    /// while it did.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`].
    pub(crate) fn settle(out: &Path) -> Result<()> {
        let (_, dir) = partial_path(out)?;
        if dir.symlink_metadata().is_err() {
            return Ok(());
        }
        let _lock = lock_abandoned(&dir)?;
        let path = dir.join(JOURNAL);
        if !path.is_file() {
            return Ok(());
        }
        match Journal::read(&path)?.find(COMPLETE)? {
            Some(completion) => name_output(out, &dir, &completion),
            None => Ok(()),
        }
    }

    /// Checks that the file system has room for `needed_bytes` in the output, less what is there already.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub(crate) fn check_room(&self, needed_bytes: u64) -> Result<()> {
        let available = available_bytes(&self.dir)? + allocated_bytes(&self.output)?;
        if available < needed_bytes {
            return Err(Error::DiskFull { path: self.out.clone(), needed: needed_bytes, available });
        }
        Ok(())
    }

    /// The directory that becomes the output.
    #[must_use]
    pub(crate) fn output(&self) -> &Path {
        &self.output
    }

    #[must_use]
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether an earlier run of the job has left something.
    #[must_use]
    pub(crate) fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Moves `files` of the output to the directory of the final name, in this order, and deletes the rest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn finish_files(self, files: &[PathBuf]) -> Result<()> {
        sync(&self.output)?;
        let (parent, _) = partial_path(&self.out)?;
        for name in files {
            let to = parent.join(name);
            fs::rename(self.output.join(name), &to).map_err(Error::io("naming", &to))?;
        }
        flush(parent)?;
        self.discard();
        Ok(())
    }

    /// Deletes the partial output.
    pub(crate) fn discard(mut self) {
        self.journal = Journal::default();
        // If it stays, the rest stays, too.
        let _ = fs::remove_file(self.dir.join(REQUEST));
    }

    /// Creates a file of `bytes` bytes in the output, or opens it with its content.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn create_file(&self, name: impl AsRef<Path>, bytes: u64) -> Result<File> {
        let path = self.output.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("creating", parent))?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("creating", &path))?;
        file.set_len(bytes).map_err(Error::io("writing", &path))?;
        Ok(file)
    }

    /// Writes a file with `content` in the output.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_file(&self, name: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let file = self.create_file(&name, content.len() as u64)?;
        write_at(&file, &self.output.join(name), content, 0)?;
        Ok(())
    }

    /// Flushes all files to disk and renames the output to its final name. The files of an output that is a file itself are
    /// moved next to it, the first file of weights last.
    ///
    /// # Errors
    /// [`Error::Io`]; an existing output is then restored.
    pub(crate) fn finish(self) -> Result<()> {
        sync(&self.output)?;
        let stale = match FilePlace::of(&self.out) {
            Some(place) => self.stale_files(place)?,
            None => Vec::new(),
        };
        let completion = Completion { overwrite: self.existing != Existing::Refused, stale };
        self.journal.put(COMPLETE, &completion)?;
        self.journal.sync()?;
        name_output(&self.out, &self.dir, &completion)
    }

    /// The files of the replaced output at `place` that the new one does not have.
    fn stale_files(&self, place: FilePlace<'_>) -> Result<Vec<PathBuf>> {
        let replaced = place.dir.join(place.manifest());
        let names = names_in(&self.output)?;
        if let Some(name) =
            names.iter().find(|name| self.existing == Existing::Refused && place.dir.join(name).exists())
        {
            return Err(Error::OutputExists { path: place.dir.join(name) });
        }
        if self.existing == Existing::Refused || !replaced.is_file() {
            return Ok(Vec::new());
        }
        // A manifest may come from anywhere: it names no other files than those of this output.
        let is_plain = |name: &String| Path::new(name).file_name().is_some_and(|plain| *plain == **name);
        let is_part = |name: &String| is_plain(name) && split::stem_of(name) == Some(place.stem);
        let files = Manifest::read(&replaced)?.files.into_iter().map(|file| file.name).filter(is_part);
        Ok(files.filter(|name| !names.iter().any(|new| *new == **name)).map(|name| place.dir.join(name)).collect())
    }
}

/// The key of the record that `part` is done.
fn done(part: JobPart) -> String {
    format!("done/{part}")
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The work of parts is not this run's to delete.
        if self.journal.is_empty() && !self.dir.join(REQUEST).exists() {
            // A failure here has no remedy, and the original error is more important.
            let _ = remove_partial(&self.dir);
        }
    }
}

/// Gives the complete output in `dir` the name `out`, and deletes `dir`. Nothing but renames decides what is there, so that it
/// can be done again after a kill.
fn name_output(out: &Path, dir: &Path, completion: &Completion) -> Result<()> {
    let output = dir.join(OUTPUT);
    let parent = if let Some(place) = FilePlace::of(out) {
        move_files(&output, place, completion)?;
        place.dir
    } else {
        let replaced = dir.join(REPLACED);
        if output.is_dir() {
            let replaces = completion.overwrite && out.symlink_metadata().is_ok();
            if replaces {
                fs::rename(out, &replaced).map_err(Error::io("moving", out))?;
            }
            if let Err(fault) = fs::rename(&output, out) {
                if replaces {
                    fs::rename(&replaced, out).map_err(Error::io("moving back", out))?;
                }
                return Err(Error::io("naming", out)(fault));
            }
        }
        parent_of(out)
    };
    flush(parent)?;
    remove_partial(dir)
}

/// Moves the files of `output` to `place`.
fn move_files(output: &Path, place: FilePlace<'_>, completion: &Completion) -> Result<()> {
    let mut names = if output.is_dir() { names_in(output)? } else { Vec::new() };
    // A loader opens the first file of weights: everything else is there before it.
    names.sort_by_key(|name| {
        (Path::new(name).extension().is_some_and(|ending| ending == "gguf"), Reverse(name.clone()))
    });
    for name in names {
        let to = place.dir.join(&name);
        fs::rename(output.join(&name), &to).map_err(Error::io("naming", &to))?;
    }
    for path in completion.stale.iter().filter(|path| path.is_file()) {
        fs::remove_file(path).map_err(Error::io("removing", path))?;
    }
    Ok(())
}

pub(crate) fn names_in(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let listing = |fault| Error::io("listing", dir)(fault);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(listing)? {
        names.push(entry.map_err(listing)?.file_name());
    }
    Ok(names)
}

/// Whether `path` is there and neither a file nor a directory: a device or a pipe, which a rename would destroy.
#[must_use]
pub(crate) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// What `path` stands for, if it is a symbolic link, perhaps to a file that is not there yet.
#[must_use]
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let linked = || fs::read_link(path).ok().map(|to| path.parent().unwrap_or(Path::new("")).join(to));
    path.canonicalize().ok().or_else(linked).unwrap_or_else(|| path.to_owned())
}

/// Replaces a file atomically: writes and flushes a temporary file, then renames it. A symbolic link stays one. A device or a
/// pipe is written to.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if is_special(path) {
        return fs::write(path, content).map_err(Error::io("writing", path));
    }
    let path = &resolved(path);
    let (_, partial) = partial_path(path)?;
    let written = fs::write(&partial, content)
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, path));
    written.map_err(|fault| {
        // A failure here has no remedy, and the original error is more important.
        let _ = fs::remove_file(&partial);
        Error::io("writing", path)(fault)
    })
}

/// Checks, before any work, that a file can be created at `path`.
///
/// # Errors
/// [`Error::Option`] if `path` is a directory, [`Error::Io`] if its parent directory does not exist.
pub(crate) fn check_place(path: &Path) -> Result<()> {
    let (parent, _) = partial_path(path)?;
    if path.is_dir() {
        return Err(Error::option(OptionName::Output, path.display(), "is a directory: give the path of a file"));
    }
    fs::metadata(parent).map(drop).map_err(Error::io("writing", path))
}

/// The parent directory of `out`, and the path of the partial output.
fn partial_path(out: &Path) -> Result<(&Path, PathBuf)> {
    let name = out.file_name().ok_or_else(|| Error::option(OptionName::Output, out.display(), "has no file name"))?;
    let mut partial_name = name.to_owned();
    partial_name.push(".partial");
    Ok((parent_of(out), out.with_file_name(partial_name)))
}

/// Takes the lock of a partial output that no process holds.
fn lock_abandoned(dir: &Path) -> Result<File> {
    let busy = || Error::Locked { path: dir.to_owned() };
    // A run may have been killed before it had a lock, or after it had deleted all else.
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    let lock = if is_empty { File::create_new(dir.join(LOCK)) } else { File::open(dir.join(LOCK)) };
    let lock = lock.map_err(|_| busy())?;
    lock.try_lock().map_err(|_| busy())?;
    Ok(lock)
}

/// Deletes a partial output: what its journal speaks of before the journal, and the lock last.
fn remove_partial(dir: &Path) -> Result<()> {
    for name in [REPLACED, OUTPUT, JOB, REQUEST, JOURNAL] {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            remove(&path)?;
        }
    }
    for name in names_in(dir)?.iter().filter(|name| *name != LOCK) {
        remove(&dir.join(name))?;
    }
    remove(dir)
}

fn remove(path: &Path) -> Result<()> {
    let is_dir = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let outcome = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    outcome.map_err(Error::io("removing", path))
}

/// Flushes the entries of `dir` to disk.
fn flush(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flushing", dir))
}

/// Flushes `dir` and everything in it to disk.
fn sync(dir: &Path) -> Result<()> {
    for name in names_in(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("flushing", &path))?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flushing", dir))
}

/// Bytes on disk of the files in `dir`. Files that are not written to the end have fewer than their length.
fn allocated_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for name in names_in(dir)? {
        let path = dir.join(name);
        let found = fs::metadata(&path).map_err(Error::io("reading", &path))?;
        bytes += if found.is_dir() { allocated_bytes(&path)? } else { found.blocks() * 512 };
    }
    Ok(bytes)
}

/// Bytes that this process can still write on the file system of `dir`.
fn available_bytes(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).map_err(|fault| Error::io("reading the free space of", dir)(fault.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{SourceId, Tool};

    fn job(of: &str) -> JobIdentity {
        let source = SourceId { headers_sha256: String::new(), parameters: 1, tensor_bytes: 2, file_bytes: 3 };
        JobIdentity { tool: Tool::this(), source, files: Vec::new(), request: serde_json::json!({ "budget": of }) }
    }

    fn existing(overwrite: bool) -> Existing {
        if overwrite { Existing::Replaced } else { Existing::Refused }
    }

    fn open(out: &Path, overwrite: bool) -> Result<Staging> {
        Staging::open(out, existing(overwrite), &job("4"), Duration::ZERO)
    }

    fn listed(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_left_when_it_is_dropped_without_records_and_everything_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/out");
        let partial = open(&out, false).unwrap();
        partial.write_file("sub/a", b"a").unwrap();
        drop(partial);
        assert!(listed(&dir.path().join("new")).is_empty());

        let partial = open(&out, false).unwrap();
        partial.write_file("sub/a", b"abc").unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(out.join("sub/a")).unwrap(), b"abc");
        assert_eq!(listed(&dir.path().join("new")), ["out"]);
        assert_eq!(listed(&out), ["sub"]);
    }

    #[test]
    fn an_output_is_replaced_only_when_asked_and_only_by_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), b"old").unwrap();
        assert_eq!(open(&out, false).unwrap_err().slug(), "output-exists");
        drop(open(&out, true).unwrap());
        assert!(out.join("old").exists());
        let partial = open(&out, true).unwrap();
        partial.write_file("new", b"new").unwrap();
        partial.finish().unwrap();
        assert_eq!(listed(&out), ["new"]);
        assert_eq!(listed(dir.path()), ["out"]);
    }

    #[test]
    fn the_same_job_continues_and_another_one_is_refused_unless_it_may_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let partial = open(&out, false).unwrap();
        assert!(!partial.is_continued());
        assert_eq!(open(&out, false).unwrap_err().slug(), "output-busy");
        partial.write_file("a", b"abc").unwrap();
        partial.journal().put("a", &1_u8).unwrap();
        drop(partial);

        let other = |overwrite| Staging::open(&out, existing(overwrite), &job("3.5"), Duration::ZERO);
        let fault = other(false).unwrap_err();
        assert_eq!(fault.slug(), "other-job");
        assert!(fault.to_string().contains("budget `4`"), "{fault}");
        let partial = open(&out, false).unwrap();
        assert!(partial.is_continued());
        assert_eq!(partial.journal().find("a").unwrap(), Some(1_u8));
        assert_eq!(fs::read(partial.output().join("a")).unwrap(), b"abc");
        drop(partial);

        let partial = other(true).unwrap();
        assert!(!partial.is_continued());
        assert!(listed(partial.output()).is_empty());
        partial.discard();
        assert!(listed(dir.path()).is_empty());
    }

    #[test]
    fn a_partial_output_without_a_job_is_removed_and_a_foreign_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("mine"), b"").unwrap();
        assert_eq!(open(&out, false).unwrap_err().slug(), "output-busy");
        assert_eq!(Staging::settle(&out).unwrap_err().slug(), "output-busy");
        fs::remove_file(partial.join("mine")).unwrap();
        drop(open(&out, false).unwrap());
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(LOCK), b"").unwrap();
        fs::write(partial.join(JOB), b"{").unwrap();
        fs::write(partial.join("rest"), b"").unwrap();
        let staging = open(&out, false).unwrap();
        assert!(!partial.join("rest").exists());
        drop(staging);
        assert!(!partial.exists());
    }

    #[test]
    fn a_complete_output_gets_its_name_however_far_its_run_came() {
        for renames in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
            fs::create_dir(&out).unwrap();
            fs::write(out.join("old"), b"old").unwrap();
            let staging = open(&out, true).unwrap();
            staging.write_file("new", b"new").unwrap();
            staging.journal().put(COMPLETE, &Completion { overwrite: true, stale: Vec::new() }).unwrap();
            drop(staging);
            if renames > 0 {
                fs::rename(&out, partial.join(REPLACED)).unwrap();
            }
            if renames > 1 {
                fs::rename(partial.join(OUTPUT), &out).unwrap();
            }
            Staging::settle(&out).unwrap();
            assert_eq!(listed(&out), ["new"], "after {renames} renames");
            assert_eq!(listed(dir.path()), ["out"]);
        }
    }

    #[test]
    fn the_files_of_a_complete_output_are_moved_however_far_its_run_came() {
        for moved in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("m.gguf");
            let staging = open(&out, false).unwrap();
            let names = ["m.ramrs-manifest.json", "m-00002-of-00002.gguf", "m-00001-of-00002.gguf"];
            for name in names {
                staging.write_file(name, name.as_bytes()).unwrap();
            }
            fs::write(dir.path().join("stale"), b"").unwrap();
            let completion = Completion { overwrite: true, stale: vec![dir.path().join("stale")] };
            staging.journal().put(COMPLETE, &completion).unwrap();
            let output = staging.output().to_owned();
            drop(staging);
            for name in &names[..moved] {
                fs::rename(output.join(name), dir.path().join(name)).unwrap();
            }
            Staging::settle(&out).unwrap();
            let mut all = names.to_vec();
            all.sort_unstable();
            assert_eq!(listed(dir.path()), all, "after {moved} renames");
        }
    }

    #[test]
    fn replacing_leaves_devices_and_links_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for content in [b"one".as_slice(), b"two"] {
            replace(&link, content).unwrap();
            replace(Path::new("/dev/null"), content).unwrap();
            assert_eq!(fs::read(&file).unwrap_or_default(), content);
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(is_special(Path::new("/dev/null")) && !is_special(&file) && !is_special(dir.path()));
        assert_eq!(listed(dir.path()), ["file", "link"]);
    }

    #[test]
    fn a_plan_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let staging = open(&dir.path().join("out"), false).unwrap();
        staging.check_room(1).unwrap();
        assert_eq!(staging.check_room(u64::MAX).unwrap_err().slug(), "disk-full");
        drop(staging);
        assert!(listed(dir.path()).is_empty());
    }
}
