//! Models that are split over several files, as llama.cpp splits them.
//!
//! They are called `NAME-00001-of-0000N.gguf` and so on. Each says by key-values which one it is, of how many, and how many
//! tensors there are in all. Only the first has the other key-values; it may have no tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::key_values::KeyValues;
use super::value::Value;
use super::{ALIGNMENT, ALIGNMENT_KEY, Gguf};
use crate::container::layout::file_name;
use crate::container::{Container, Header, Share};
use crate::error::{Error, FileFault, Result};

/// The number of the file, from 0.
const NUMBER: &str = "split.no";
/// The number of files.
const FILES: &str = "split.count";
/// The number of tensors in all files.
const TENSORS: &str = "split.tensors.count";

/// The key-values of a file of several.
pub(crate) const KEYS: [&str; 3] = [NUMBER, FILES, TENSORS];

/// A file of a model, with its header.
#[derive(Clone, Debug)]
pub(crate) struct SplitFile {
    pub path: PathBuf,
    /// Length of the file, in bytes.
    pub bytes: u64,
    pub header: Header,
}

/// The key-values that the file `share` of an output with `key_values` states.
pub(super) fn stated(key_values: &KeyValues, share: Share) -> Cow<'_, KeyValues> {
    let mut stated = Cow::Borrowed(key_values);
    if share.file > 0 {
        let mut own = KeyValues::default();
        // Without the key it would be read with the default.
        if let Some(alignment) = key_values.alignment().ok().filter(|&alignment| alignment != ALIGNMENT) {
            own.set(ALIGNMENT_KEY, &Value::U32(alignment as u32));
        }
        stated = Cow::Owned(own);
    }
    // The source may have been split, too.
    for key in KEYS {
        if stated.get(key).is_some() {
            stated.to_mut().remove(key);
        }
    }
    if share.files > 1 {
        let own = stated.to_mut();
        own.set(NUMBER, &Value::U16(share.file as u16));
        own.set(FILES, &Value::U16(share.files as u16));
        own.set(TENSORS, &Value::I32(i32::try_from(share.tensors).unwrap_or(i32::MAX)));
    }
    stated
}

/// Opens the model at `path`: one file, or the first of several, which are then read, too. They are in order.
///
/// # Errors
/// [`FileFault::Split`] for files that do not belong together or another file than the first,
/// [`FileFault::MissingSplit`], [`Error::DuplicateTensor`], and those of [`Container::read`].
pub(crate) fn open(path: &Path) -> Result<Vec<SplitFile>> {
    let first = open_one(path)?;
    let wrong = |path: &Path, reason: String| Err(Error::file(path, FileFault::Split(reason)));
    let count = stated_number(&first, FILES)?.unwrap_or(1);
    let named = path.file_name().and_then(|name| name.to_str()).and_then(parse_name);
    let (stem, at, of) = match named {
        Some(named) => named,
        None if count > 1 => {
            return wrong(path, format!("it is one of {count} files, and its name does not say which"));
        }
        None => return Ok(vec![first]),
    };
    if of != count.max(1) {
        return wrong(path, format!("its name says that there are {of} files, and its key-value `{FILES}` {count}"));
    }
    if at != 1 {
        return wrong(path, format!("it is file {at} of {of}, and the first is needed"));
    }
    let mut files = vec![first];
    for at in 1..of {
        let name = file_name(stem, at as usize, of as usize, Gguf.extension());
        let next = path.with_file_name(&name);
        if !next.exists() {
            return Err(Error::file(path, FileFault::MissingSplit { count: of, file: name }));
        }
        files.push(open_one(&next)?);
    }
    for (at, file) in (0..).zip(&files) {
        let said = [stated_number(file, NUMBER)?, stated_number(file, FILES)?];
        if of > 1 && said != [Some(at), Some(of)] {
            let [number, count] = said.map(|number| number.map_or("nothing".to_owned(), |number| number.to_string()));
            let expected = format!("`{NUMBER}` {at} and `{FILES}` {of} are expected");
            return wrong(&file.path, format!("it says `{NUMBER}` {number} and `{FILES}` {count}, where {expected}"));
        }
    }
    check_tensors(&files)?;
    Ok(files)
}

/// Checks that no tensor is in two files, and that there are as many as the first file says.
fn check_tensors(files: &[SplitFile]) -> Result<()> {
    let mut seen: BTreeMap<&str, &Path> = BTreeMap::new();
    for file in files {
        for entry in &file.header.entries {
            if let Some(first) = seen.insert(&entry.name, &file.path) {
                let (tensor, first, second) = (entry.name.clone(), first.to_owned(), file.path.clone());
                return Err(Error::DuplicateTensor { tensor, first, second });
            }
        }
    }
    let Some(first) = files.first() else { return Ok(()) };
    match stated_number(first, TENSORS)? {
        Some(tensors) if tensors != seen.len() as u64 => {
            let reason = format!("`{TENSORS}` is {tensors}, and the files hold {}", seen.len());
            Err(Error::file(&first.path, FileFault::Split(reason)))
        }
        _ => Ok(()),
    }
}

fn open_one(path: &Path) -> Result<SplitFile> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    let bytes = file.metadata().map_err(Error::io("reading", path))?.len();
    let header = Gguf.read(&file, path, bytes)?;
    Ok(SplitFile { path: path.to_owned(), bytes, header })
}

/// The number that `file` states under `key`, if any.
fn stated_number(file: &SplitFile, key: &str) -> Result<Option<u64>> {
    let Some(value) = file.header.key_values.get(key) else { return Ok(None) };
    let reason = || format!("is of type {}, or negative, and must be a count", value.value_type());
    let fault = || FileFault::KeyValue { key: key.to_owned(), reason: reason() };
    value.unsigned().map(Some).ok_or_else(|| Error::file(&file.path, fault()))
}

/// The name of the model in `name`, that of a GGUF file or of one of several.
#[must_use]
pub(crate) fn stem_of(name: &str) -> Option<&str> {
    parse_name(name).map(|(stem, ..)| stem).or_else(|| name.strip_suffix(".gguf"))
}

/// Whether `name` is that of a file of several after the first.
#[must_use]
pub(crate) fn is_later(name: &str) -> bool {
    parse_name(name).is_some_and(|(_, number, _)| number > 1)
}

/// Name, number from 1, and count in `NAME-00001-of-0000N.gguf`.
fn parse_name(name: &str) -> Option<(&str, u64, u64)> {
    let name = name.strip_suffix(".gguf")?;
    let (rest, of) = name.rsplit_once("-of-")?;
    let (stem, at) = rest.rsplit_once('-')?;
    let number = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5);
    Some((stem, number(at)?, number(of)?))
}
