//! `quantize`: analyzes, plans, encodes, reads back, and renames the output to its final name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::analyze::curves;
use super::plan::{Goal, PlanRequest, from_analysis};
use super::saved::{fitting, recounted};
use super::sensitivity::{AUTO, Sensitivity, is_file, measure, runs, same_sensitivity_request};
use super::write::QuantizeJob;
use super::{AUTO_FORMAT, AnalysisRequest, Engine, Resources, check, kept, resume};
use crate::checkpoint::stream::Pass;
use crate::error::{DocumentSource, Error, Result};
use crate::job::conversion::Conversion;
use crate::job::encode::Selection;
use crate::job::identity::JobIdentity;
use crate::job::part::JobPart;
use crate::job::place::{FilePlace, check_file_name, check_output_path};
use crate::job::staging::{Existing, Staging};
use crate::journal::Journal;
use crate::option::OptionName;
use crate::policy::Policy;
use crate::progress::{Progress, Stage};
use crate::schema::Saved;
use crate::schema::analysis::Analysis;
use crate::schema::manifest::Manifest;
use crate::schema::plan::Plan;

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
    /// The part of a saved plan to carry out, such as `3/16`; `None` for all of it. [`finish`] makes the output of all parts.
    pub part: Option<String>,
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
    /// Whether work of an earlier run, which was stopped, was used.
    pub continued: bool,
    /// The part that was done, if that was not all.
    pub part: Option<JobPart>,
    /// The plan.
    pub plan: Plan,
    /// The manifest; `None` after a dry run.
    pub manifest: Option<Manifest>,
}

impl QuantizeRequest {
    fn part(&self) -> Result<Option<JobPart>> {
        let parsed = |text: &String| text.parse().map_err(|reason| Error::option(OptionName::Part, text, reason));
        self.part.as_ref().map(parsed).transpose()
    }
}

impl QuantizeReport {
    /// The report of a dry run.
    fn of(request: &QuantizeRequest, plan: Plan) -> Self {
        let output = request.output.display().to_string();
        Self { output, written: false, continued: false, part: None, plan, manifest: None }
    }
}

/// Quantizes a checkpoint.
///
/// # Errors
/// The errors of planning, reading and writing. After an error that another run may not meet, and after a cancellation, the
/// partial output remains if anything is recorded in it, and the same request continues from it.
pub fn quantize(request: &QuantizeRequest, progress: &Progress) -> Result<QuantizeReport> {
    carry_out(request, progress, false)
}

/// Makes the output of a job whose parts are done.
///
/// # Errors
/// [`Error::Parts`] if a part is missing, and those of [`quantize`].
pub fn finish(request: &FinishRequest, progress: &Progress) -> Result<QuantizeReport> {
    let text = Staging::request_of(&request.output)?;
    let mut of_parts: QuantizeRequest =
        serde_json::from_str(&text).map_err(|fault| Error::Request(fault.to_string()))?;
    of_parts.output.clone_from(&request.output);
    of_parts.plan.model.resources.clone_from(&request.resources);
    carry_out(&of_parts, progress, true)
}

/// Options of [`finish`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FinishRequest {
    /// Path of the output.
    pub output: PathBuf,
    /// Resources of the job.
    pub resources: Resources,
}

/// Checks the options of `request` and opens its source: what is invalid fails before any work.
fn opened<'r>(request: &'r QuantizeRequest, progress: &Progress) -> Result<Work<'r>> {
    let saved_plan = match &request.saved_plan {
        Some(saved) => Some((saved.read::<Plan>()?, saved.place::<Plan>())),
        None => None,
    };
    let mut analysis_request = request.plan.model.clone();
    if analysis_request.format == AUTO_FORMAT && FilePlace::of(&request.output).is_some() {
        "gguf".clone_into(&mut analysis_request.format);
    }
    if let Some((plan, _)) = &saved_plan {
        analysis_request = analysis_request.of_settings(&plan.settings);
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
    let saved = saved.filter(|_| analysis_request.sensitivity == Path::new(AUTO));
    let kept = match saved {
        Some((settings, DocumentSource::File(path))) => kept::beside(path, settings)?,
        _ => None,
    };
    if let (Some((settings, place)), None) = (saved, &kept) {
        let reason = || "it was made with a sensitivity file: give that with ⟨sensitivity⟩".to_owned();
        let again = same_sensitivity_request(settings)
            .ok_or_else(|| Error::Stale { place: place.clone(), reason: reason() })?;
        (analysis_request.sensitivity, analysis_request.probe) = again;
    }
    let part = request.part()?;
    check_part(part, request, kept.is_some() || is_file(&analysis_request))?;
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
        if part.is_none() {
            Staging::settle(&request.output)?;
        }
    }
    Ok(Work { request, analysis_request, conversion, policy, asked, saved_analysis, kept, part })
}

/// Checks that `request` is one that a part can be done of.
fn check_part(part: Option<JobPart>, request: &QuantizeRequest, is_measured: bool) -> Result<()> {
    let reason = match part {
        Some(_) if request.saved_plan.is_none() => "it is a part of a ⟨plan⟩: make one, and give it with every part",
        Some(_) if !is_measured => {
            "its plan has no sensitivity beside it, and every part would measure it again: let `ramrs analyze` write the \
             analysis into a file, and make the plan of that, in the same directory"
        }
        _ => return Ok(()),
    };
    Err(Error::option(OptionName::Part, request.part.clone().unwrap_or_default(), reason))
}

fn carry_out(request: &QuantizeRequest, progress: &Progress, has_parts: bool) -> Result<QuantizeReport> {
    let work = opened(request, progress)?;
    let engine = Engine::new(&work.analysis_request.resources)?;
    engine.check_memory(&work.conversion, &work.analysis_request)?;
    let pass = engine.pass(&work.conversion.checkpoint, progress);
    if request.dry_run {
        let (_, plan) = work.planned(pass)?;
        return Ok(QuantizeReport::of(request, plan));
    }
    let interval = resume::interval(&work.analysis_request.resources)?;
    let identity = resume::identity(request, &work.analysis_request, &work.conversion)?;
    if let Some(part) = work.part {
        return work.write_part(pass, part, (&identity, interval));
    }
    let existing = if request.overwrite { Existing::Replaced } else { Existing::Refused };
    let staging = Staging::open(&request.output, existing, &identity, interval)?;
    if has_parts {
        staging.import_parts()?;
    }
    let written = work.write(Pass { journal: staging.journal(), ..pass }, &staging);
    match written {
        Ok((plan, manifest)) => {
            let continued = staging.is_continued();
            staging.finish()?;
            let planned = QuantizeReport::of(request, plan);
            Ok(QuantizeReport { written: true, continued, manifest: Some(manifest), ..planned })
        }
        Err(error) => Err(resume::ended(staging, error)),
    }
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
    check_output_path(&request.model, &dir, &request.output, request.overwrite)?;
    Staging::settle(&request.output)
}

/// A quantization whose options are checked.
struct Work<'r> {
    request: &'r QuantizeRequest,
    /// The analysis that `request` asks for, with the options of a saved document.
    analysis_request: AnalysisRequest,
    conversion: Conversion,
    policy: Policy,
    asked: PlanSource,
    saved_analysis: Option<(Analysis, DocumentSource)>,
    /// The sensitivity that is kept beside the saved document.
    kept: Option<Journal>,
    part: Option<JobPart>,
}

impl Work<'_> {
    /// The sensitivity of the source, and the plan.
    fn planned(&self, pass: Pass<'_>) -> Result<(Sensitivity, Plan)> {
        let Self { request, analysis_request, conversion, policy, asked, saved_analysis, kept, .. } = self;
        let sensitivity = match kept.as_ref().map(|kept| kept::load(pass, kept)).transpose()?.flatten() {
            Some(sensitivity) => sensitivity,
            None => measure(pass, conversion, analysis_request)?,
        };
        let plan = match asked {
            PlanSource::Saved(plan, place) => {
                recounted(Plan::clone(plan), place, conversion, &sensitivity, request.plan.shard_bytes)?
            }
            PlanSource::Goal(goal) => {
                let analysis = match saved_analysis {
                    Some((analysis, place)) => fitting(analysis.clone(), place, conversion, &sensitivity)?,
                    None => curves(pass, conversion, analysis_request, &sensitivity)?,
                };
                pass.progress.begin(Stage::Plan, 0);
                from_analysis(&analysis, &request.plan, policy, goal)?
            }
        };
        conversion.check_refusals(|output| plan.tensors[output].scheme)?;
        Ok((sensitivity, plan))
    }

    /// Does a part of the job.
    fn write_part(
        &self,
        pass: Pass<'_>,
        part: JobPart,
        (identity, interval): (&JobIdentity, Duration),
    ) -> Result<QuantizeReport> {
        let request = resume::request_text(self.request)?;
        let staging = Staging::open_part(&self.request.output, part, (identity, &request), interval)?;
        let pass = Pass { journal: staging.journal(), ..pass };
        let (sensitivity, plan) = self.planned(pass)?;
        let Self { request, conversion, .. } = self;
        let job = QuantizeJob {
            pass,
            conversion,
            sensitivity: &sensitivity,
            plan: &plan,
            request,
            has_probed: false,
            selection: Selection::Part(part),
        };
        job.write_part(&staging)?;
        let continued = staging.is_continued();
        staging.finish_part()?;
        Ok(QuantizeReport { continued, part: Some(part), ..QuantizeReport::of(request, plan) })
    }

    /// Writes everything to `staging`.
    fn write(&self, pass: Pass<'_>, staging: &Staging) -> Result<(Plan, Manifest)> {
        let Self { request, analysis_request, conversion, .. } = self;
        let (sensitivity, plan) = self.planned(pass)?;
        let has_probed =
            runs(&conversion.checkpoint, analysis_request) && analysis_request.probe.tokens >= check::TOKENS;
        let job = QuantizeJob {
            pass,
            conversion,
            sensitivity: &sensitivity,
            plan: &plan,
            request,
            has_probed,
            selection: Selection::All,
        };
        let manifest = job.write(staging)?;
        Ok((plan, manifest))
    }
}

enum PlanSource {
    Saved(Box<Plan>, DocumentSource),
    Goal(Goal),
}
