//! `plan`: an analysis and a budget to a scheme for every tensor, exact to the byte.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{AnalysisRequest, analyze};
use crate::allocate::{self, Family, Outcome, Point};
use crate::budget::{Budget, Limit, size};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::{self, Format};
use crate::option::OptionName;
use crate::policy::{Allowed, Policy, PolicyOptions};
use crate::progress::{Progress, Stage};
use crate::schema::analysis::{Analysis, Curve, Tensor};
use crate::schema::plan::{self, Plan, Size, Totals, Uniform};
use crate::schema::{Saved, Tool};
use crate::scheme::{Affine, Scheme};
use crate::writer::layout::{Layout, SHARD_BYTES, Stored, lay_out};

/// Below so many bits per code the sum of the matrices' losses understates what they do together.
const ADDITIVE_BITS: f64 = 3.0;

/// Sizes in a plan's trade-off.
const TRADE_OFF_SIZES: usize = 48;

/// Weights of a group in a uniform plan whose group size nobody named: what the MLX tools take.
pub(super) const GROUP_SIZE: u16 = 64;

/// What is planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanRequest {
    /// A saved analysis; none to analyze `model`.
    pub analysis: Option<Saved>,
    /// What to analyze, and how.
    pub model: AnalysisRequest,
    /// How large the output may be.
    pub budget: Option<String>,
    /// In place of a budget: one scheme for all matrices.
    pub uniform: Option<String>,
    /// Limits on the schemes.
    pub policy: PolicyOptions,
    /// Tensor data per file.
    pub shard_bytes: u64,
}

impl Default for PlanRequest {
    fn default() -> Self {
        Self {
            analysis: None,
            model: AnalysisRequest::default(),
            budget: None,
            uniform: None,
            policy: PolicyOptions::default(),
            shard_bytes: SHARD_BYTES,
        }
    }
}

/// What is asked of a plan, checked.
pub(super) enum Target {
    Budget(Budget),
    Uniform(Affine),
}

impl PlanRequest {
    /// What it asks for.
    pub(super) fn target(&self) -> Result<Target> {
        match (&self.budget, &self.uniform) {
            (Some(budget), None) => budget.parse().map(Target::Budget),
            (None, Some(scheme)) => match scheme.parse() {
                Ok(Scheme::Affine(affine)) => Ok(Target::Uniform(affine)),
                _ => Err(Error::option(OptionName::Uniform, scheme, "bits of 2 3 4 5 6 8, groups of 32 64 128")),
            },
            (Some(budget), Some(scheme)) => {
                let reason = format!("is given, and so is ⟨uniform⟩ ({scheme} for all matrices): give one of them");
                Err(Error::option(OptionName::Budget, budget, &reason))
            }
            (None, None) => Err(Error::MissingOption {
                option: OptionName::Budget,
                what: "how large the result may be, as in 4.0 or 24GB",
            }),
        }
    }
}

/// Makes the plan that `request` asks for.
///
/// # Errors
/// [`Error::BudgetTooSmall`], [`Error::Option`], [`Error::Scheme`], and those of analyzing.
pub fn plan(request: &PlanRequest, progress: &Progress) -> Result<Plan> {
    // Whatever makes no sense is refused before any work.
    let target = request.target()?;
    let policy = Policy::new(&request.policy)?;
    let analysis = match &request.analysis {
        Some(saved) => saved.read()?,
        None => analyze(&request.model, progress)?,
    };
    progress.begin(Stage::Plan, 0);
    from_analysis(&analysis, request, &policy, target)
}

/// The plan for `target` from `analysis`.
pub(super) fn from_analysis(
    analysis: &Analysis,
    request: &PlanRequest,
    policy: &Policy,
    target: Target,
) -> Result<Plan> {
    // One scheme for all is what was asked for, whatever the floor.
    let has_floor = matches!(target, Target::Budget(_));
    let planner = Planner::new(analysis, policy, has_floor, request.shard_bytes)?;
    planner.check_names()?;
    let uniform = match target {
        Target::Uniform(affine) => Some(affine),
        Target::Budget(_) => None,
    };
    let (choice, outcome, budget, budget_bytes) = match target {
        Target::Uniform(affine) => {
            (allocate::uniform_choice(&planner.families, Scheme::Affine(affine)), None, None, None)
        }
        Target::Budget(budget) => {
            let limit = budget.limit(analysis.source.parameters, analysis.source.file_bytes);
            let outcome = planner.within(limit, &budget)?;
            let (Limit::TensorBytes(bytes) | Limit::FileBytes(bytes)) = limit;
            (outcome.allocation.choice.clone(), Some(outcome), Some(budget.text), Some(bytes))
        }
    };
    let mut plan = planner.document(request, &choice, outcome.as_ref(), budget, budget_bytes)?;
    if let Some(asked) = uniform {
        let other = |tensor: &&plan::Tensor| tensor.scheme.affine().is_some_and(|affine| affine != asked);
        let others = plan.tensors.iter().filter(other).count();
        if others > 0 {
            plan.warnings.push(format!(
                "{others} matrices get another scheme than {asked}: it does not fit them, or a limit rules it out"
            ));
        }
    }
    Ok(plan)
}

/// An analysis, seen through a policy.
struct Planner<'a> {
    analysis: &'a Analysis,
    format: &'static dyn Format,
    shard_bytes: u64,
    /// What may be done to each tensor; none for those that no scheme exists for.
    allowed: Vec<Option<Allowed>>,
    /// The tensors of each family.
    members: Vec<Vec<usize>>,
    families: Vec<Family>,
    /// Bytes of the tensors that are in no family.
    kept_bytes: u64,
    /// Families that the floor denies their smallest scheme.
    floored: usize,
}

impl<'a> Planner<'a> {
    fn new(analysis: &'a Analysis, policy: &Policy, has_floor: bool, shard_bytes: u64) -> Result<Self> {
        let candidates = analysis.tensors.iter().filter(|tensor| tensor.curve.is_some());
        policy.matches(&candidates.flat_map(Tensor::names))?;
        let mut planner = Self {
            analysis,
            format: format::by_name(&analysis.settings.format)?,
            shard_bytes,
            allowed: Vec::with_capacity(analysis.tensors.len()),
            members: Vec::new(),
            families: Vec::new(),
            kept_bytes: 0,
            floored: 0,
        };
        let mut families: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, tensor) in analysis.tensors.iter().enumerate() {
            let Some(curve) = &tensor.curve else {
                planner.allowed.push(None);
                planner.kept_bytes += tensor.bytes;
                continue;
            };
            planner.allowed.push(Some(policy.allowed(tensor.names(), tensor.role)));
            let next = planner.members.len();
            let family = *families.entry(&curve.family).or_insert(next);
            if family == next {
                planner.members.push(Vec::new());
            }
            planner.members[family].push(at);
        }
        for family in 0..planner.members.len() {
            let points = planner.points(&planner.members[family], has_floor)?;
            planner.floored += usize::from(has_floor && planner.is_floored(&planner.members[family], &points));
            planner.families.push(Family { points });
        }
        Ok(planner)
    }

    /// The tensors that a scheme stores must not be called as others of the source are.
    fn check_names(&self) -> Result<()> {
        let names: BTreeSet<&str> = self.analysis.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for tensor in self.analysis.tensors.iter().filter(|tensor| tensor.curve.is_some()) {
            let (Some(rows), Some(affine)) = (tensor.rows(), Affine::all().next()) else { continue };
            let parts = self.format.parts(rows, affine);
            if let Some(part) = parts.iter().find(|part| part.name != tensor.name && names.contains(part.name.as_str()))
            {
                let reason = format!("what is stored for it would be called `{}`, as another tensor is", part.name);
                return Err(Error::Scheme { tensor: tensor.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// What a family may become, by growing bytes.
    fn points(&self, members: &[usize], has_floor: bool) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        for scheme in Affine::all().map(Scheme::Affine).chain([Scheme::Kept]) {
            let mut total = Point { scheme, bytes: 0, loss: 0.0 };
            let fits = members.iter().all(|&at| match self.point(at, scheme, has_floor) {
                Some(point) => {
                    total.bytes += point.bytes;
                    total.loss += point.loss;
                    true
                }
                None => false,
            });
            if fits {
                points.push(total);
            }
        }
        points.sort_by_key(|point| point.bytes);
        if points.is_empty() {
            let tensor = self.analysis.tensors[members[0]].name.clone();
            let reason = "no scheme is left for it by the limits on bits, the rules and the floor";
            return Err(Error::Scheme { tensor, reason: reason.to_owned() });
        }
        Ok(points)
    }

    /// What `scheme` does to tensor `at`, if it may have it; `floor` says whether the floor counts.
    fn point(&self, at: usize, scheme: Scheme, floor: bool) -> Option<Point> {
        let tensor = &self.analysis.tensors[at];
        let (curve, allowed) = (tensor.curve.as_ref()?, self.allowed[at].as_ref()?);
        if !allowed.admits(scheme) {
            return None;
        }
        let Some(affine) = scheme.affine() else { return Some(Point { scheme, bytes: tensor.bytes, loss: 0.0 }) };
        let point = curve.points.iter().find(|point| point.scheme == scheme)?;
        // The floor is for 2-bit codes: what is below it at 3 bits and more is so by nature, a router of noise, say.
        let below = affine.bits() == 2 && allowed.floor_db.is_some_and(|least| point.sqnr_db < least);
        if floor && below {
            return None;
        }
        let matrix = tensor.matrix()?;
        Some(Point { scheme, bytes: affine.stored_bytes(matrix.rows, matrix.cols, matrix.float), loss: point.loss })
    }

    /// Whether a family would have a smaller scheme, were it not for the floor.
    fn is_floored(&self, members: &[usize], points: &[Point]) -> bool {
        let least = points.first().map_or(u64::MAX, |point| point.bytes);
        Affine::all().any(|affine| {
            let sizes: Option<Vec<u64>> =
                members.iter().map(|&at| Some(self.point(at, Scheme::Affine(affine), false)?.bytes)).collect();
            sizes.is_some_and(|sizes| sizes.iter().sum::<u64>() < least)
        })
    }

    /// The allocation within `limit`.
    fn within(&self, limit: Limit, budget: &Budget) -> Result<Outcome> {
        let smallest = allocate::minimum(&self.families) + self.kept_bytes;
        let too_small = |minimum: u64| Error::BudgetTooSmall {
            budget: budget.to_string(),
            minimum: budget.in_its_unit(minimum, self.analysis.source.parameters, self.analysis.source.file_bytes),
            sets_it: self.sets_minimum(minimum - smallest),
        };
        let allocate = |tensor_bytes: u64| {
            let capacity = tensor_bytes.checked_sub(self.kept_bytes);
            capacity.and_then(|capacity| allocate::allocate(&self.families, capacity))
        };
        let file_bytes = match limit {
            Limit::TensorBytes(bytes) => return allocate(bytes).ok_or_else(|| too_small(smallest)),
            Limit::FileBytes(bytes) => bytes,
        };
        // Headers count, and their length depends on the allocation: a few tries meet it from both sides.
        let smallest_files = self.layout(&self.smallest())?.file_bytes();
        let mut headers = smallest_files - smallest;
        let mut best: Option<Outcome> = None;
        for _ in 0..8 {
            let Some(outcome) = file_bytes.checked_sub(headers).and_then(allocate) else { break };
            let total = self.layout(&outcome.allocation.choice)?.file_bytes();
            let needed = total - outcome.allocation.bytes - self.kept_bytes;
            let fits = total <= file_bytes;
            if fits && best.as_ref().is_none_or(|best| outcome.allocation.loss < best.allocation.loss) {
                best = Some(outcome);
            }
            if needed == headers {
                break;
            }
            headers = needed;
        }
        let mut best = best.ok_or_else(|| too_small(smallest_files))?;
        // A uniform plan may fit by a header a few bytes shorter than that of the best allocation.
        for (scheme, uniform) in allocate::uniforms(&self.families) {
            let better = best.uniform.is_none_or(|(_, least)| uniform.loss < least);
            let may_fit = uniform.bytes + self.kept_bytes < file_bytes;
            if better && may_fit && self.layout(&uniform.choice)?.file_bytes() <= file_bytes {
                best.compare(scheme, uniform);
            }
        }
        Ok(best)
    }

    /// Every family at its smallest.
    fn smallest(&self) -> Vec<usize> {
        vec![0; self.families.len()]
    }

    /// A sentence for what makes the smallest plan, with headers of `header_bytes`, no smaller.
    fn sets_minimum(&self, header_bytes: u64) -> String {
        let matrices = allocate::minimum(&self.families);
        let floored = match self.floored {
            0 => String::new(),
            floored => format!(
                " ({floored} of them are denied 2 bits by the floor on their signal-to-noise ratio; ⟨min_bits=2⟩ lifts it)"
            ),
        };
        let asked = |family: &&Family| matches!(family.points[..], [Point { scheme: Scheme::Kept, .. }]);
        let asked_bytes: u64 = self.families.iter().filter(asked).map(|family| family.points[0].bytes).sum();
        let asked = match self.families.iter().filter(asked).count() {
            0 => String::new(),
            asked => format!(" ({asked} of them, {}, are to be kept by your rules)", size(asked_bytes)),
        };
        let kept: Vec<&Tensor> = self.analysis.tensors.iter().filter(|tensor| tensor.curve.is_none()).collect();
        // The first of the largest.
        let largest = kept.iter().rev().max_by_key(|tensor| tensor.bytes).map_or_else(String::new, |tensor| {
            let why = tensor.kept.as_deref().unwrap_or_default();
            format!(" (the largest, `{}`, {}: {why})", tensor.name, size(tensor.bytes))
        });
        let headers = if header_bytes > 0 { format!(", and headers {}", size(header_bytes)) } else { String::new() };
        format!(
            "{} matrices at their smallest take {}{floored}{asked}, {} tensors that are kept as they are {}{largest}{headers}",
            self.families.len(),
            size(matrices),
            kept.len(),
            size(self.kept_bytes)
        )
    }

    /// The scheme of each tensor.
    fn schemes(&self, choice: &[usize]) -> Vec<Scheme> {
        let mut schemes = vec![Scheme::Kept; self.analysis.tensors.len()];
        for ((members, family), &at) in self.members.iter().zip(&self.families).zip(choice) {
            for &member in members {
                schemes[member] = family.points[at].scheme;
            }
        }
        schemes
    }

    fn layout(&self, choice: &[usize]) -> Result<Layout> {
        let modules = modules(self.format, &self.analysis.tensors, &self.schemes(choice))?;
        Ok(lay_out(&modules, self.shard_bytes, self.format.name()))
    }

    /// The document of an allocation.
    fn document(
        &self,
        request: &PlanRequest,
        choice: &[usize],
        outcome: Option<&Outcome>,
        budget: Option<String>,
        budget_bytes: Option<u64>,
    ) -> Result<Plan> {
        let parameters = self.analysis.source.parameters.max(1) as f64;
        let mut tensors = Vec::with_capacity(self.analysis.tensors.len());
        let mut payload_bits = 0;
        let schemes = self.schemes(choice);
        for (at, (tensor, &scheme)) in self.analysis.tensors.iter().zip(&schemes).enumerate() {
            payload_bits += match scheme {
                Scheme::Affine(affine) => tensor.shape.iter().product::<u64>() * u64::from(affine.bits()),
                Scheme::Kept => 8 * tensor.bytes,
            };
            tensors.push(self.tensor(at, tensor, scheme));
        }
        let tensor_bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
        let totals = Totals {
            tensor_bytes,
            file_bytes: self.layout(choice)?.file_bytes(),
            budget_bytes,
            effective_bpw: 8.0 * tensor_bytes as f64 / parameters,
            payload_bpw: payload_bits as f64 / parameters,
            loss: tensors.iter().map(|tensor| tensor.loss).fold(0.0, |sum, loss| sum + loss),
            lower_bound: outcome.map(|outcome| outcome.bound),
            best_uniform: outcome.and_then(|outcome| {
                let (scheme, loss) = outcome.uniform?;
                Some(Uniform { scheme, loss, is_the_plan: outcome.is_uniform })
            }),
        };
        let size = |(bytes, loss): (u64, f64)| {
            let tensor_bytes = bytes + self.kept_bytes;
            Size { effective_bpw: 8.0 * tensor_bytes as f64 / parameters, tensor_bytes, loss }
        };
        Ok(Plan {
            ramrs_plan: plan::VERSION,
            tool: Tool::this(),
            source: self.analysis.source.clone(),
            settings: self.analysis.settings.clone(),
            policy: request.policy.clone(),
            budget,
            warnings: self.warnings(&schemes, &totals),
            totals,
            schemes_sha256: plan::schemes_digest(&tensors),
            trade_off: allocate::trade_off(&self.families, TRADE_OFF_SIZES).into_iter().map(size).collect(),
            tensors,
        })
    }

    fn tensor(&self, at: usize, tensor: &Tensor, scheme: Scheme) -> plan::Tensor {
        let point = tensor.curve.as_ref().and_then(|curve| curve.points.iter().find(|point| point.scheme == scheme));
        let why = match (&tensor.kept, &self.allowed[at]) {
            (Some(kept), _) => kept.clone(),
            (None, Some(allowed)) => allowed.why(scheme),
            (None, None) => String::new(),
        };
        let bytes = scheme
            .affine()
            .zip(tensor.matrix())
            .map_or(tensor.bytes, |(affine, matrix)| affine.stored_bytes(matrix.rows, matrix.cols, matrix.float));
        plan::Tensor {
            name: tensor.name.clone(),
            role: tensor.role,
            layer: tensor.layer,
            scheme,
            bytes,
            loss: point.map_or(0.0, |point| point.loss),
            sqnr_db: point.map(|point| point.sqnr_db),
            why,
        }
    }

    /// What the user should know of a plan, after what is known of the analysis.
    fn warnings(&self, schemes: &[Scheme], totals: &Totals) -> Vec<String> {
        let mut warnings = self.analysis.warnings.clone();
        let (mut codes, mut weights) = (0.0, 0.0);
        for (tensor, scheme) in self.analysis.tensors.iter().zip(schemes) {
            if let Some(affine) = scheme.affine() {
                let elements = tensor.shape.iter().product::<u64>() as f64;
                codes += elements * f64::from(affine.bits());
                weights += elements;
            }
        }
        if weights == 0.0 && !self.families.is_empty() {
            warnings.push(
                "nothing is quantized: the budget leaves room for everything at the source's precision".to_owned(),
            );
        } else if weights == 0.0 {
            warnings.push("nothing can be quantized: no matrix has rows that divide into groups".to_owned());
        } else if codes / weights < ADDITIVE_BITS {
            warnings.push(format!(
                "the codes have {:.2} bits on average: below 3 bits losses add up to more than their sum, and the \
                 predicted loss is too low; measure the result",
                codes / weights
            ));
        }
        let wide = |(tensor, scheme): &(&Tensor, &Scheme)| {
            scheme.affine().zip(tensor.matrix()).filter(|(_, matrix)| matrix.float == Float::F32)
        };
        let halves = self.analysis.tensors.iter().zip(schemes).filter_map(|pair| wide(&pair));
        let saved: u64 = halves.map(|(affine, matrix)| 4 * matrix.rows * affine.groups(matrix.cols)).sum();
        if saved > 0 {
            warnings.push(format!(
                "the source is in F32, and so are scales and biases: cast to BF16 or F16 first, it would take {} less",
                size(saved)
            ));
        }
        let twice = |(tensor, scheme): &(&Tensor, &Scheme)| tensor.packed.is_some() && scheme.affine().is_some();
        let mut twice = self.analysis.tensors.iter().zip(schemes).filter(twice).map(|(tensor, _)| tensor);
        if let Some(first) = twice.next() {
            warnings.push(format!(
                "{} tensors that the release stores in 4 bits are rounded a second time (first `{}`): a model that was \
                 trained in its grid may lose more than predicted; with more bytes they are passed on as they are",
                1 + twice.count(),
                first.name
            ));
        }
        if totals.best_uniform.as_ref().is_some_and(|uniform| uniform.is_the_plan) {
            warnings.push("no mixture is better than one scheme for all matrices: that is the plan".to_owned());
        }
        if let Some((tensor, error)) = self.largest_standard_error(schemes).filter(|(_, error)| *error > 0.05) {
            warnings.push(format!(
                "the loss of `{tensor}` is known to {:.0} % only; --sample-bands 0 measures all rows",
                100.0 * error
            ));
        }
        warnings
    }

    /// The tensor whose loss is least certain, and how uncertain.
    fn largest_standard_error(&self, schemes: &[Scheme]) -> Option<(&str, f64)> {
        let of = |(tensor, scheme): (&'a Tensor, &Scheme)| {
            let curve: &Curve = tensor.curve.as_ref()?;
            let point = curve.points.iter().find(|point| point.scheme == *scheme)?;
            Some((tensor.name.as_str(), point.standard_error))
        };
        self.analysis.tensors.iter().zip(schemes).filter_map(of).max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// The tensors that store each of `tensors` in its scheme.
pub(super) fn modules(format: &dyn Format, tensors: &[Tensor], schemes: &[Scheme]) -> Result<Vec<Vec<Stored>>> {
    tensors
        .iter()
        .zip(schemes)
        .map(|(tensor, scheme)| {
            let wrong = |reason: &str| Error::Scheme { tensor: tensor.name.clone(), reason: reason.to_owned() };
            let Some(affine) = scheme.affine() else {
                if let (Some(packed), Some(rows)) = (tensor.packed(), tensor.rows()) {
                    return Ok(format.packed_parts(rows, packed));
                }
                let dtype = tensor.dtype().ok_or_else(|| wrong("its dtype is not one of the format's"))?;
                let (name, shape, bytes) = (tensor.name.clone(), tensor.shape.clone(), tensor.bytes);
                return Ok(vec![Stored { name, dtype, shape, bytes }]);
            };
            let rows = tensor.rows().filter(|rows| affine.fits(rows.cols));
            let rows = rows.ok_or_else(|| wrong(&format!("{affine} does not fit its shape {:?}", tensor.shape)))?;
            Ok(format.parts(rows, affine))
        })
        .collect()
}
