//! `verify --recompute`: encodes the source again as the manifest says, and compares every byte with the output's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::sensitivity::{AUTO, measure, runnable, same_sensitivity_request};
use super::verify::VerifyRequest;
use super::write::write_jobs;
use super::{AnalysisRequest, Engine};
use crate::checkpoint::{Checkpoint, Part};
use crate::codec::{Encoder, Scheme};
use crate::container::{Location, StoredTensor};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::job::conversion::Conversion;
use crate::job::encode::{Selection, Writer, encode};
use crate::job::read_back::Problem;
use crate::job::rebuild::{ByteDifference, Differences};
use crate::job::side_files;
use crate::job::stored::stored;
use crate::job::unit_journal::KnownUnits;
use crate::option::OptionName;
use crate::probe::Options;
use crate::progress::Progress;
use crate::schema::manifest::{FILE_NAME, Manifest};

/// What was rebuilt.
#[derive(Debug, Default)]
pub(super) struct Recomputed {
    /// Number of matrices, and of copied or converted tensors.
    pub units: usize,
    pub problems: Vec<Problem>,
}

/// The share of units that `request` asks to be rebuilt: `1%`, `0.01`; all by default.
///
/// # Errors
/// [`Error::Option`].
pub(super) fn selection(request: &VerifyRequest) -> Result<Selection> {
    let Some(text) = &request.sample else { return Ok(Selection::All) };
    let number =
        text.strip_suffix('%').map_or_else(|| text.parse::<f64>(), |of| of.parse::<f64>().map(|of| of / 100.0));
    match number {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(Selection::Sample(share)),
        _ => Err(Error::option(OptionName::Sample, text, "write a share, such as 1% or 0.01")),
    }
}

/// Encodes the units of `conversion` again, and compares them with the output at `output`.
pub(super) fn recompute(
    request: &VerifyRequest,
    (manifest, output): (&Manifest, &Checkpoint),
    conversion: &Conversion,
    (engine, progress): (&Engine, &Progress),
) -> Result<Recomputed> {
    let mut found = Recomputed { units: 0, problems: side_file_problems(manifest, conversion)? };
    let analysis = analysis_request(request, manifest)?;
    engine.check_memory(conversion, &analysis)?;
    let pass = engine.pass(&conversion.checkpoint, progress);
    let sensitivity = measure(pass, conversion, &analysis)?;
    if sensitivity.settings.sensitivity_sha256 != manifest.settings.sensitivity_sha256 {
        let what = format!(
            "its sensitivity cannot be derived again: ramrs {} wrote it, and the sensitivity that this version finds has another \
             SHA-256",
            manifest.tool.version
        );
        found.problems.push(Problem::file(FILE_NAME, what));
        return Ok(found);
    }
    let schemes = schemes(manifest, conversion);
    let mut stored_tensors = Vec::with_capacity(schemes.len());
    for (entry, scheme) in conversion.outputs.iter().zip(&schemes) {
        stored_tensors.push(stored(&*conversion.format, &entry.described(&conversion.checkpoint), *scheme)?);
    }
    let locations = match locations(output, &stored_tensors) {
        Ok(locations) => locations,
        Err(missing) => {
            found.problems.push(missing);
            return Ok(found);
        }
    };
    let placed = stored_tensors.iter().zip(&locations).map(|(parts, places)| (parts.as_slice(), places.as_slice()));
    let jobs = write_jobs((conversion, &sensitivity), schemes.iter().copied(), placed);
    let mut files = Vec::with_capacity(output.shards.len());
    for shard in &output.shards {
        files.push((shard.file()?, shard.path.clone()));
    }
    let encoder = Encoder { isa: pass.isa, effort: manifest.settings.effort };
    let differences = Differences::default();
    let writer = Writer::new(pass, (encoder, "", selection(request)?), &files, &jobs).comparing(&differences);
    found.units = writer.own_units().len();
    let mut known = KnownUnits::default();
    if let Some(feedback) = &sensitivity.feedback {
        writer.write_with_feedback(&runnable(&conversion.checkpoint)?, &feedback.recording, &mut known)?;
    }
    encode(&writer, known.finished)?;
    drop(writer);
    let file_of: BTreeMap<&str, &str> =
        manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.file.as_str())).collect();
    for ByteDifference { tensor, offset, stored_sha256, rebuilt_sha256 } in differences.first_of_each() {
        let file = file_of.get(tensor.as_str()).copied().unwrap_or_default();
        let what = format!(
            "differs from what the source is encoded to, from byte {offset} on: the stored piece has SHA-256 {stored_sha256}, \
             the rebuilt one {rebuilt_sha256}"
        );
        found.problems.push(Problem::tensor(file, &tensor, what));
    }
    Ok(found)
}

/// The analysis that the output of `manifest` was made with.
fn analysis_request(request: &VerifyRequest, manifest: &Manifest) -> Result<AnalysisRequest> {
    let given = request.sensitivity.as_deref().filter(|given| *given != Path::new(AUTO));
    let (sensitivity, probe) = match given {
        Some(path) => (path.to_owned(), Options::default()),
        None => same_sensitivity_request(&manifest.settings).ok_or(Error::MissingOption {
            option: OptionName::Sensitivity,
            what: "the file that the output was made with",
        })?,
    };
    let (layout, resources) = (request.layout.clone(), request.resources.clone());
    let asked = AnalysisRequest { layout, sensitivity, probe, resources, ..AnalysisRequest::default() };
    Ok(asked.of_settings(&manifest.settings))
}

/// The scheme of each output of `conversion`, by `manifest`.
fn schemes(manifest: &Manifest, conversion: &Conversion) -> Vec<Scheme> {
    let mut by_name: BTreeMap<&str, Scheme> = BTreeMap::new();
    for quantized in manifest.ledger.iter().flat_map(|line| &line.quantized) {
        by_name.insert(&quantized.into, quantized.scheme);
    }
    let of = |name: &str| by_name.get(name).copied().unwrap_or(Scheme::KEPT);
    conversion.outputs.iter().map(|output| of(&output.target.name)).collect()
}

/// Where the stored tensors are in `output`; the problem of the first that is missing or of another size.
fn locations(output: &Checkpoint, stored: &[Vec<StoredTensor>]) -> std::result::Result<Vec<Vec<Location>>, Problem> {
    let parts: BTreeMap<&str, &Part> = output.parts.iter().map(|part| (part.stored_name(), part)).collect();
    let location =
        |tensor: &StoredTensor| match parts.get(tensor.name.as_str()).filter(|part| part.bytes == tensor.bytes) {
            Some(part) => Ok(Location { file: part.shard, offset: part.offset }),
            None => Err(Problem::tensor("", &tensor.name, format!("is not stored in {} bytes", tensor.bytes))),
        };
    stored.iter().map(|parts| parts.iter().map(location).collect()).collect()
}

/// Compares the files next to the weights with those that the source gives again.
fn side_file_problems(manifest: &Manifest, conversion: &Conversion) -> Result<Vec<Problem>> {
    let mut rebuilt: Vec<(PathBuf, String)> = Vec::new();
    let (copied, _) = side_files::sort(&conversion.checkpoint, &*conversion.format);
    for file in copied {
        let path = conversion.checkpoint.dir.join(&file);
        let content = fs::read(&path).map_err(Error::io("reading", &path))?;
        rebuilt.push((side_files::copied_name(&file).to_owned(), Digest::of(&content)));
    }
    let schemes = schemes(manifest, conversion);
    for file in conversion.side_files(|output| schemes[output]) {
        rebuilt.push((file.name.into(), Digest::of(file.text.as_bytes())));
    }
    let mut problems = Vec::new();
    for (name, sha256) in rebuilt {
        let name = name.display().to_string();
        let listed = manifest.files.iter().find(|file| file.name == name);
        if listed.is_none_or(|listed| listed.sha256 != sha256) {
            problems.push(Problem::file(&name, format!("is not what the source gives: that has SHA-256 {sha256}")));
        }
    }
    Ok(problems)
}
