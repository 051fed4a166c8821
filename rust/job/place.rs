//! The place of an output: a directory, or files of one name next to others.

use std::fs;
use std::path::{Path, PathBuf};

use crate::container::gguf::split;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::option::OptionName;
use crate::schema::manifest::FILE_NAME;

/// An output that is a file of weights, whose manifest lies next to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilePlace<'a> {
    /// The directory of the file.
    pub dir: &'a Path,
    /// The name of the file without its ending.
    pub stem: &'a str,
}

impl<'a> FilePlace<'a> {
    /// The place of `output`, if that is the name of a file that holds everything; `None` for a directory.
    #[must_use]
    pub(crate) fn of(output: &'a Path) -> Option<Self> {
        let stem = split::stem_of(output.file_name()?.to_str()?).filter(|stem| !stem.is_empty())?;
        Some(Self { dir: parent_of(output), stem }).filter(|_| !output.is_dir())
    }

    /// The name of its manifest.
    #[must_use]
    pub(crate) fn manifest(&self) -> String {
        format!("{}.{FILE_NAME}", self.stem)
    }
}

/// The directory that `path` is in: the working directory for a name alone.
#[must_use]
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The directory of `output`, and the name of the manifest in it.
#[must_use]
pub(crate) fn manifest_of(output: &Path) -> (PathBuf, String) {
    match FilePlace::of(output) {
        Some(place) => (place.dir.to_owned(), place.manifest()),
        None => (output.to_owned(), FILE_NAME.to_owned()),
    }
}

/// Checks that `output` names a file only if the outputs of `format` are files.
///
/// # Errors
/// [`Error::Option`].
pub(crate) fn check_file_name(output: &Path, format: &dyn Format) -> Result<()> {
    if FilePlace::of(output).is_some() && !format.is_one_file() {
        let reason = format!("outputs in the format {} are directories", format.name());
        return Err(Error::option(OptionName::Output, output.display(), reason));
    }
    Ok(())
}

/// Checks that `output` is not, contains or lies in the source directory `source_dir`. It must not exist, unless `overwrite`
/// is set and it is empty or an earlier output. If `model` is a single file, the output may be in the same directory.
///
/// # Errors
/// [`Error::MissingOption`], [`Error::OutputIsSource`], [`Error::OutputExists`], [`Error::NotOurs`].
pub(crate) fn check_output_path(model: &Path, source_dir: &Path, output: &Path, overwrite: bool) -> Result<()> {
    if output.as_os_str().is_empty() {
        return Err(Error::MissingOption { option: OptionName::Output, what: "the directory to write" });
    }
    let mut existing = std::path::absolute(output).map_err(Error::io("resolving", output))?;
    while !existing.exists() && existing.pop() {}
    let existing = existing.canonicalize().map_err(Error::io("resolving", output))?;
    let inside = existing.starts_with(source_dir) && !model.is_file();
    let is_parent = output.exists() && source_dir.starts_with(&existing);
    if inside || is_parent {
        return Err(Error::OutputIsSource { path: output.to_owned() });
    }
    if output.symlink_metadata().is_ok() && !overwrite {
        return Err(Error::OutputExists { path: output.to_owned() });
    }
    if output.exists() && output.canonicalize().ok() == model.canonicalize().ok() {
        return Err(Error::OutputIsSource { path: output.to_owned() });
    }
    let (dir, manifest) = manifest_of(output);
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if output.symlink_metadata().is_ok() && !dir.join(manifest).is_file() && !is_empty() {
        return Err(Error::NotOurs { path: output.to_owned() });
    }
    Ok(())
}
