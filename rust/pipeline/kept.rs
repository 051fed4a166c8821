//! A sensitivity that is kept: in the journal of its job, and beside the analysis that was made with it.
//!
//! The file beside an analysis is a journal with two records. Another version of ramrs does not read it, and measures again.

use std::path::{Path, PathBuf};

use super::sensitivity::Sensitivity;
use crate::checkpoint::stream::Pass;
use crate::error::{Error, Result};
use crate::job::place::parent_of;
use crate::job::staging::names_in;
use crate::journal::Journal;
use crate::schema::Settings;

/// The ending of a file that keeps the sensitivity of the analysis beside it.
const ENDING: &str = "sensitivity";

/// The keys of the records. The version is in them: values have the form of this version's types.
const KEY: &str = concat!("sensitivity/", env!("CARGO_PKG_VERSION"));
const DIGEST: &str = concat!("sensitivity-sha256/", env!("CARGO_PKG_VERSION"));

/// The file for the sensitivity of the analysis at `path`.
#[must_use]
pub(super) fn file_of(path: &Path) -> PathBuf {
    path.with_extension(ENDING)
}

/// Adds `found`, and the warnings that it gave, to `journal`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn store(journal: &Journal, found: &Sensitivity, warnings: &[String]) -> Result<()> {
    if !journal.is_kept() {
        return Ok(());
    }
    // Settings leave out fields: they have a form as text only.
    let said = serde_json::to_string(&(&found.settings, warnings)).map_err(|fault| Error::Bug(fault.to_string()))?;
    journal.put(KEY, &(&found.measured, &found.feedback, said))?;
    journal.put(DIGEST, &found.settings.sensitivity_sha256)
}

/// The sensitivity in `journal`. Gives its warnings again.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn load(pass: Pass<'_>, journal: &Journal) -> Result<Option<Sensitivity>> {
    let Some((measured, feedback, said)) = journal.find::<(_, _, String)>(KEY)? else { return Ok(None) };
    let Ok((settings, warnings)) = serde_json::from_str::<(Settings, Vec<String>)>(&said) else { return Ok(None) };
    for warning in warnings {
        pass.progress.warn(warning);
    }
    Ok(Some(Sensitivity { measured, feedback, settings }))
}

/// The journal with the sensitivity of `settings`, of those that lie beside the document at `path`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn beside(path: &Path, settings: &Settings) -> Result<Option<Journal>> {
    let parent = parent_of(path);
    let files = names_in(parent)?.into_iter().map(|name| parent.join(name));
    let is_kept = |path: &PathBuf| path.extension().is_some_and(|ending| ending == ENDING) && path.is_file();
    let mut files: Vec<PathBuf> = files.filter(is_kept).collect();
    files.sort();
    for file in files {
        let journal = Journal::read(&file)?;
        if journal.find::<String>(DIGEST)?.is_some_and(|digest| digest == settings.sensitivity_sha256) {
            return Ok(Some(journal));
        }
    }
    Ok(None)
}
