//! `quantize`: analyze, plan, encode, verify, name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::analyze::curves;
use super::encode::{self, Done, Outcome, Output, Task, Way};
use super::ledger::{Written, digests};
use super::plan::{PlanRequest, from_analysis, modules};
use super::sensitivity::{AUTO, Sensitivity, measure, same_sensitivity_request};
use super::source::Source;
use super::{Engine, card};
use crate::checkpoint::View;
use crate::checkpoint::directory::INDEX;
use crate::checkpoint::stream::Pass;
use crate::codec::encoder::Encoder;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::{Module, Target};
use crate::policy::Policy;
use crate::progress::{Progress, Stage};
use crate::schema::analysis::{self, Analysis};
use crate::schema::manifest::{FILE_NAME, FileDigest, LeftOut, Line, Manifest, TensorDigest, VERSION};
use crate::schema::plan::{self, Plan};
use crate::schema::{self, Tool};
use crate::scheme::Scheme;
use crate::sensitivity::MatrixSensitivity;
use crate::verify::{Slices, compare, content};
use crate::writer::layout::{Layout, Stored, index, lay_out};
use crate::writer::partial::Partial;

/// Endings of files that hold weights in another form: they are not copied beside the new ones.
const OTHER_WEIGHTS: [&str; 14] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".npz",
    ".index.json",
];

/// What is quantized, to what, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeRequest {
    /// What is planned.
    pub plan: PlanRequest,
    /// A saved plan, perhaps edited, in place of that.
    pub saved_plan: Option<PathBuf>,
    /// The output directory.
    pub output: PathBuf,
    /// Whether to replace it.
    pub overwrite: bool,
    /// Whether to stop before anything is written.
    pub dry_run: bool,
    /// Who laid the tensors out, under the names of the format, if the source is not the release itself.
    pub laid_out_by: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// The output directory; nothing is there after a dry run.
    pub output: String,
    /// Whether it was written.
    pub written: bool,
    /// The plan.
    pub plan: Plan,
    /// The manifest, unless it was a dry run.
    pub manifest: Option<Manifest>,
}

/// Quantizes a checkpoint.
///
/// # Errors
/// Those of planning, reading and writing. Nothing is left behind.
pub fn quantize(request: &QuantizeRequest, progress: &Progress) -> Result<QuantizeReport> {
    // Whatever makes no sense is refused before any work.
    let asked = match &request.saved_plan {
        Some(path) => Asked::Saved(Box::new(Plan::read(path)?), path),
        None => Asked::Planned(request.plan.target()?),
    };
    let policy = Policy::new(&request.plan.policy)?;
    let mut analysis_request = request.plan.model.clone();
    if let Asked::Saved(plan, _) = &asked {
        analysis_request.format.clone_from(&plan.settings.format);
        analysis_request.generic = plan.settings.generic;
        analysis_request.effort = plan.settings.effort;
        analysis_request.objective = plan.settings.objective;
        analysis_request.prior = plan.settings.prior;
    }
    let saved_analysis = match (&asked, &request.plan.analysis) {
        (Asked::Planned(_), Some(path)) => Some((Analysis::read(path)?, path.as_path())),
        _ => None,
    };
    let saved = match (&asked, &saved_analysis) {
        (Asked::Saved(plan, path), _) => Some((&plan.settings, *path)),
        (Asked::Planned(_), Some((analysis, path))) => Some((&analysis.settings, *path)),
        (Asked::Planned(_), None) => None,
    };
    if let Some((settings, path)) = saved.filter(|_| analysis_request.sensitivity == Path::new(AUTO)) {
        let reason = || "it was made with a sensitivity file: give that with --sensitivity".to_owned();
        let again = same_sensitivity_request(settings)
            .ok_or_else(|| Error::Stale { file: path.to_owned(), reason: reason() })?;
        (analysis_request.sensitivity, analysis_request.probe) = again;
    }
    let source = Source::open(&analysis_request.model, &analysis_request.format, analysis_request.generic)?;
    if let Some(other) = &request.laid_out_by {
        progress.warn(format!("the tensors were laid out by {other}: the source is what that made of the release"));
    }
    source.check(analysis_request.strict, Some(&policy), |warning| progress.warn(warning))?;
    if !request.dry_run {
        check_output(&analysis_request.model, &source, request)?;
    }
    let engine = Engine::new(&analysis_request.resources)?;
    engine.check_memory(&source, &analysis_request)?;
    let pass = engine.pass(&source.checkpoint, progress);

    let sensitivity = measure(pass, &source, &analysis_request)?;
    let plan = match asked {
        Asked::Saved(plan, path) => {
            same_source(&plan, path, &source, &sensitivity)?;
            recount(*plan, path, &source, request.plan.shard_bytes)?
        }
        Asked::Planned(target) => {
            let analysis = match saved_analysis {
                Some((analysis, path)) => fitting(analysis, path, &source, &sensitivity)?,
                None => curves(pass, &source, &analysis_request, &sensitivity)?,
            };
            progress.begin(Stage::Plan, 0);
            from_analysis(&analysis, &request.plan, &policy, target)?
        }
    };
    let output = request.output.display().to_string();
    if request.dry_run {
        return Ok(QuantizeReport { output, written: false, plan, manifest: None });
    }
    let job = Job { pass, source: &source, sensitivity: &sensitivity, plan: &plan, request };
    let manifest = job.write()?;
    Ok(QuantizeReport { output, written: true, plan, manifest: Some(manifest) })
}

/// Where the plan comes from.
enum Asked<'a> {
    Saved(Box<Plan>, &'a Path),
    Planned(super::plan::Target),
}

/// The output must not be the source, nor inside its directory, nor around it, nor there already. Beside a single file,
/// `model`, it may be.
fn check_output(model: &Path, source: &Source, request: &QuantizeRequest) -> Result<()> {
    let (output, overwrite) = (request.output.as_path(), request.overwrite);
    if output.as_os_str().is_empty() {
        return Err(Error::MissingOption { option: "--output", what: "the directory to write" });
    }
    let mut existing = std::path::absolute(output).map_err(Error::io("resolving", output))?;
    while !existing.exists() && existing.pop() {}
    let existing = existing.canonicalize().map_err(Error::io("resolving", output))?;
    let inside = existing.starts_with(&source.checkpoint.dir) && !model.is_file();
    let is_parent = output.exists() && source.checkpoint.dir.starts_with(&existing);
    if inside || is_parent {
        return Err(Error::OutputIsSource { path: output.to_owned() });
    }
    if output.symlink_metadata().is_ok() && !overwrite {
        return Err(Error::OutputExists { path: output.to_owned() });
    }
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if output.symlink_metadata().is_ok() && !output.join(FILE_NAME).is_file() && !is_empty() {
        return Err(Error::Foreign { path: output.to_owned() });
    }
    Partial::check_free(output)
}

/// A saved analysis, if it is of this source and sensitivity.
fn fitting(analysis: Analysis, path: &Path, source: &Source, sensitivity: &Sensitivity) -> Result<Analysis> {
    let stale = |reason: &str| Err(Error::Stale { file: path.to_owned(), reason: reason.to_owned() });
    if analysis.source != source.id() {
        return stale("it is an analysis of another checkpoint");
    }
    if analysis.settings != sensitivity.settings {
        return stale("it was made with other weights, another sensitivity or other options");
    }
    Ok(analysis)
}

/// A saved plan must be of this source, and of the sensitivity that it will be encoded by.
fn same_source(plan: &Plan, path: &Path, source: &Source, sensitivity: &Sensitivity) -> Result<()> {
    let stale = |reason: &str| Err(Error::Stale { file: path.to_owned(), reason: reason.to_owned() });
    if plan.source != source.id() {
        return stale("it is a plan for another checkpoint");
    }
    if plan.settings.sensitivity_sha256 != sensitivity.settings.sensitivity_sha256 {
        return stale("it was made with other weights or another sensitivity (give the same --sensitivity)");
    }
    Ok(())
}

/// A saved plan's schemes, with the sizes they have now.
fn recount(mut plan: Plan, path: &Path, source: &Source, shard_bytes: u64) -> Result<Plan> {
    let stale = |reason: String| Error::Stale { file: path.to_owned(), reason };
    if plan.tensors.len() != source.entries.len() {
        let (listed, written) = (plan.tensors.len(), source.entries.len());
        return Err(stale(format!("it lists {listed} tensors, and {written} are written")));
    }
    let mut bits = 0;
    for (planned, entry) in plan.tensors.iter_mut().zip(&source.entries) {
        let name = &entry.target.name;
        if planned.name != *name {
            return Err(stale(format!("it lists `{}` where `{name}` belongs", planned.name)));
        }
        let Some(affine) = planned.scheme.affine() else {
            planned.bytes = entry.kept_bytes();
            bits += 8 * planned.bytes;
            continue;
        };
        let matrix = match &entry.candidate {
            Ok((matrix, schemes)) if schemes.contains(&affine) => matrix,
            Ok(_) => return Err(Error::Scheme { tensor: name.clone(), reason: format!("{affine} does not fit it") }),
            Err(kept) => return Err(Error::Scheme { tensor: name.clone(), reason: kept.to_string() }),
        };
        planned.bytes = affine.stored_bytes(matrix.rows, matrix.cols, matrix.float);
        bits += matrix.elements() * u64::from(affine.bits());
    }
    let promised = plan.totals.clone();
    let parameters = plan.source.parameters.max(1) as f64;
    let stored = modules(source.format, &described(source), &schemes(&plan))?;
    plan.totals.tensor_bytes = plan.tensors.iter().map(|tensor| tensor.bytes).sum();
    plan.totals.file_bytes = lay_out(&stored, shard_bytes, source.format.name()).file_bytes();
    plan.totals.effective_bpw = 8.0 * plan.totals.tensor_bytes as f64 / parameters;
    plan.totals.payload_bpw = bits as f64 / parameters;
    if plan.totals != promised || plan.schemes_sha256 != plan::schemes_digest(&plan.tensors) {
        // What was promised of the plan as it was does not hold of the one that it is now.
        plan.budget = None;
        plan.totals.budget_bytes = None;
        plan.totals.lower_bound = None;
        plan.totals.best_uniform = None;
        plan.warnings.push("the plan was edited: its predicted loss is that of the plan before".to_owned());
    }
    Ok(plan)
}

fn schemes(plan: &Plan) -> Vec<Scheme> {
    plan.tensors.iter().map(|tensor| tensor.scheme).collect()
}

/// What is written as an analysis describes it, without curves.
fn described(source: &Source) -> Vec<analysis::Tensor> {
    source.entries.iter().map(|entry| entry.described(&source.checkpoint)).collect()
}

/// A plan about to be carried out.
struct Job<'a> {
    pass: Pass<'a>,
    source: &'a Source,
    sensitivity: &'a Sensitivity,
    plan: &'a Plan,
    request: &'a QuantizeRequest,
}

impl Job<'_> {
    /// Writes everything, reads it back, and gives it its name.
    fn write(&self) -> Result<Manifest> {
        let Self { pass, source, plan, request, .. } = self;
        let stored = modules(source.format, &described(source), &schemes(plan))?;
        let layout = lay_out(&stored, request.plan.shard_bytes, source.format.name());
        if layout.file_bytes() != plan.totals.file_bytes {
            return Err(Error::Bug(format!(
                "planned {} bytes, laid out {}",
                plan.totals.file_bytes,
                layout.file_bytes()
            )));
        }
        let (copied, left_out) = self.other_files();
        let mut copied_bytes = 0;
        for file in &copied {
            let path = source.checkpoint.dir.join(file);
            copied_bytes += fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
        }
        // Room for the documents, too.
        let documents_bytes = (1 << 20) + 4_096 * source.checkpoint.parts.len() as u64;
        let partial =
            Partial::create(&request.output, request.overwrite, layout.file_bytes() + copied_bytes + documents_bytes)?;

        let mut files = Vec::with_capacity(layout.files.len());
        for planned in &layout.files {
            let file = partial.create_file(&planned.name, planned.bytes)?;
            let path = partial.dir().join(&planned.name);
            crate::writer::partial::write_at(&file, &path, &planned.head, 0)?;
            files.push((file, path));
        }
        let encoder = Encoder { isa: pass.isa, effort: plan.settings.effort };
        let output = Output { format: source.format, files: &files };
        let measured = self.measured();
        let outcome = encode::encode(*pass, encoder, &output, &self.tasks(&stored, &layout, &measured))?;
        drop(files);

        let written = Written { source, plan, stored: &stored, measured: &measured, outcome: &outcome };
        let ledger = written.ledger();
        let mut manifest = Manifest {
            ramrs_manifest: VERSION,
            tool: Tool::this(),
            source: source.id(),
            settings: plan.settings.clone(),
            policy: plan.policy.clone(),
            budget: plan.budget.clone(),
            totals: plan.totals.clone(),
            tensors: written_tensors(&outcome, &stored, &layout),
            source_files: outcome.source_files.clone(),
            ledger,
            files: Vec::new(),
            left_out,
            warnings: plan.warnings.clone(),
        };
        manifest.totals.loss = Self::loss(&manifest.ledger);
        for file in &copied {
            let path = source.checkpoint.dir.join(file);
            let content = fs::read(&path).map_err(Error::io("reading", &path))?;
            let name = if file == Path::new("README.md") { Path::new(card::SOURCE_CARD) } else { file };
            manifest.files.push(Self::put(&partial, name, &content)?);
        }
        let index_text = index(&layout, &stored, self.weights());
        manifest.files.push(Self::put(&partial, Path::new(INDEX), index_text.as_bytes())?);
        if let Some(config) = &source.checkpoint.config {
            let text = source.format.config(config, &self.modules(), source.generic);
            manifest.files.push(Self::put(&partial, Path::new("config.json"), text.as_bytes())?);
        }
        let readme = card::text(source, plan, &manifest, self.is_for_a_runtime());
        manifest.files.push(Self::put(&partial, Path::new("README.md"), readme.as_bytes())?);
        self.read_back(&partial, &layout, &slices(source, &stored, &outcome), &mut manifest)?;
        partial.write_file(FILE_NAME, schema::text(&manifest)?.as_bytes())?;
        pass.progress.check()?;
        partial.finish()?;
        Ok(manifest)
    }

    /// The source's other files: those that are copied, and those that are left out.
    fn other_files(&self) -> (Vec<PathBuf>, Vec<LeftOut>) {
        let (mut copied, mut left_out) = (Vec::new(), Vec::new());
        for file in &self.source.checkpoint.other_files {
            let name = file.display().to_string();
            let why = if OTHER_WEIGHTS.iter().any(|ending| name.ends_with(ending)) {
                Some("weights in another form")
            } else if name == "hf_quant_config.json" {
                Some("what it says of the source's codes is not so of these")
            } else if name == FILE_NAME || name == card::SOURCE_CARD {
                Some("its name is needed")
            } else {
                None
            };
            match why {
                Some(why) => left_out.push(LeftOut { name, why: why.to_owned() }),
                None => copied.push(file.clone()),
            }
        }
        (copied, left_out)
    }

    fn put(partial: &Partial, name: &Path, content: &[u8]) -> Result<FileDigest> {
        partial.write_file(name, content)?;
        Ok(FileDigest { name: name.display().to_string(), bytes: content.len() as u64, sha256: Digest::of(content) })
    }

    /// Whether a runtime is promised to load it.
    fn is_for_a_runtime(&self) -> bool {
        !self.source.generic || self.request.laid_out_by.is_some()
    }

    /// Numbers that are written, whatever their type.
    fn weights(&self) -> u64 {
        let elements = |target: &Target| target.shape.iter().product::<u64>();
        self.source.entries.iter().map(|entry| elements(&entry.target)).sum()
    }

    /// The sensitivity of each target's matrices, none where no scheme exists.
    fn measured(&self) -> Vec<&[MatrixSensitivity]> {
        let mut rest = self.sensitivity.measured.as_slice();
        let mut found = Vec::with_capacity(self.source.entries.len());
        for entry in &self.source.entries {
            let count = if entry.candidate.is_ok() { entry.target.views.len() } else { 0 };
            let (these, others) = rest.split_at(count.min(rest.len()));
            found.push(these);
            rest = others;
        }
        found
    }

    /// What is to be done to each target.
    fn tasks<'t>(
        &'t self,
        stored: &'t [Vec<Stored>],
        layout: &'t Layout,
        measured: &[&'t [MatrixSensitivity]],
    ) -> Vec<Task<'t>> {
        let mut next = 0;
        let mut tasks = Vec::with_capacity(self.source.entries.len());
        for (at, (entry, planned)) in self.source.entries.iter().zip(&self.plan.tensors).enumerate() {
            let parts = &stored[at];
            let locations = &layout.locations[next..next + parts.len()];
            next += parts.len();
            let way = match (planned.scheme, &entry.candidate) {
                (Scheme::Affine(scheme), Ok((matrix, _))) => Way::Encoded(scheme, matrix.float, measured[at]),
                _ => entry.kept_way(&self.source.checkpoint),
            };
            tasks.push(Task { target: &entry.target, way, parts, locations });
        }
        tasks
    }

    /// Loss of what was written.
    fn loss(ledger: &[Line]) -> f64 {
        ledger.iter().flat_map(|line| &line.quantized).map(|quantized| quantized.loss).sum()
    }

    /// The modules that could be quantized, and what they became.
    fn modules(&self) -> Vec<Module> {
        let planned = self.source.entries.iter().zip(&self.plan.tensors);
        planned
            .filter(|(entry, _)| entry.candidate.is_ok())
            .map(|(entry, planned)| Module {
                path: entry.name.module.clone(),
                scheme: planned.scheme,
                packed: entry.packed,
            })
            .collect()
    }

    /// Reads everything back from the disk, and compares it with what was meant to be written.
    fn read_back(&self, partial: &Partial, layout: &Layout, slices: &Slices, manifest: &mut Manifest) -> Result<()> {
        let Self { pass, .. } = self;
        let names: Vec<String> = layout.files.iter().map(|file| file.name.clone()).collect();
        let others: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
        let all: Vec<&String> = names.iter().chain(&others).collect();
        let other_bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        pass.progress.begin(Stage::Verify, layout.file_bytes() + other_bytes);
        let read = |(): &mut (), name: &&String| content(partial.dir(), name, slices, pass.progress);
        let found = pass.workers.map(pass.progress, &all, || (), read)?;
        // The files of weights have no digest yet: their tensors have.
        manifest.files.splice(0..0, found[..names.len()].iter().map(|found| found.file.clone()));
        for (tensor, sha256) in found.iter().flat_map(|file| &file.stacks) {
            if let Some(written) = manifest.tensors.iter_mut().find(|written| written.name == *tensor) {
                written.sha256.clone_from(sha256);
            }
        }
        if let Some(problem) = compare(manifest, &found).into_iter().next() {
            let file = self.request.output.join(&problem.file);
            return Err(Error::Verify { file, tensor: problem.tensor, reason: problem.what });
        }
        let planned: BTreeMap<&str, u64> = layout.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        for file in &manifest.files {
            if planned.get(file.name.as_str()).is_some_and(|bytes| *bytes != file.bytes) {
                return Err(Error::Bug(format!("`{}` is not as long as planned", file.name)));
            }
        }
        Ok(())
    }
}

/// What is written in more than one go: the length and the digest of each, by stored tensor.
fn slices(source: &Source, stored: &[Vec<Stored>], outcome: &Outcome) -> Slices {
    let mut slices = Slices::new();
    for ((entry, parts), done) in source.entries.iter().zip(stored).zip(&outcome.targets) {
        if digests(done).is_some() {
            continue;
        }
        let rows: u64 = entry.target.views.iter().map(|view| view.rows).sum();
        for (at, part) in parts.iter().enumerate() {
            let row_bytes = part.bytes.checked_div(rows).unwrap_or(0);
            let slice = |(view, done): (&View, &Done)| (view.rows * row_bytes, done.parts_sha256[at].clone());
            slices.insert(part.name.clone(), entry.target.views.iter().zip(done).map(slice).collect());
        }
    }
    slices
}

/// What is stored; digests of stacks are known once they are read back.
fn written_tensors(outcome: &Outcome, stored: &[Vec<Stored>], layout: &Layout) -> Vec<TensorDigest> {
    let mut locations = layout.locations.iter();
    let mut written = Vec::with_capacity(layout.locations.len());
    for (parts, done) in stored.iter().zip(&outcome.targets) {
        let known = digests(done);
        for (at, (part, location)) in parts.iter().zip(locations.by_ref()).enumerate() {
            written.push(TensorDigest {
                name: part.name.clone(),
                dtype: part.dtype.name().to_owned(),
                shape: part.shape.clone(),
                file: layout.files[location.file].name.clone(),
                sha256: known.map(|known| known[at].clone()).unwrap_or_default(),
            });
        }
    }
    written
}
