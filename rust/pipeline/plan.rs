//! `plan`: assigns a scheme to every tensor, given an analysis and a budget. Sizes are exact to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::analyze::analysis;
use super::{AnalysisRequest, explain};
use crate::allocate::{self, FusionGroup, SchemeCost, Solution};
use crate::budget::{Budget, Limit};
use crate::codec::Scheme;
use crate::container::SHARD_BYTES;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::job::stored::{StoredOutput, stored};
use crate::name::Name;
use crate::option::OptionName;
use crate::policy::{Limits, Policy, PolicyOptions, find_scheme};
use crate::progress::{Progress, Stage};
use crate::schema::analysis::{Analysis, AnalyzedTensor};
use crate::schema::plan::{self, Plan, PlannedTensor, Size, Totals, Uniform};
use crate::schema::{Saved, Tool};

/// Number of sizes in a plan's trade-off.
const TRADE_OFF_SIZES: usize = 48;

/// Options of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanRequest {
    /// A saved analysis; `None` to analyze `model`.
    pub analysis: Option<Saved>,
    /// The checkpoint, and the options of its analysis.
    pub model: AnalysisRequest,
    /// Size of the output.
    pub budget: Option<String>,
    /// Instead of a budget: one scheme for all matrices. Bits alone, such as `4`, stand for the format's default groups.
    pub uniform: Option<String>,
    /// Limits on the schemes.
    pub policy: PolicyOptions,
    /// Bytes of tensor data per file.
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

/// The parsed goal of a plan.
pub(super) enum Goal {
    Budget(Budget),
    Uniform(Scheme),
}

impl PlanRequest {
    /// Parses the goal of a plan for `format`.
    pub(super) fn goal(&self, format: &dyn Format) -> Result<Goal> {
        match (&self.budget, &self.uniform) {
            (Some(budget), None) => budget.parse().map(Goal::Budget),
            (None, Some(text)) => {
                let grouped = format!("{text}g{}", format.default_group());
                let found = [text, &grouped].into_iter().find_map(|text| find_scheme(text, format.schemes()));
                found.map(Goal::Uniform).ok_or_else(|| {
                    let known: Vec<String> = format.schemes().iter().map(ToString::to_string).collect();
                    Error::option(OptionName::Uniform, text, format!("none of {}", known.join(", ")))
                })
            }
            (Some(budget), Some(scheme)) => {
                let reason = format!("conflicts with ⟨uniform⟩ ({scheme} for all matrices): give only one of them");
                Err(Error::option(OptionName::Budget, budget, &reason))
            }
            (None, None) => Err(Error::MissingOption {
                option: OptionName::Budget,
                what: "how large the result may be, as in 4.0 or 24GB",
            }),
        }
    }
}

/// Makes the plan of `request`.
///
/// # Errors
/// [`Error::BudgetTooSmall`], [`Error::Option`], [`Error::Scheme`], and the errors of [`analyze()`](super::analyze()).
pub fn plan(request: &PlanRequest, progress: &Progress) -> Result<Plan> {
    let saved: Option<Analysis> = request.analysis.as_ref().map(Saved::read).transpose()?;
    let format = saved.as_ref().map_or_else(|| request.model.open_format(), |saved| saved.settings.open_format())?;
    // Invalid options fail before any work.
    let goal = request.goal(&*format)?;
    let policy = Policy::new(&request.policy, format.schemes())?;
    let found = saved.map_or_else(|| analysis(&request.model, progress), Ok)?;
    progress.begin(Stage::Plan, 0);
    from_analysis(&found, request, &policy, &goal)
}

/// Makes the plan for `goal` from `analysis`.
pub(super) fn from_analysis(analysis: &Analysis, request: &PlanRequest, policy: &Policy, goal: &Goal) -> Result<Plan> {
    // A uniform scheme is an explicit request, so the floor does not apply.
    let has_floor = matches!(goal, Goal::Budget(_));
    let planner = Planner::new(analysis, policy, has_floor, request.shard_bytes)?;
    planner.check_names()?;
    match goal {
        &Goal::Uniform(scheme) => {
            let choice = allocate::uniform_choice(&planner.groups, scheme);
            let mut plan = planner.document(request, &choice, None)?;
            let other = |tensor: &&PlannedTensor| !tensor.scheme.is_kept() && tensor.scheme != scheme;
            let others = plan.tensors.iter().filter(other).count();
            if others > 0 {
                plan.warnings.push(format!(
                    "{others} matrices get another scheme than {scheme}: it does not fit them, or a limit rules it out"
                ));
            }
            Ok(plan)
        }
        Goal::Budget(budget) => {
            let limit = budget.limit(analysis.source.parameters, analysis.source.file_bytes);
            let solution = planner.within(limit, budget)?;
            let mut plan = planner.document(request, &solution.allocation.choice, Some(&solution))?;
            let (Limit::TensorBytes(bytes) | Limit::FileBytes(bytes)) = limit;
            (plan.budget, plan.totals.budget_bytes) = (Some(budget.text.clone()), Some(bytes));
            Ok(plan)
        }
    }
}

/// A tensor with at least one available scheme.
struct GroupMember {
    /// Index of the tensor in the analysis.
    tensor: usize,
    /// Limits on its scheme.
    limits: Limits,
}

/// An analysis under a policy.
pub(super) struct Planner<'a> {
    pub analysis: &'a Analysis,
    format: Arc<dyn Format>,
    shard_bytes: u64,
    /// The tensors of each fusion group.
    members: Vec<Vec<GroupMember>>,
    pub groups: Vec<FusionGroup>,
    /// Bytes of the tensors outside of all groups.
    pub kept_bytes: u64,
    /// Number of groups whose smallest scheme is below the floor.
    pub floored: usize,
}

impl<'a> Planner<'a> {
    fn new(analysis: &'a Analysis, policy: &Policy, has_floor: bool, shard_bytes: u64) -> Result<Self> {
        let candidates = analysis.tensors.iter().filter(|tensor| tensor.curve.is_some());
        policy.matches(&candidates.flat_map(AnalyzedTensor::names))?;
        let format = analysis.settings.open_format()?;
        let (members, groups) = (Vec::new(), Vec::new());
        let mut planner = Self { analysis, format, shard_bytes, members, groups, kept_bytes: 0, floored: 0 };
        let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, tensor) in analysis.tensors.iter().enumerate() {
            let Some(curve) = &tensor.curve else {
                planner.kept_bytes += tensor.bytes;
                continue;
            };
            let next = planner.members.len();
            let group = *by_name.entry(&curve.family).or_insert(next);
            if group == next {
                planner.members.push(Vec::new());
            }
            let limits = policy.allowed(tensor.names(), tensor.role);
            planner.members[group].push(GroupMember { tensor: at, limits });
        }
        for members in &planner.members {
            let points = planner.points(members, has_floor)?;
            planner.floored += usize::from(has_floor && planner.is_floored(members, &points));
            planner.groups.push(FusionGroup { points });
        }
        Ok(planner)
    }

    /// Checks that no stored part has the name of another tensor.
    fn check_names(&self) -> Result<()> {
        let names: BTreeSet<&str> = self.analysis.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for tensor in &self.analysis.tensors {
            let Some(point) = tensor.curve.as_ref().and_then(|curve| curve.points.first()) else { continue };
            let parts = stored(&*self.format, tensor, point.scheme)?;
            if let Some(part) = parts.iter().find(|part| part.name != tensor.name && names.contains(part.name.as_str()))
            {
                let reason = format!(
                    "one of its stored parts would be called `{}`, which is the name of another tensor",
                    part.name
                );
                return Err(Error::Scheme { tensor: tensor.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// The schemes available to a group, by increasing bytes.
    fn points(&self, members: &[GroupMember], has_floor: bool) -> Result<Vec<SchemeCost>> {
        // A scheme in which the release has the weights is no better than to keep them.
        let schemes = [Scheme::KEPT].into_iter().chain(self.format.schemes().iter().copied());
        let mut points: Vec<SchemeCost> =
            schemes.filter_map(|scheme| self.group_cost(members, scheme, has_floor)).collect();
        points.sort_by_key(|point| point.bytes);
        if points.is_empty() {
            let tensor = self.analysis.tensors[members[0].tensor].name.clone();
            return Err(Error::Scheme { tensor, reason: self.no_points(members) });
        }
        Ok(points)
    }

    /// The reason why no scheme is available to a group.
    fn no_points(&self, members: &[GroupMember]) -> String {
        let [first, others @ ..] = members else { return String::new() };
        let mut rules: Vec<&str> = members.iter().filter_map(|member| member.limits.rule.as_deref()).collect();
        rules.sort_unstable();
        rules.dedup();
        let by = if rules.is_empty() {
            "the limits on bits and the floor".to_owned()
        } else {
            format!("the limits on bits, the floor, and {}", rules.join(", "))
        };
        // The tensor whose limits differ says the most.
        let other = others.iter().find(|other| other.limits != first.limits).or(others.first());
        match other {
            None => format!("no scheme is left for it by {by}"),
            Some(other) => {
                let name = &self.analysis.tensors[other.tensor].name;
                let more = match others.len() - 1 {
                    0 => String::new(),
                    1 => " and another".to_owned(),
                    more => format!(" and {more} others"),
                };
                format!(
                    "the runtime takes one scheme for it and `{name}`{more}, and none is left for all of them by {by}: \
                     give them the same"
                )
            }
        }
    }

    /// The cost of `scheme` for a group, if all members allow it. `floor` states whether the floor applies.
    fn group_cost(&self, members: &[GroupMember], scheme: Scheme, floor: bool) -> Option<SchemeCost> {
        let mut total = SchemeCost { scheme, bytes: 0, loss: 0.0 };
        for member in members {
            let cost = self.cost(member, scheme, floor)?;
            total.bytes += cost.bytes;
            total.loss += cost.loss;
        }
        Some(total)
    }

    fn cost(&self, GroupMember { tensor, limits }: &GroupMember, scheme: Scheme, floor: bool) -> Option<SchemeCost> {
        let tensor = &self.analysis.tensors[*tensor];
        if !limits.admits(scheme) {
            return None;
        }
        if scheme.is_kept() {
            let may_keep = tensor.packed.is_some() || self.format.may_keep(&Name::parse(&tensor.name));
            return may_keep.then_some(SchemeCost { scheme, bytes: tensor.bytes, loss: 0.0 });
        }
        let point = tensor.point(scheme)?;
        let is_out = floor && limits.is_below_floor(scheme, point.sqnr_db);
        (!is_out).then_some(SchemeCost { scheme, bytes: scheme.stored_bytes(tensor.matrix()?), loss: point.loss })
    }

    /// Whether the floor excludes a scheme smaller than all of `points`.
    fn is_floored(&self, members: &[GroupMember], points: &[SchemeCost]) -> bool {
        let least = points.first().map_or(u64::MAX, |point| point.bytes);
        let is_smaller =
            |&scheme: &Scheme| self.group_cost(members, scheme, false).is_some_and(|cost| cost.bytes < least);
        self.format.schemes().iter().any(is_smaller)
    }

    /// The best allocation within `limit`.
    fn within(&self, limit: Limit, budget: &Budget) -> Result<Solution> {
        let smallest = allocate::minimum(&self.groups) + self.kept_bytes;
        let too_small = |minimum: u64| Error::BudgetTooSmall {
            budget: budget.to_string(),
            minimum: budget.format_like(minimum, self.analysis.source.parameters, self.analysis.source.file_bytes),
            sets_it: explain::explain_minimum(self, minimum - smallest),
        };
        let allocate = |tensor_bytes: u64| {
            let capacity = tensor_bytes.checked_sub(self.kept_bytes);
            capacity.and_then(|capacity| allocate::allocate(&self.groups, self.format.schemes(), capacity))
        };
        let file_bytes = match limit {
            Limit::TensorBytes(bytes) => return allocate(bytes).ok_or_else(|| too_small(smallest)),
            Limit::FileBytes(bytes) => bytes,
        };
        // Headers count towards the limit, and their length depends on the allocation: a few iterations bracket it.
        let smallest_files = self.stored(&vec![0; self.groups.len()])?.layout.file_bytes();
        let mut headers = smallest_files - smallest;
        let mut best: Option<Solution> = None;
        for _ in 0..8 {
            let Some(solution) = file_bytes.checked_sub(headers).and_then(allocate) else { break };
            let total = self.stored(&solution.allocation.choice)?.layout.file_bytes();
            let needed = total - solution.allocation.bytes - self.kept_bytes;
            let fits = total <= file_bytes;
            if fits && best.as_ref().is_none_or(|best| solution.allocation.loss < best.allocation.loss) {
                best = Some(solution);
            }
            if needed == headers {
                break;
            }
            headers = needed;
        }
        let mut best = best.ok_or_else(|| too_small(smallest_files))?;
        // A uniform plan may have a slightly shorter header and so fit where the best allocation does not.
        for (scheme, uniform) in allocate::uniforms(&self.groups, self.format.schemes()) {
            let better = best.uniform.is_none_or(|(_, least)| uniform.loss < least);
            let may_fit = uniform.bytes + self.kept_bytes < file_bytes;
            if better && may_fit && self.stored(&uniform.choice)?.layout.file_bytes() <= file_bytes {
                best.compare(scheme, uniform);
            }
        }
        Ok(best)
    }

    /// The scheme of each tensor, and the limits of the tensors with available schemes.
    fn schemes(&self, choice: &[usize]) -> Vec<(Scheme, Option<&Limits>)> {
        let mut schemes = vec![(Scheme::KEPT, None); self.analysis.tensors.len()];
        for ((members, group), &at) in self.members.iter().zip(&self.groups).zip(choice) {
            for GroupMember { tensor, limits } in members {
                schemes[*tensor] = (group.points[at].scheme, Some(limits));
            }
        }
        schemes
    }

    fn stored(&self, choice: &[usize]) -> Result<StoredOutput> {
        let schemes = self.schemes(choice).into_iter().map(|(scheme, _)| scheme);
        StoredOutput::new(&*self.format, self.analysis.tensors.iter().zip(schemes), self.shard_bytes)
    }

    /// The plan document of an allocation.
    fn document(&self, request: &PlanRequest, choice: &[usize], solution: Option<&Solution>) -> Result<Plan> {
        let source = &self.analysis.source;
        let planned =
            |(tensor, (scheme, limits)): (&AnalyzedTensor, (Scheme, Option<&Limits>))| planned(tensor, scheme, limits);
        let tensors: Vec<PlannedTensor> = self.analysis.tensors.iter().zip(self.schemes(choice)).map(planned).collect();
        let uniform = |&(scheme, loss): &(Scheme, f64)| Uniform {
            scheme,
            loss,
            is_the_plan: solution.is_some_and(|solution| solution.is_uniform),
        };
        let totals = Totals {
            loss: tensors.iter().map(|tensor| tensor.loss).fold(0.0, |sum, loss| sum + loss),
            lower_bound: solution.map(|solution| solution.bound),
            best_uniform: solution.and_then(|solution| solution.uniform.as_ref().map(uniform)),
            ..self.stored(choice)?.totals(source.parameters)
        };
        let size = |(bytes, loss): (u64, f64)| {
            let tensor_bytes = bytes + self.kept_bytes;
            let effective_bpw = 8.0 * tensor_bytes as f64 / source.parameters.max(1) as f64;
            Size { effective_bpw, tensor_bytes, loss }
        };
        Ok(Plan {
            ramrs_plan: plan::VERSION,
            tool: Tool::this(),
            source: source.clone(),
            settings: self.analysis.settings.clone(),
            policy: request.policy.clone(),
            budget: None,
            warnings: explain::warnings(self, &tensors, &totals),
            totals,
            schemes_sha256: plan::schemes_digest(&tensors),
            trade_off: allocate::trade_off(&self.groups, TRADE_OFF_SIZES).into_iter().map(size).collect(),
            tensors,
        })
    }
}

/// The plan entry of `tensor` in `scheme`.
fn planned(tensor: &AnalyzedTensor, scheme: Scheme, limits: Option<&Limits>) -> PlannedTensor {
    let point = tensor.point(scheme);
    let why = match (&tensor.kept, limits) {
        (Some(kept), _) => kept.clone(),
        (None, Some(limits)) => limits.why(scheme),
        (None, None) => String::new(),
    };
    let stored_bytes = tensor.matrix().filter(|_| !scheme.is_kept()).map(|matrix| scheme.stored_bytes(matrix));
    PlannedTensor {
        name: tensor.name.clone(),
        role: tensor.role,
        layer: tensor.layer,
        scheme,
        bytes: stored_bytes.unwrap_or(tensor.bytes),
        loss: point.map_or(0.0, |point| point.loss),
        sqnr_db: point.map(|point| point.sqnr_db),
        why,
    }
}
