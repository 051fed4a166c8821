//! `verify`: compares an output with its manifest, decodes it, and compares its errors against the source with the
//! manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Engine, Resources, recompute};
use crate::band::Matrix;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::codec::Scheme;
use crate::container;
use crate::error::{Error, Result};
use crate::format::{ForeignLayout, Format};
use crate::job::conversion::Conversion;
use crate::job::decode::{DecodeJob, Decoded, decode, find};
use crate::job::encode::kept_digests;
use crate::job::place::{FilePlace, manifest_of};
use crate::job::read_back::{Problem, Slices, compare, content};
use crate::job::stored::stored;
use crate::job::unit::WriteJob;
use crate::option::OptionName;
use crate::progress::{Progress, Stage};
use crate::schema::manifest::{Became, FILE_NAME, LedgerLine, Manifest, Quantized};

/// Options of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyRequest {
    /// Path of the output directory.
    pub output: PathBuf,
    /// Path of the source checkpoint, to recompute the errors.
    pub source: Option<PathBuf>,
    /// Whether to encode the source again, and to compare every byte.
    pub recompute: bool,
    /// Share of the matrices that are encoded again, such as `1%`; `None` for all.
    pub sample: Option<String>,
    /// The sensitivity file that the output was made with, if it was made with one.
    pub sensitivity: Option<PathBuf>,
    /// What the program that laid the source out says of it, if it is not the release.
    pub layout: Option<ForeignLayout>,
    /// Resources of the job.
    pub resources: Resources,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Whether there are no problems.
    pub ok: bool,
    /// Number of files whose digests were compared.
    pub files: usize,
    /// Number of tensors whose digests were compared.
    pub tensors: usize,
    /// Number of quantized tensors that were decoded.
    pub decoded: usize,
    /// Number of source tensors that were compared: errors of quantized tensors, bytes of all others.
    pub compared_with_source: usize,
    /// Number of matrices and of copied or converted tensors that were encoded again and compared byte for byte.
    pub recomputed: usize,
    /// Files that the manifest does not list. A weight file among them is a problem; other files are not.
    pub unlisted: Vec<String>,
    /// Differences between the output and its manifest or source.
    pub problems: Vec<Problem>,
}

/// Verifies an output.
///
/// # Errors
/// Errors that prevent the verification. Differences are reported as problems, not as errors.
pub fn verify(request: &VerifyRequest, progress: &Progress) -> Result<VerifyReport> {
    let (dir, manifest_name) = manifest_of(&request.output);
    let path = dir.join(&manifest_name);
    if !path.exists() {
        return Err(Error::NoCheckpoint {
            path: request.output.clone(),
            reason: if FilePlace::of(&request.output).is_some() {
                format!("no {manifest_name} next to it")
            } else {
                format!("no {manifest_name} in it")
            },
            hint: "only an output of ramrs can be verified",
        });
    }
    let manifest = Manifest::read(&path)?;
    if request.recompute && request.source.is_none() {
        let what = "the checkpoint that the output is encoded from again";
        return Err(Error::MissingOption { option: OptionName::Source, what });
    }
    recompute::selection(request)?;
    let engine = Engine::new(&request.resources)?;
    let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    // A manifest may come from an untrusted source and must not name files outside of the directory.
    let is_outside = |name: &&&str| !Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if let Some(name) = names.iter().find(is_outside) {
        let problems = vec![Problem::file(name, "the manifest names a file outside of the directory")];
        return Ok(VerifyReport { problems, ..VerifyReport::default() });
    }
    progress.begin(Stage::Verify, manifest.files.iter().map(|file| file.bytes).sum());
    let present: Vec<&str> = names.iter().copied().filter(|name| dir.join(name).is_file()).collect();
    let found = engine.workers.map(progress, &present, || (), |(), name| content(&dir, name, &Slices::new(), progress));
    let found = match found {
        Err(fault @ (Error::File { .. } | Error::Entry { .. })) => {
            let file = fault.path().map(|path| path.display().to_string()).unwrap_or_default();
            let problems = vec![Problem::file(&file, fault.to_string())];
            return Ok(VerifyReport { problems, ..VerifyReport::default() });
        }
        found => found?,
    };
    let mut report = VerifyReport {
        files: found.len(),
        tensors: found.iter().map(|file| file.tensors.len()).sum(),
        // Next to a file there may be anything.
        unlisted: if FilePlace::of(&request.output).is_some() { Vec::new() } else { unlisted(&dir, &names)? },
        problems: compare(&manifest, &found),
        ..VerifyReport::default()
    };
    let is_loaded = |name: &String| {
        container::of_file(name).is_some_and(|found| names.iter().any(|listed| listed.ends_with(found.extension())))
    };
    for stray in report.unlisted.iter().filter(|name| is_loaded(name)) {
        report.problems.push(Problem::file(stray, "is not in the manifest, and a loader would read it"));
    }
    // Bytes that differ from their digests do not keep the others from being encoded again.
    if report.problems.is_empty() || request.recompute {
        let is_damaged = !report.problems.is_empty();
        match verify_weights(request, &manifest, &engine, progress, &mut report) {
            Err(Error::File { .. } | Error::Entry { .. } | Error::Layout { .. }) if is_damaged => {}
            done => done?,
        }
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

/// Files under `dir` that `names` does not list.
fn unlisted(dir: &Path, names: &[&str]) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = names.iter().copied().chain([FILE_NAME]).collect();
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("listing", &folder))? {
            let path = entry.map_err(Error::io("listing", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(relative) = path.strip_prefix(dir) {
                found.push(relative.display().to_string());
            }
        }
    }
    found.retain(|name| !known.contains(name.as_str()));
    found.sort();
    Ok(found)
}

/// Decodes the quantized tensors, and compares all tensors with the source if there is one.
fn verify_weights(
    request: &VerifyRequest,
    manifest: &Manifest,
    engine: &Engine,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let output = Checkpoint::open_as_stored(&request.output)?;
    let format = manifest.settings.open_format()?;
    let source = match &request.source {
        Some(path) => Some(Conversion::open(path, format.clone(), manifest.settings.generic, request.layout.as_ref())?),
        None => None,
    };
    if let Some(source) = &source
        && source.id() != manifest.source
    {
        report.problems.push(Problem::file(FILE_NAME, "the source is not the one it was made of: its headers differ"));
        return Ok(());
    }
    let (claims, before) = (claims(manifest), report.problems.len());
    check_config(&claims, &*format, &output, &mut report.problems);
    let mut jobs = Vec::with_capacity(claims.len());
    for (target, claim) in &claims {
        match decode_job(&output, &*format, target, claim, source.as_ref()) {
            Ok(job) => jobs.push(job),
            Err(problem) => report.problems.push(problem),
        }
    }
    if report.problems.len() > before {
        return Ok(());
    }
    let read = source.as_ref().map_or(&output, |source| &source.checkpoint);
    progress.begin(Stage::Verify, jobs.iter().map(|job| job.matrix.rows * job.matrix.row_bytes()).sum());
    let found = decode(engine.pass(read, progress), &output, &jobs)?;
    report.decoded = found.len();
    let tensors = source.as_ref().map(|source| by_stored_name(&source.checkpoint)).unwrap_or_default();
    for (((target, claim), job), found) in claims.iter().zip(&jobs).zip(&found) {
        let not_finite: u64 = found.iter().map(|matrix| matrix.not_finite).sum();
        if not_finite > 0 {
            let what = format!("{not_finite} weights decode to NaN or infinity");
            report.problems.push(Problem::tensor(&claim.lines[0].0.file, target, what));
        }
        if source.is_some() {
            check_errors(&tensors, claim, job, found, report);
        }
    }
    if let Some(source) = &source {
        compare_source(source, manifest, engine, progress, report)?;
        if request.recompute {
            let found = recompute::recompute(request, (manifest, &output), source, (engine, progress))?;
            report.recomputed = found.units;
            report.problems.extend(found.problems);
        }
    }
    Ok(())
}

/// The manifest's scheme of a quantized output tensor, and the ledger lines of its source tensors.
struct TensorClaim<'a> {
    scheme: Scheme,
    lines: Vec<(&'a LedgerLine, &'a Quantized)>,
}

/// The claims of `manifest`, by the name of the output tensor.
fn claims(manifest: &Manifest) -> BTreeMap<&str, TensorClaim<'_>> {
    let mut claims: BTreeMap<&str, TensorClaim<'_>> = BTreeMap::new();
    for line in &manifest.ledger {
        for quantized in &line.quantized {
            let claim = claims.entry(&quantized.into);
            let claim = claim.or_insert_with(|| TensorClaim { scheme: quantized.scheme, lines: Vec::new() });
            claim.lines.push((line, quantized));
        }
    }
    claims
}

/// The tensors of `checkpoint` by the names in its files, as the ledger has them.
fn by_stored_name(checkpoint: &Checkpoint) -> BTreeMap<&str, usize> {
    let name = |(at, tensor): (usize, &Tensor)| (checkpoint.parts[tensor.part].stored_name(), at);
    checkpoint.tensors.iter().enumerate().map(name).collect()
}

/// Checks that the errors against the source equal the errors in the manifest. `tensors` are those of the source.
fn check_errors(
    tensors: &BTreeMap<&str, usize>,
    claim: &TensorClaim<'_>,
    job: &DecodeJob<'_>,
    found: &[Decoded],
    report: &mut VerifyReport,
) {
    for (line, quantized) in &claim.lines {
        let mut squared_error = 0.0;
        let tensor = tensors.get(line.tensor.as_str()).copied();
        for (_, matrix) in job.views.iter().zip(found).filter(|(view, _)| Some(view.tensor) == tensor) {
            squared_error += matrix.squared_error;
        }
        if squared_error.to_bits() != quantized.squared_error.to_bits() {
            let claimed = quantized.squared_error;
            let what =
                format!("its squared error against the source is {squared_error:e}, but the manifest has {claimed:e}");
            report.problems.push(Problem::tensor(&line.file, &line.tensor, what));
        }
    }
}

/// The parts of a quantized tensor, after a check of their types and shapes.
fn decode_job<'a>(
    output: &'a Checkpoint,
    format: &dyn Format,
    target: &str,
    claim: &TensorClaim<'_>,
    source: Option<&'a Conversion>,
) -> std::result::Result<DecodeJob<'a>, Problem> {
    let (line, _) = claim.lines[0];
    let problem = |what: String| Problem::tensor(&line.file, target, what);
    let scheme = claim.scheme;
    let Some((matrix, parts)) = find(format, output, target, scheme) else {
        return Err(problem(format!("is not stored as {}", claim.scheme)));
    };
    let entry = source.map(|source| source.outputs.iter().find(|entry| entry.target.name == target));
    let views = match entry {
        None => Vec::new(),
        Some(Some(entry)) if entry.candidate.as_ref().is_ok_and(|(whole, _)| is_alike(*whole, matrix)) => {
            entry.target.views.clone()
        }
        Some(_) => return Err(problem("does not have the shape that the source gives it".to_owned())),
    };
    Ok(DecodeJob { parts, scheme, matrix, views })
}

/// Whether both matrices have the same rows and columns. Some codecs do not store the element type of the weights.
fn is_alike(one: Matrix, other: Matrix) -> bool {
    (one.rows, one.cols) == (other.rows, other.cols)
}

/// Checks that `config.json` describes the schemes of the ledger.
fn check_config(
    claims: &BTreeMap<&str, TensorClaim<'_>>,
    format: &dyn Format,
    output: &Checkpoint,
    problems: &mut Vec<Problem>,
) {
    let Some(config) = &output.config else { return };
    let described = format.described(config);
    for (target, claim) in claims {
        let path = crate::name::Name::parse(target).module;
        let found = described(&path);
        if found != Some(claim.scheme) {
            let what = format!("says {} for it", found.map_or("nothing".to_owned(), |scheme| scheme.to_string()));
            problems.push(Problem::tensor("config.json", &path, what));
        }
    }
}

/// Checks that the source's tensors have the digests in the ledger, and that kept tensors equal them.
fn compare_source(
    source: &Conversion,
    manifest: &Manifest,
    engine: &Engine,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let dir = &source.checkpoint.dir;
    let shards: Vec<&str> = source.checkpoint.shards.iter().map(|shard| shard.name.as_str()).collect();
    progress.begin(Stage::Verify, source.checkpoint.file_bytes());
    let found =
        engine.workers.map(progress, &shards, || (), |(), name| content(dir, name, &Slices::new(), progress))?;
    let digests: BTreeMap<&str, &str> = found
        .iter()
        .flat_map(|file| file.tensors.iter().map(|(entry, sha256)| (entry.name.as_str(), sha256.as_str())))
        .collect();
    let written: BTreeMap<&str, &str> =
        manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.sha256.as_str())).collect();
    for line in &manifest.ledger {
        report.compared_with_source += 1;
        let of_source = digests.get(line.tensor.as_str());
        if of_source != Some(&line.sha256.as_str()) {
            report.problems.push(Problem::tensor(
                &line.file,
                &line.tensor,
                "the source's data have another SHA-256 than the data that were read",
            ));
        } else if line.became == Became::Kept && written.get(line.tensor.as_str()) != of_source {
            report.problems.push(Problem::tensor(&line.file, &line.tensor, "was kept, but differs from the source"));
        }
    }
    let quantized = claims(manifest);
    let pass = engine.pass(&source.checkpoint, progress);
    for entry in source.outputs.iter().filter(|entry| !quantized.contains_key(entry.target.name.as_str())) {
        let copied = entry.target.copies(&source.checkpoint);
        if copied.is_some_and(|tensor| source.is_unchanged(tensor, entry)) {
            // Its ledger line was already compared.
            continue;
        }
        let parts = stored(&*source.format, &entry.described(&source.checkpoint), Scheme::KEPT)?;
        let mode = entry.kept_mode(&source.checkpoint);
        let job = WriteJob { target: &entry.target, mode, parts: &parts, locations: &[] };
        for (part, sha256) in parts.iter().zip(kept_digests(pass, &job)?) {
            if written.get(part.name.as_str()) != Some(&sha256.as_str()) {
                let what = "differs from the source's data in the output's layout";
                report.problems.push(Problem::tensor("", &part.name, what));
            }
        }
    }
    Ok(())
}
