//! An output that gets its final name only when it is complete.

use std::cmp::Reverse;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use super::place::FilePlace;
use crate::container::file::write_at;
use crate::container::gguf::split;
use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::schema::manifest::Manifest;

/// Name of the lock file of a partial output.
const LOCK: &str = ".ramrs-lock";

/// The directory `<out>.partial`. Dropping it deletes the directory, unless [`finish`](Self::finish) renamed it.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    dir: PathBuf,
    overwrite: bool,
    lock: Option<File>,
}

impl Staging {
    /// Creates the partial output for `out` on a file system with at least `needed_bytes` free. Deletes the partial
    /// output of an earlier run that was killed, but not of a run in progress.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if `out` exists and `overwrite` is false, [`Error::Locked`] if another run is writing it,
    /// [`Error::DiskFull`], [`Error::Io`].
    pub(crate) fn create(out: &Path, overwrite: bool, needed_bytes: u64) -> Result<Self> {
        if out.symlink_metadata().is_ok() && !overwrite {
            return Err(Error::OutputExists { path: out.to_owned() });
        }
        let (parent, dir) = partial_path(out)?;
        fs::create_dir_all(parent).map_err(Error::io("creating", parent))?;
        if dir.symlink_metadata().is_ok() {
            check_abandoned(&dir)?;
            remove(&dir)?;
        }
        let available = available_bytes(parent)?;
        if available < needed_bytes {
            return Err(Error::DiskFull { path: out.to_owned(), needed: needed_bytes, available });
        }
        fs::create_dir(&dir).map_err(Error::io("creating", &dir))?;
        let mut partial = Self { out: out.to_owned(), dir, overwrite, lock: None };
        let lock = partial.create_file(LOCK, 0)?;
        lock.try_lock().map_err(|fault| Error::io("locking", &partial.dir)(fault.into()))?;
        partial.lock = Some(lock);
        Ok(partial)
    }

    /// Checks, before any work, that no other run is writing `out`.
    ///
    /// # Errors
    /// [`Error::Locked`].
    pub(crate) fn check_free(out: &Path) -> Result<()> {
        let (_, dir) = partial_path(out)?;
        if dir.symlink_metadata().is_ok() { check_abandoned(&dir) } else { Ok(()) }
    }

    #[must_use]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates a file of `bytes` bytes in the partial output.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn create_file(&self, name: impl AsRef<Path>, bytes: u64) -> Result<File> {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("creating", parent))?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::io("creating", &path))?;
        file.set_len(bytes).map_err(Error::io("writing", &path))?;
        Ok(file)
    }

    /// Writes a file with `content` in the partial output.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_file(&self, name: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let file = self.create_file(&name, content.len() as u64)?;
        write_at(&file, &self.dir.join(name), content, 0)?;
        Ok(())
    }

    /// Flushes all files to disk and renames the directory to its final name. The files of an output that is a file itself are
    /// moved next to it, the first file of weights last.
    ///
    /// # Errors
    /// [`Error::Io`]; the partial output is then deleted, and an existing output is restored.
    pub(crate) fn finish(mut self) -> Result<()> {
        let lock = self.dir.join(LOCK);
        fs::remove_file(&lock).map_err(Error::io("removing", &lock))?;
        sync(&self.dir)?;
        if let Some(place) = FilePlace::of(&self.out) {
            self.move_files(place)?;
            return flush(place.dir);
        }
        let mut replaced = None;
        if self.overwrite && self.out.symlink_metadata().is_ok() {
            let aside = self.dir.with_extension("replaced");
            fs::rename(&self.out, &aside).map_err(Error::io("moving", &self.out))?;
            replaced = Some(aside);
        }
        if let Err(fault) = fs::rename(&self.dir, &self.out) {
            if let Some(aside) = replaced {
                fs::rename(&aside, &self.out).map_err(Error::io("moving back", &self.out))?;
            }
            return Err(Error::io("naming", &self.out)(fault));
        }
        self.lock = None;
        self.dir = PathBuf::new();
        if let Some(parent) = self.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            flush(parent)?;
        }
        if let Some(aside) = replaced {
            remove(&aside)?;
        }
        Ok(())
    }
}

impl Staging {
    /// Moves the files of the partial output to `place`.
    fn move_files(&self, place: FilePlace<'_>) -> Result<()> {
        let listing = |fault| Error::io("listing", &self.dir)(fault);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(listing)? {
            names.push(entry.map_err(listing)?.file_name());
        }
        // A loader opens the first file of weights: everything else is there before it.
        names.sort_by_key(|name| {
            (Path::new(name).extension().is_some_and(|ending| ending == "gguf"), Reverse(name.clone()))
        });
        // Of an output in several files there may be more than there are now.
        let replaced = place.dir.join(place.manifest());
        let stale: Vec<PathBuf> = if self.overwrite && replaced.is_file() {
            let files = Manifest::read(&replaced)?.files;
            // A manifest may come from anywhere: it names no other files than those of this output.
            let is_plain = |name: &String| Path::new(name).file_name().is_some_and(|plain| *plain == **name);
            let is_part = |name: &String| is_plain(name) && split::stem_of(name) == Some(place.stem);
            let files = files.into_iter().map(|file| file.name).filter(is_part);
            files.filter(|name| !names.iter().any(|new| *new == **name)).map(|name| place.dir.join(name)).collect()
        } else {
            Vec::new()
        };
        if let Some(name) = names.iter().find(|name| !self.overwrite && place.dir.join(name).exists()) {
            return Err(Error::OutputExists { path: place.dir.join(name) });
        }
        for name in names {
            let to = place.dir.join(&name);
            fs::rename(self.dir.join(&name), &to).map_err(Error::io("naming", &to))?;
        }
        for path in stale.iter().filter(|path| path.is_file()) {
            fs::remove_file(path).map_err(Error::io("removing", path))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            // A failure here has no remedy, and the original error is more important.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Replaces a file atomically: writes and flushes a temporary file, then renames it.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
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
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut partial_name = name.to_owned();
    partial_name.push(".partial");
    Ok((parent, parent.join(partial_name)))
}

/// Checks that no process holds the lock of a partial output.
fn check_abandoned(dir: &Path) -> Result<()> {
    let lock = File::open(dir.join(LOCK)).map_err(|_| Error::Locked { path: dir.to_owned() })?;
    lock.try_lock().map_err(|_| Error::Locked { path: dir.to_owned() })
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
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let path = entry.map_err(Error::io("listing", dir))?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("flushing", &path))?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flushing", dir))
}

/// Bytes that this process can still write on the file system of `dir`.
fn available_bytes(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).map_err(|fault| Error::io("reading the free space of", dir)(fault.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_when_it_is_dropped_and_everything_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/out");
        let partial = Staging::create(&out, false, 0).unwrap();
        partial.write_file("sub/a", b"a").unwrap();
        drop(partial);
        assert!(fs::read_dir(dir.path().join("new")).unwrap().next().is_none());

        let partial = Staging::create(&out, false, 0).unwrap();
        partial.write_file("sub/a", b"abc").unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(out.join("sub/a")).unwrap(), b"abc");
        let left: Vec<_> = fs::read_dir(dir.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["out"]);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn an_output_is_replaced_only_when_asked_and_only_by_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), b"old").unwrap();
        assert_eq!(Staging::create(&out, false, 0).unwrap_err().slug(), "output-exists");
        drop(Staging::create(&out, true, 0).unwrap());
        assert!(out.join("old").exists());
        let partial = Staging::create(&out, true, 0).unwrap();
        partial.write_file("new", b"new").unwrap();
        partial.finish().unwrap();
        assert!(out.join("new").exists() && !out.join("old").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_abandoned_partial_is_removed_and_a_live_or_foreign_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let live = Staging::create(&out, false, 0).unwrap();
        assert_eq!(Staging::create(&out, false, 0).unwrap_err().slug(), "output-busy");
        // Simulates a kill: the directory remains, but the lock is released with the process.
        let Staging { ref dir, .. } = live;
        let kept = dir.clone();
        let lock = live.lock.as_ref().unwrap().try_clone().unwrap();
        std::mem::forget(live);
        lock.unlock().unwrap();
        assert!(kept.exists());
        drop(Staging::create(&out, false, 0).unwrap());
        fs::create_dir(&kept).unwrap();
        assert_eq!(Staging::create(&out, false, 0).unwrap_err().slug(), "output-busy");
        assert!(kept.exists());
    }

    #[test]
    fn a_plan_that_does_not_fit_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let fault = Staging::create(&dir.path().join("out"), false, u64::MAX).unwrap_err();
        assert_eq!(fault.slug(), "disk-full");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
