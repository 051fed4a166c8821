//! The files of a checkpoint's directory: shards, index, configuration, and others.
//!
//! The shards are those that `model.safetensors.index.json` lists, else `model.safetensors`, else the one complete set of
//! `model-0000i-of-0000n.safetensors`, else the only `*.safetensors`. An index of shards that are missing is ignored if
//! there is such a file or set that it does not list. Nothing outside the directory is read: an index may
//! name plain files only, and a symbolic link must stay inside. If the directory is a snapshot in a Hugging Face cache,
//! links may also lead into the `blobs` folder of that cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Config;
use crate::container::gguf::split;
use crate::container::safetensors::INDEX;
use crate::container::{Container, Gguf, Header};
use crate::error::{Error, FileFault, Result, os_message};

/// The longest index or configuration that is read, in bytes.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// The files of a checkpoint, by kind.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The directory, symbolic links resolved.
    pub dir: PathBuf,
    /// Name and resolved path of each shard, sorted by name.
    pub shards: Vec<(String, PathBuf)>,
    /// Lengths and headers of the shards, in bytes, if they were read to find the shards.
    pub headers: Vec<(u64, Header)>,
    /// The index, if there is one: its path and its `weight_map`.
    pub index: Option<(PathBuf, BTreeMap<String, String>)>,
    pub config: Option<Config>,
    /// All other files, relative to the directory, sorted.
    pub other_files: Vec<PathBuf>,
    /// What was ignored, in sentences for the user.
    pub notes: Vec<String>,
}

impl Directory {
    /// Lists the files of the checkpoint at `path`, a directory, a single `.safetensors` file, or a GGUF file.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], [`Error::File`], [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let found = path.canonicalize().map_err(|fault| missing(path, &fault))?;
        if found.is_dir() {
            return Self::of_dir(&found);
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if is_gguf(&name) {
            return Self::of_gguf(path);
        }
        if !name.ends_with(".safetensors") {
            return Err(no_checkpoint(
                path,
                "not a directory, and no .safetensors or .gguf file",
                "give the model's directory",
            ));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = dir.canonicalize().map_err(Error::io("opening", dir))?;
        if dir.join(INDEX).exists() || name.contains("-of-") {
            let reason = "one shard of several";
            return Err(no_checkpoint(path, reason, "give the directory that holds all of them"));
        }
        let config = read_config(&dir)?;
        let (other_files, notes) = (Vec::new(), Vec::new());
        let shards = vec![(name, found)];
        Ok(Self { dir, shards, headers: Vec::new(), index: None, config, other_files, notes })
    }

    /// The model in the GGUF file `path`, or in the files of which that is the first. The key-values in it are all there is
    /// besides the tensors.
    fn of_gguf(path: &Path) -> Result<Self> {
        let named = |file: &Path| -> Result<(String, PathBuf)> {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            Ok((name, file.canonicalize().map_err(Error::io("opening", file))?))
        };
        let files = split::open(path)?;
        let shards = files.iter().map(|file| named(&file.path)).collect::<Result<_>>()?;
        let headers = files.into_iter().map(|file| (file.bytes, file.header)).collect();
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = dir.canonicalize().map_err(Error::io("opening", dir))?;
        Ok(Self { dir, shards, headers, index: None, config: None, other_files: Vec::new(), notes: Vec::new() })
    }

    fn of_dir(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        walk(dir, Path::new(""), &mut files)?;
        files.sort();
        let plain = |file: &PathBuf| file.to_str().filter(|_| file.components().count() == 1).map(str::to_owned);
        let top: Vec<String> = files.iter().filter_map(plain).collect();
        if let Some(model) = only_gguf(dir, &top)? {
            return Self::of_gguf(&dir.join(model));
        }

        let mut notes = Vec::new();
        let mut index = read_index(dir)?;
        let listed = index.as_ref().map(|(path, weight_map)| listed_shards(path, weight_map)).transpose()?;
        let names = match listed {
            None => loose_shards(dir, &top, &mut notes)?,
            Some(listed) => match instead_of_missing(dir, &top, &listed, &mut notes) {
                None => listed,
                Some(others) => {
                    index = None;
                    others
                }
            },
        };
        let mut shards = Vec::with_capacity(names.len());
        for (name, tensors) in names {
            let path = dir.join(&name);
            if !path.exists() {
                let holder = index.as_ref().map_or(dir, |(path, _)| path);
                return Err(Error::file(holder, FileFault::MissingShard { shard: name, tensors }));
            }
            let path = inside(dir, &path)?;
            shards.push((name, path));
        }
        let config = read_config(dir)?;
        let special = |file: &PathBuf| {
            plain(file).is_some_and(|name| {
                name == INDEX || name == "config.json" || shards.iter().any(|(shard, _)| *shard == name)
            })
        };
        let mut other_files = Vec::new();
        for file in files {
            if !special(&file) {
                inside(dir, &dir.join(&file))?;
                other_files.push(file);
            }
        }
        Ok(Self { dir: dir.to_owned(), shards, headers: Vec::new(), index, config, other_files, notes })
    }
}

/// Whether the model at `path` is in GGUF: a file of that name, or a directory that holds one such model and no other.
#[must_use]
pub(crate) fn holds_gguf(path: &Path) -> bool {
    if path.is_dir() {
        let names = fs::read_dir(path).into_iter().flatten().flatten();
        let top: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        return matches!(only_gguf(path, &top), Ok(Some(_)));
    }
    path.file_name().and_then(|name| name.to_str()).is_some_and(is_gguf)
}

/// The error for a path that does not open.
fn missing(path: &Path, fault: &std::io::Error) -> Error {
    let text = path.to_string_lossy();
    let looks_remote = path.is_relative() && text.split('/').count() == 2 && !text.starts_with('.');
    let hint = if looks_remote {
        "ramrs never downloads: fetch the repository first (hf download NAME --local-dir DIR) and give its directory"
    } else {
        "give the model's directory"
    };
    no_checkpoint(path, os_message(fault), hint)
}

fn no_checkpoint(path: &Path, reason: impl Into<String>, hint: &'static str) -> Error {
    Error::NoCheckpoint { path: path.to_owned(), reason: reason.into(), hint }
}

/// Collects the files under `dir`/`below`, relative to `dir`. Skips hidden files and folders.
fn walk(dir: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = dir.join(below);
    for entry in fs::read_dir(&here).map_err(Error::io("listing", &here))? {
        let entry = entry.map_err(Error::io("listing", &here))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let relative = below.join(entry.file_name());
        let kind = entry.file_type().map_err(Error::io("reading", &entry.path()))?;
        if kind.is_dir() {
            walk(dir, &relative, files)?;
        } else if kind.is_file() || (kind.is_symlink() && !entry.path().is_dir()) {
            files.push(relative);
        }
    }
    Ok(())
}

/// Resolves the symbolic links of `path`, and checks that the target belongs to the checkpoint in `dir`.
fn inside(dir: &Path, path: &Path) -> Result<PathBuf> {
    let target = path.canonicalize().map_err(Error::io("opening", path))?;
    let is_snapshot = dir.parent().and_then(Path::file_name).is_some_and(|name| name == "snapshots");
    let blobs = dir.ancestors().nth(2).filter(|_| is_snapshot).map(|repository| repository.join("blobs"));
    if target.starts_with(dir) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        Ok(target)
    } else {
        Err(Error::file(path, FileFault::LinkOut(target)))
    }
}

/// Reads `dir`/`name` as text, if there is such a file.
pub(super) fn read_text(dir: &Path, name: &str) -> Result<Option<(PathBuf, String)>> {
    let path = dir.join(name);
    // Not `exists`: a dangling link is an error, not a missing file.
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let target = inside(dir, &path)?;
    let bytes = fs::metadata(&target).map_err(Error::io("reading", &path))?.len();
    if bytes > MAX_JSON_BYTES {
        return Err(Error::file(&path, FileFault::Config(format!("{bytes} bytes long"))));
    }
    let text = fs::read_to_string(&target).map_err(Error::io("reading", &path))?;
    Ok(Some((path, text)))
}

fn read_config(dir: &Path) -> Result<Option<Config>> {
    let Some((path, text)) = read_text(dir, "config.json")? else { return Ok(None) };
    let config = serde_json::from_str(&text)
        .or_else(|fault| serde_json::from_str(&replace_non_finite(&text)).map_err(|_| fault));
    config.map(Some).map_err(|fault| Error::file(&path, FileFault::Config(fault.to_string())))
}

/// Replaces `NaN` and infinities, which Python writes but JSON lacks, by the objects that `transformers` writes for them.
fn replace_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"].into_iter().find(|number| rest.starts_with(number));
        let length = match (next, number) {
            ('"', _) => string_length(rest),
            (_, Some(number)) => {
                out.push_str("{\"__float__\": \"");
                out.push_str(number);
                out.push_str("\"}");
                rest = &rest[number.len()..];
                continue;
            }
            (other, None) => other.len_utf8(),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The length of the quoted string at the start of `text`, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, found) in text.char_indices().skip(1) {
        match found {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn read_index(dir: &Path) -> Result<Option<(PathBuf, BTreeMap<String, String>)>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Some((path, text)) = read_text(dir, INDEX)? else { return Ok(None) };
    match serde_json::from_str::<Index>(&text) {
        Ok(index) if index.weight_map.is_empty() => {
            Err(Error::file(&path, FileFault::Index("its weight_map is empty".to_owned())))
        }
        Ok(index) => Ok(Some((path, index.weight_map))),
        Err(fault) => Err(Error::file(&path, FileFault::Index(fault.to_string()))),
    }
}

/// The shards that an index lists, sorted by name, each with its number of tensors.
fn listed_shards(index: &Path, weight_map: &BTreeMap<String, String>) -> Result<Vec<(String, usize)>> {
    let mut shards = BTreeMap::new();
    for shard in weight_map.values() {
        let mut components = Path::new(shard).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains(['/', '\\', '\0']) {
            return Err(Error::file(index, FileFault::Escapes(shard.clone())));
        }
        *shards.entry(shard.clone()).or_insert(0) += 1;
    }
    Ok(shards.into_iter().collect())
}

/// The shards to use if a shard that the index lists is missing, and the directory holds a whole checkpoint of other files.
fn instead_of_missing(
    dir: &Path,
    top: &[String],
    listed: &[(String, usize)],
    notes: &mut Vec<String>,
) -> Option<Vec<(String, usize)>> {
    let (missing, _) = listed.iter().find(|(name, _)| !top.contains(name))?;
    // A link without a target, or a directory, is a fault of its own.
    if dir.join(missing).symlink_metadata().is_ok() {
        return None;
    }
    let mut of_others = Vec::new();
    let others = loose_shards(dir, top, &mut of_others).ok()?;
    // A set of which the index lists a part is incomplete.
    if others.iter().any(|(name, _)| listed.iter().any(|(other, _)| other == name)) {
        return None;
    }
    notes.append(&mut of_others);
    notes.push(format!("{INDEX} is ignored: it lists `{missing}`, which is missing, and `{}` is here", others[0].0));
    Some(others)
}

/// Whether `name` is that of a GGUF file.
fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == Gguf.extension())
}

/// The GGUF file, or the first of several, in a directory that holds this one model and no other form of it.
fn only_gguf<'t>(dir: &Path, top: &'t [String]) -> Result<Option<&'t str>> {
    let others = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl"];
    if top.iter().any(|name| name == INDEX || others.iter().any(|ending| name.ends_with(ending))) {
        return Ok(None);
    }
    let is_first = |name: &&str| is_gguf(name) && !split::is_later(name);
    let models: Vec<&str> = top.iter().map(String::as_str).filter(is_first).collect();
    match models.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => {
            let reason = format!("{} GGUF models in it", several.len());
            Err(no_checkpoint(dir, reason, "give the file of the model"))
        }
    }
}

/// Finds the shards of a directory without an index, among the file names `top`. Says in `notes` which are left out.
fn loose_shards(dir: &Path, top: &[String], notes: &mut Vec<String>) -> Result<Vec<(String, usize)>> {
    let all: Vec<&String> = top.iter().filter(|name| name.ends_with(".safetensors")).collect();
    if top.iter().any(|name| name == "model.safetensors") {
        return Ok(vec![("model.safetensors".to_owned(), 0)]);
    }
    if let Some(found) = numbered_shards(dir, &all, notes) {
        return found;
    }
    if let [only] = all.as_slice() {
        return Ok(vec![((*only).clone(), 0)]);
    }
    if !all.is_empty() {
        let reason = format!("{} .safetensors files, none of them called model.safetensors, and no {INDEX}", all.len());
        return Err(no_checkpoint(dir, reason, "give the one file that is the model"));
    }
    let has = |endings: &[&str]| top.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending)));
    if let Some(pickle) = has(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]) {
        return Err(Error::file(&dir.join(pickle), FileFault::Pickle));
    }
    Err(no_checkpoint(dir, "no .safetensors file in it", "give the model's directory"))
}

/// The one complete set of numbered shards among `all`; `None` if no shard is numbered.
fn numbered_shards(dir: &Path, all: &[&String], notes: &mut Vec<String>) -> Option<Result<Vec<(String, usize)>>> {
    let numbers = |name: &str| -> Option<(usize, usize)> {
        let (number, total) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        Some((total.parse().ok()?, number.parse().ok()?))
    };
    let mut sets: BTreeMap<usize, BTreeMap<usize, &String>> = BTreeMap::new();
    for name in all {
        if let Some((total, number)) = numbers(name) {
            sets.entry(total).or_default().insert(number, name);
        }
    }
    let (total, first) = sets.first_key_value()?;
    let is_complete = |(total, set): &(&usize, &BTreeMap<usize, &String>)| (1..=**total).eq(set.keys().copied());
    let complete: Vec<_> = sets.iter().filter(is_complete).collect();
    Some(match complete.as_slice() {
        [(total, set)] => {
            if sets.len() > 1 {
                let others = sets.values().map(BTreeMap::len).sum::<usize>() - set.len();
                notes.push(format!("{others} shards of other sets are ignored: the set of {total} is complete"));
            }
            Ok(set.values().map(|name| ((*name).clone(), 0)).collect())
        }
        [] => {
            let missing: Vec<String> = (1..=*total)
                .filter(|number| !first.contains_key(number))
                .take(3)
                .map(|number| number.to_string())
                .collect();
            let name = first.values().next().map_or("", |name| name.as_str());
            let reason = format!(
                "no {INDEX}, and {} of the {total} shards that `{name}` belongs to: number {} is missing",
                first.len(),
                missing.join(", ")
            );
            Err(no_checkpoint(dir, reason, "the download is incomplete: fetch the missing files"))
        }
        _ => {
            let reason = format!("no {INDEX}, and {} complete sets of numbered shards", complete.len());
            Err(no_checkpoint(dir, reason, "remove the sets that are not the model"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_are_replaced_and_strings_are_left_alone() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "Infinity \" NaN": "NaN", "b": NaN}"#;
        let read: serde_json::Value = serde_json::from_str(&replace_non_finite(text)).unwrap();
        assert_eq!(read["a"][1]["__float__"], "Infinity");
        assert_eq!(read["a"][2]["__float__"], "-Infinity");
        assert_eq!(read["Infinity \" NaN"], "NaN");
        assert_eq!(read["b"]["__float__"], "NaN");
        assert_eq!(replace_non_finite("\"open"), "\"open");
    }
}
