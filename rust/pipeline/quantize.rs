//! `quantize`: analyzes, plans, encodes, reads back, and renames the output to its final name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::analyze::curves;
use super::plan::{Goal, PlanRequest, from_analysis};
use super::saved::{fitting, recounted, stored};
use super::sensitivity::{AUTO, Sensitivity, measure, runnable, runs, same_sensitivity_request};
use super::{AUTO_FORMAT, Engine, check};
use crate::checkpoint::stream::Pass;
use crate::codec::Encoder;
use crate::container::STEM;
use crate::container::file::write_at;
use crate::digest::Digest;
use crate::error::{DocumentSource, Error, Result};
use crate::format::{OutputModel, Target};
use crate::job::conversion::Conversion;
use crate::job::encode::{StoreMode, Writer, encode};
use crate::job::feedback::FedUnits;
use crate::job::ledger::{WrittenOutput, WrittenTensor};
use crate::job::model_card;
use crate::job::place::{FilePlace, check_file_name, check_output_path, manifest_of};
use crate::job::read_back::{Slices, compare, content};
use crate::job::side_files::{self, put};
use crate::job::staging::Staging;
use crate::job::stored::StoredOutput;
use crate::job::unit::WriteJob;
use crate::policy::Policy;
use crate::progress::{Progress, Stage};
use crate::schema::analysis::Analysis;
use crate::schema::manifest::{Check, FileDigest, LedgerLine, LeftOut, Manifest, VERSION};
use crate::schema::plan::Plan;
use crate::schema::{self, Saved, Tool};

/// Options of a quantization.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeRequest {
    /// The plan to make.
    pub plan: PlanRequest,
    /// Instead of `plan`: a saved plan, which may have been edited.
    pub saved_plan: Option<Saved>,
    /// Path of the output directory.
    pub output: PathBuf,
    /// Whether to replace an existing output.
    pub overwrite: bool,
    /// Whether to stop before anything is written.
    pub dry_run: bool,
    /// Whether to run source and output at the end, and to fail if the output is not the model. By default the check is made
    /// if the job ran the probe, which costs more than the check.
    pub check: Option<bool>,
}

/// The result of a quantization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// Path of the output directory; it does not exist after a dry run.
    pub output: String,
    /// Whether the output was written.
    pub written: bool,
    /// The plan.
    pub plan: Plan,
    /// The manifest; `None` after a dry run.
    pub manifest: Option<Manifest>,
}

/// Quantizes a checkpoint.
///
/// # Errors
/// The errors of planning, reading and writing. After an error no partial output remains.
pub fn quantize(request: &QuantizeRequest, progress: &Progress) -> Result<QuantizeReport> {
    // Invalid options fail before any work.
    let saved_plan = match &request.saved_plan {
        Some(saved) => Some((saved.read::<Plan>()?, saved.place::<Plan>())),
        None => None,
    };
    let mut analysis_request = request.plan.model.clone();
    if analysis_request.format == AUTO_FORMAT && FilePlace::of(&request.output).is_some() {
        "gguf".clone_into(&mut analysis_request.format);
    }
    if let Some((plan, _)) = &saved_plan {
        analysis_request.format.clone_from(&plan.settings.format);
        analysis_request.target.clone_from(&plan.settings.target);
        analysis_request.tensor_parallel = plan.settings.tensor_parallel;
        analysis_request.generic = plan.settings.generic;
        analysis_request.effort = plan.settings.effort;
        analysis_request.objective = plan.settings.objective;
        analysis_request.prior = plan.settings.prior;
    }
    let format = analysis_request.open_format()?;
    let asked = match saved_plan {
        Some((plan, place)) => PlanSource::Saved(Box::new(plan), place),
        None => PlanSource::Goal(request.plan.goal(&*format)?),
    };
    let policy = Policy::new(&request.plan.policy, format.schemes())?;
    let saved_analysis = match (&asked, &request.plan.analysis) {
        (PlanSource::Goal(_), Some(saved)) => Some((saved.read::<Analysis>()?, saved.place::<Analysis>())),
        _ => None,
    };
    let saved = match (&asked, &saved_analysis) {
        (PlanSource::Saved(plan, place), _) => Some((&plan.settings, place)),
        (PlanSource::Goal(_), Some((analysis, place))) => Some((&analysis.settings, place)),
        (PlanSource::Goal(_), None) => None,
    };
    if let Some((settings, place)) = saved.filter(|_| analysis_request.sensitivity == Path::new(AUTO)) {
        let reason = || "it was made with a sensitivity file: give that with ⟨sensitivity⟩".to_owned();
        let again = same_sensitivity_request(settings)
            .ok_or_else(|| Error::Stale { place: place.clone(), reason: reason() })?;
        (analysis_request.sensitivity, analysis_request.probe) = again;
    }
    let conversion = analysis_request.open(format)?;
    if let Some(layout) = &analysis_request.layout {
        progress
            .warn(format!("the tensors were laid out by {}: the source is what that made of the release", layout.by));
        layout.notes.iter().for_each(|note| progress.warn(note.clone()));
    }
    conversion.check(analysis_request.strict, Some(&policy), |warning| progress.warn(warning))?;
    if !request.dry_run {
        check_file_name(&request.output, &*conversion.format)?;
        check_output_path(&analysis_request.model, &conversion.checkpoint.dir, &request.output, request.overwrite)?;
    }
    let engine = Engine::new(&analysis_request.resources)?;
    engine.check_memory(&conversion, &analysis_request)?;
    let pass = engine.pass(&conversion.checkpoint, progress);

    let sensitivity = measure(pass, &conversion, &analysis_request)?;
    let plan = match asked {
        PlanSource::Saved(plan, place) => {
            recounted(*plan, &place, &conversion, &sensitivity, request.plan.shard_bytes)?
        }
        PlanSource::Goal(goal) => {
            let analysis = match saved_analysis {
                Some((analysis, place)) => fitting(analysis, &place, &conversion, &sensitivity)?,
                None => curves(pass, &conversion, &analysis_request, &sensitivity)?,
            };
            progress.begin(Stage::Plan, 0);
            from_analysis(&analysis, &request.plan, &policy, goal)?
        }
    };
    conversion.check_refusals(|output| plan.tensors[output].scheme)?;
    let output = request.output.display().to_string();
    if request.dry_run {
        return Ok(QuantizeReport { output, written: false, plan, manifest: None });
    }
    let has_probed = runs(&conversion.checkpoint, &analysis_request) && analysis_request.probe.tokens >= check::TOKENS;
    let job =
        QuantizeJob { pass, conversion: &conversion, sensitivity: &sensitivity, plan: &plan, request, has_probed };
    let manifest = job.write()?;
    Ok(QuantizeReport { output, written: true, plan, manifest: Some(manifest) })
}

/// The source and path of an output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputRequest {
    /// Path of the source checkpoint.
    pub model: PathBuf,
    /// Path of the output directory.
    pub output: PathBuf,
    /// Whether to replace an existing output.
    pub overwrite: bool,
}

/// Checks that [`quantize`] may write the output. A front calls it before it prepares a source by long work of its own.
///
/// # Errors
/// [`Error::OutputExists`], [`Error::OutputIsSource`], [`Error::NotOurs`], [`Error::Locked`], [`Error::Io`].
pub fn check_output(request: &OutputRequest) -> Result<()> {
    let dir = request.model.canonicalize().map_err(Error::io("resolving", &request.model))?;
    check_output_path(&request.model, &dir, &request.output, request.overwrite)
}

enum PlanSource {
    Saved(Box<Plan>, DocumentSource),
    Goal(Goal),
}

/// A plan to carry out.
struct QuantizeJob<'a> {
    pass: Pass<'a>,
    conversion: &'a Conversion,
    sensitivity: &'a Sensitivity,
    plan: &'a Plan,
    request: &'a QuantizeRequest,
    /// Whether the job ran the model on at least as many tokens as the check does.
    has_probed: bool,
}

impl QuantizeJob<'_> {
    /// Writes the output, reads it back, and renames it to its final name.
    fn write(&self) -> Result<Manifest> {
        let Self { pass, conversion, plan, request, .. } = self;
        let stem = FilePlace::of(&request.output).map_or(STEM, |place| place.stem);
        let stored = stored(plan, conversion, request.plan.shard_bytes, stem)?;
        let file_bytes = stored.layout.file_bytes();
        if file_bytes != plan.totals.file_bytes {
            return Err(Error::Bug(format!("the plan has {} bytes, its layout {file_bytes}", plan.totals.file_bytes)));
        }
        let (copied, left_out) = side_files::sort(&conversion.checkpoint, &*conversion.format);
        let staging = Staging::create(&request.output, request.overwrite, file_bytes + self.other_bytes(&copied)?)?;
        let mut files = Vec::with_capacity(stored.layout.files.len());
        for planned in &stored.layout.files {
            let file = staging.create_file(&planned.name, planned.bytes)?;
            let path = staging.dir().join(&planned.name);
            write_at(&file, &path, &planned.head, 0)?;
            files.push((file, path));
        }
        let encoder = Encoder { isa: pass.isa, effort: plan.settings.effort };
        let jobs = self.jobs(&stored);
        let writer = Writer::new(*pass, encoder, &files, &jobs);
        let written = match &self.sensitivity.feedback {
            Some(feedback) => writer.write_with_feedback(&runnable(&conversion.checkpoint)?, &feedback.recording)?,
            None => FedUnits::new(),
        };
        let encoded = encode(&writer, written)?;
        drop(files);

        let tensors: Vec<WrittenTensor<'_>> =
            jobs.iter().enumerate().map(|(at, job)| self.written_tensor(at, job)).collect();
        let objective = plan.settings.objective;
        let written = WrittenOutput { conversion, objective, tensors: &tensors, encoded: &encoded };
        let file_name = |file: usize| stored.layout.files[file].name.clone();
        let mut manifest = self.manifest(written.ledger(), left_out);
        manifest.tensors = written.digests(file_name);
        manifest.source_files.clone_from(&encoded.source_files);
        self.put_side_files(&staging, &copied, &stored, &mut manifest)?;
        manifest.check = self.check(staging.dir(), &manifest)?;
        self.put_card(&staging, &mut manifest)?;
        self.read_back(&staging, &stored, &written.slices(), &mut manifest)?;
        let (_, name) = manifest_of(&request.output);
        staging.write_file(name, schema::text(&manifest)?.as_bytes())?;
        pass.progress.check()?;
        staging.finish()?;
        Ok(manifest)
    }

    /// Bytes of the files next to the weights: the `copied` files, and an allowance for the documents.
    fn other_bytes(&self, copied: &[PathBuf]) -> Result<u64> {
        let mut bytes = (1 << 20) + 4_096 * self.conversion.checkpoint.parts.len() as u64;
        for file in copied {
            let path = self.conversion.checkpoint.dir.join(file);
            bytes += fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
        }
        Ok(bytes)
    }

    /// The write job of each output.
    fn jobs<'t>(&'t self, stored: &'t StoredOutput) -> Vec<WriteJob<'t>> {
        let planned = self.conversion.outputs.iter().zip(&self.plan.tensors);
        let placed = stored.modules.iter().zip(&stored.layout.modules);
        let mut jobs = Vec::with_capacity(self.conversion.outputs.len());
        for ((output, planned), (parts, locations)) in planned.zip(placed) {
            let mode = match &output.candidate {
                Ok((matrix, _)) if !planned.scheme.is_kept() => {
                    let sensitivities = &self.sensitivity.measured[output.matrices.clone()];
                    StoreMode::Encoded(planned.scheme, matrix.float, sensitivities)
                }
                _ => output.kept_mode(&self.conversion.checkpoint),
            };
            jobs.push(WriteJob { target: &output.target, mode, parts, locations });
        }
        jobs
    }

    fn written_tensor<'t>(&'t self, at: usize, job: &WriteJob<'t>) -> WrittenTensor<'t> {
        let output = &self.conversion.outputs[at];
        let fixed = job.fixed_parts(&self.conversion.checkpoint).into_iter();
        WrittenTensor {
            output,
            planned: &self.plan.tensors[at],
            parts: job.parts,
            locations: job.locations,
            sensitivities: &self.sensitivity.measured[output.matrices.clone()],
            fixed_sha256: fixed.map(|(at, bytes)| (at, Digest::of(&bytes))).collect(),
        }
    }

    /// The manifest, without digests of files and stored tensors.
    fn manifest(&self, ledger: Vec<LedgerLine>, left_out: Vec<LeftOut>) -> Manifest {
        let plan = self.plan;
        let mut totals = plan.totals.clone();
        totals.loss = ledger.iter().flat_map(|line| &line.quantized).map(|quantized| quantized.loss).sum();
        Manifest {
            ramrs_manifest: VERSION,
            tool: Tool::this(),
            source: self.conversion.id(),
            source_files: Vec::new(),
            settings: plan.settings.clone(),
            policy: plan.policy.clone(),
            budget: plan.budget.clone(),
            totals,
            ledger,
            tensors: Vec::new(),
            files: Vec::new(),
            left_out,
            warnings: plan.warnings.clone(),
            check: None,
        }
    }

    /// Writes the files next to the weights.
    fn put_side_files(
        &self,
        staging: &Staging,
        copied: &[PathBuf],
        stored: &StoredOutput,
        manifest: &mut Manifest,
    ) -> Result<()> {
        let Self { conversion, plan, .. } = self;
        let checkpoint = &conversion.checkpoint;
        for file in copied {
            let path = checkpoint.dir.join(file);
            let content = fs::read(&path).map_err(Error::io("reading", &path))?;
            manifest.files.push(put(staging, side_files::copied_name(file), &content)?);
        }
        let index = conversion.format.container().index(&stored.layout, &stored.modules, self.weights());
        if let Some((name, text)) = index {
            manifest.files.push(put(staging, Path::new(name), text.as_bytes())?);
        }
        let modules = conversion.modules(|output| plan.tensors[output].scheme);
        let output = OutputModel {
            source: checkpoint.config.as_ref(),
            modules: &modules,
            unquantizable: &conversion.unquantizable(),
            generic: conversion.generic,
        };
        for file in conversion.format.side_files(&output) {
            manifest.files.push(put(staging, Path::new(file.name), file.text.as_bytes())?);
        }
        Ok(())
    }

    /// Runs source and output, if that is asked for, or costs less than the job did.
    fn check(&self, staging: &Path, manifest: &Manifest) -> Result<Option<Check>> {
        let Self { pass, conversion, request, .. } = self;
        // Without a layout no runtime is promised.
        if !request.check.unwrap_or(self.has_probed && !conversion.generic) {
            return Ok(None);
        }
        let found = check::measure(*pass, staging, check::predicted(manifest)).map_err(|error| self.placed(error))?;
        check::judge(&found, &manifest.settings, &request.output)?;
        Ok(Some(found))
    }

    /// `error` with the output's final path instead of that of the staging directory.
    fn placed(&self, error: Error) -> Error {
        match error {
            Error::WrongModel { reason, .. } => Error::WrongModel { file: self.request.output.clone(), reason },
            error => error,
        }
    }

    fn put_card(&self, staging: &Staging, manifest: &mut Manifest) -> Result<()> {
        if FilePlace::of(&self.request.output).is_some() {
            return Ok(());
        }
        let card = model_card::text(self.conversion, self.plan, manifest, self.has_runtime());
        manifest.files.push(put(staging, Path::new("README.md"), card.as_bytes())?);
        Ok(())
    }

    /// Whether a runtime supports the output's layout.
    fn has_runtime(&self) -> bool {
        !self.conversion.generic || self.conversion.laid_out_by.is_some()
    }

    /// Number of weights that are written, of any element type.
    fn weights(&self) -> u64 {
        let elements = |target: &Target| target.shape.iter().product::<u64>();
        self.conversion.outputs.iter().map(|output| elements(&output.target)).sum()
    }

    /// Reads the output back from disk and compares it with the digests of the written bytes.
    fn read_back(
        &self,
        staging: &Staging,
        stored: &StoredOutput,
        slices: &Slices,
        manifest: &mut Manifest,
    ) -> Result<()> {
        let Self { pass, .. } = self;
        let files = &stored.layout.files;
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let others: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
        let all: Vec<&String> = names.iter().chain(&others).collect();
        let other_bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        pass.progress.begin(Stage::Verify, stored.layout.file_bytes() + other_bytes);
        let read = |(): &mut (), name: &&String| content(staging.dir(), name, slices, pass.progress);
        let found = pass.workers.map(pass.progress, &all, || (), read)?;
        // The digests of weight files are known only now; those of their tensors are already in the manifest.
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
        let planned: BTreeMap<&str, u64> = files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        let is_off = |file: &&FileDigest| planned.get(file.name.as_str()).is_some_and(|bytes| *bytes != file.bytes);
        match manifest.files.iter().find(is_off) {
            Some(file) => Err(Error::Bug(format!("`{}` does not have its planned size", file.name))),
            None => Ok(()),
        }
    }
}
