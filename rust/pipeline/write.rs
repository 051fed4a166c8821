//! Carries out a plan: writes the weights and the files next to them, runs the output, and reads it back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::saved::stored;
use super::sensitivity::{Sensitivity, runnable};
use super::{QuantizeRequest, check};
use crate::checkpoint::stream::Pass;
use crate::codec::{Encoder, Scheme};
use crate::container::file::write_at;
use crate::container::{Location, STEM, StoredTensor};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::Target;
use crate::job::conversion::Conversion;
use crate::job::encode::{EncodedOutput, Selection, StoreMode, Writer, encode};
use crate::job::ledger::{WrittenOutput, WrittenTensor};
use crate::job::model_card;
use crate::job::place::{FilePlace, manifest_of};
use crate::job::read_back::{Slices, compare, content};
use crate::job::side_files::{self, put};
use crate::job::staging::Staging;
use crate::job::stored::StoredOutput;
use crate::job::unit::WriteJob;
use crate::progress::Stage;
use crate::schema::manifest::{Check, FileDigest, LedgerLine, LeftOut, Manifest, VERSION};
use crate::schema::plan::Plan;
use crate::schema::{self, Tool};

/// A plan to carry out.
pub(super) struct QuantizeJob<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) conversion: &'a Conversion,
    pub(super) sensitivity: &'a Sensitivity,
    pub(super) plan: &'a Plan,
    pub(super) request: &'a QuantizeRequest,
    /// Whether the job ran the model on at least as many tokens as the check does.
    pub(super) has_probed: bool,
    /// The units that are written.
    pub(super) selection: Selection,
}

impl QuantizeJob<'_> {
    /// Writes the output to `staging`, and reads it back.
    pub(super) fn write(&self, staging: &Staging) -> Result<Manifest> {
        let Self { pass, conversion, plan, request, .. } = self;
        let stored = self.stored()?;
        let (copied, left_out) = side_files::sort(&conversion.checkpoint, &*conversion.format);
        staging.check_room(stored.layout.file_bytes() + self.other_bytes(&copied)?)?;
        let jobs = self.jobs(&stored);
        let encoded = self.encode(staging, &stored, &jobs)?;
        let encoded = encoded.ok_or_else(|| Error::Bug("a part of a job was written as all of it".to_owned()))?;
        let tensors: Vec<WrittenTensor<'_>> =
            jobs.iter().enumerate().map(|(at, job)| self.written_tensor(at, job)).collect();
        let objective = plan.settings.objective;
        let written = WrittenOutput { conversion, objective, tensors: &tensors, encoded: &encoded };
        let file_name = |file: usize| stored.layout.files[file].name.clone();
        let mut manifest = self.manifest(written.ledger(), left_out);
        manifest.tensors = written.digests(file_name);
        manifest.source_files.clone_from(&encoded.source_files);
        self.put_side_files(staging, &copied, &stored, &mut manifest)?;
        manifest.check = self.check(staging.output(), &manifest)?;
        self.put_card(staging, &mut manifest)?;
        self.read_back(staging, &stored, &written.slices(), &mut manifest)?;
        let (_, name) = manifest_of(&request.output);
        staging.write_file(name, schema::text(&manifest)?.as_bytes())?;
        pass.progress.check()?;
        Ok(manifest)
    }

    /// The stored tensors of the plan.
    fn stored(&self) -> Result<StoredOutput> {
        let Self { conversion, plan, request, .. } = self;
        let stem = FilePlace::of(&request.output).map_or(STEM, |place| place.stem);
        let stored = stored(plan, conversion, request.plan.shard_bytes, stem)?;
        let file_bytes = stored.layout.file_bytes();
        if file_bytes != plan.totals.file_bytes {
            return Err(Error::Bug(format!("the plan has {} bytes, its layout {file_bytes}", plan.totals.file_bytes)));
        }
        Ok(stored)
    }

    /// Writes the part that is requested to `staging`.
    pub(super) fn write_part(&self, staging: &Staging) -> Result<()> {
        let stored = self.stored()?;
        staging.check_room(stored.layout.file_bytes())?;
        self.encode(staging, &stored, &self.jobs(&stored)).map(|_| ())
    }

    /// Writes the units of `jobs`, or those of a part. Returns their records, if they are all.
    fn encode(&self, staging: &Staging, stored: &StoredOutput, jobs: &[WriteJob<'_>]) -> Result<Option<EncodedOutput>> {
        let Self { pass, conversion, plan, selection, .. } = self;
        let mut files = Vec::with_capacity(stored.layout.files.len());
        for planned in &stored.layout.files {
            let file = staging.create_file(&planned.name, planned.bytes)?;
            let path = staging.output().join(&planned.name);
            write_at(&file, &path, &planned.head, 0)?;
            files.push((file, path));
        }
        let encoder = Encoder { isa: pass.isa, effort: plan.settings.effort };
        let writer = Writer::new(*pass, (encoder, &plan.schemes_sha256, *selection), &files, jobs);
        let mut known = writer.known_units()?;
        if let Some(feedback) = &self.sensitivity.feedback {
            writer.write_with_feedback(&runnable(&conversion.checkpoint)?, &feedback.recording, &mut known)?;
        }
        encode(&writer, known.finished)
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
        let schemes = self.plan.tensors.iter().map(|planned| planned.scheme);
        let placed = stored.modules.iter().zip(&stored.layout.modules);
        let placed = placed.map(|(parts, locations)| (parts.as_slice(), locations.as_slice()));
        write_jobs((self.conversion, self.sensitivity), schemes, placed)
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
        for file in conversion.side_files(|output| plan.tensors[output].scheme) {
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
        let read = |(): &mut (), name: &&String| content(staging.output(), name, slices, pass.progress);
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

/// The write job of each output of `conversion`, from its scheme, and its stored tensors with their locations.
pub(super) fn write_jobs<'t>(
    (conversion, sensitivity): (&'t Conversion, &'t Sensitivity),
    schemes: impl Iterator<Item = Scheme>,
    placed: impl Iterator<Item = (&'t [StoredTensor], &'t [Location])>,
) -> Vec<WriteJob<'t>> {
    let mut jobs = Vec::with_capacity(conversion.outputs.len());
    for ((output, scheme), (parts, locations)) in conversion.outputs.iter().zip(schemes).zip(placed) {
        let mode = match &output.candidate {
            Ok((matrix, _)) if !scheme.is_kept() => {
                StoreMode::Encoded(scheme, matrix.float, &sensitivity.measured[output.matrices.clone()])
            }
            _ => output.kept_mode(&conversion.checkpoint),
        };
        jobs.push(WriteJob { target: &output.target, mode, parts, locations });
    }
    jobs
}
