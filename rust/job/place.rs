//! Checks of the output path.

use std::fs;
use std::path::Path;

use super::staging::Staging;
use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::schema::manifest::FILE_NAME;

/// Checks that `output` is not, contains or lies in the source directory `source_dir`, and that no other run is writing
/// it. It must not exist, unless `overwrite` is set and it is empty or an earlier output. If `model` is a single file, the
/// output may be in the same directory.
///
/// # Errors
/// [`Error::MissingOption`], [`Error::OutputIsSource`], [`Error::OutputExists`], [`Error::NotOurs`], [`Error::Locked`].
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
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if output.symlink_metadata().is_ok() && !output.join(FILE_NAME).is_file() && !is_empty() {
        return Err(Error::NotOurs { path: output.to_owned() });
    }
    Staging::check_free(output)
}
