//! Budget to allocation: chooses one scheme for each fusion group, so that the loss within the budget is minimal.
//!
//! This is a multiple-choice knapsack. The steps along each group's lower convex hull of (bytes, loss) are taken by
//! decreasing gain per byte, which is the optimum of the Lagrangian at every multiplier. The fraction of the first step
//! that does not fit gives the dual bound: no allocation of these points within the capacity has less loss. The
//! remaining bytes are filled with upgrades that fit. If the result is not close to the bound, all points that may
//! improve it are searched (`exact`). Ties are broken by bytes, then by the order of the groups, so the result is a
//! function of the input alone.

mod exact;

use crate::codec::Scheme;

/// A scheme of a group with its cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SchemeCost {
    pub scheme: Scheme,
    pub bytes: u64,
    pub loss: f64,
}

/// The choices of a fusion group, whose tensors share a scheme. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FusionGroup {
    /// By increasing bytes.
    pub points: Vec<SchemeCost>,
}

/// A choice of one point for each group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Allocation {
    /// Index into each group's points.
    pub choice: Vec<usize>,
    pub bytes: u64,
    pub loss: f64,
}

/// The solution for one capacity.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Solution {
    pub allocation: Allocation,
    /// Lower bound on the loss of every allocation within the capacity.
    pub bound: f64,
    /// The best uniform scheme within the capacity and its loss, if one fits.
    pub uniform: Option<(Scheme, f64)>,
    /// Whether the allocation is the uniform one.
    pub is_uniform: bool,
}

/// A step along a group's hull.
#[derive(Clone, Copy, Debug)]
struct HullStep {
    group: usize,
    from: usize,
    to: usize,
    bytes: u64,
    gain: f64,
}

/// Relative distance from the bound within which no better allocation is searched.
const RELATIVE_GAP: f64 = 1e-5;

/// Bytes of the smallest allocation.
#[must_use]
pub(crate) fn minimum(groups: &[FusionGroup]) -> u64 {
    groups.iter().map(|group| group.points.iter().map(|point| point.bytes).min().unwrap_or(0)).sum()
}

/// The allocation of at most `capacity` bytes with the least loss found; `None` if the smallest points do not fit. Also
/// tries each of `schemes`, sorted by increasing bytes, for all groups at once.
#[must_use]
pub(crate) fn allocate(groups: &[FusionGroup], schemes: &[Scheme], capacity: u64) -> Option<Solution> {
    let hulls: Vec<Vec<usize>> = groups.iter().map(hull).collect();
    let mut now = Search {
        groups,
        choice: hulls.iter().map(|hull| hull[0]).collect(),
        left: capacity.checked_sub(minimum(groups))?,
    };
    let mut dual = None;
    for step in steps(groups, &hulls) {
        if step.bytes <= now.left && now.choice[step.group] == step.from {
            now.choice[step.group] = step.to;
            now.left -= step.bytes;
        } else if dual.is_none() {
            let taken = now.left as f64 / step.bytes as f64;
            dual = Some((now.loss() - step.gain * taken, rate(step)));
        }
    }
    let allocation = now.filled();
    let (bound, multiplier) = dual.unwrap_or((allocation.loss, 0.0));
    let bound = bound.clamp(0.0, allocation.loss);
    let mut solution = Solution { allocation, bound, uniform: None, is_uniform: false };
    for (scheme, uniform) in uniforms(groups, schemes).into_iter().filter(|(_, uniform)| uniform.bytes <= capacity) {
        solution.compare(scheme, uniform);
    }
    if solution.is_uniform {
        // Bytes left by the uniform allocation may allow upgrades.
        let Allocation { choice, bytes, .. } = solution.allocation.clone();
        solution.take(Search { groups, choice, left: capacity - bytes }.filled());
    }
    if solution.allocation.loss > bound * (1.0 + RELATIVE_GAP) {
        let exact::Exact { choice, is_least } = exact::search(groups, capacity, multiplier, solution.allocation.loss);
        if let Some(choice) = choice {
            let left = capacity - total_bytes(groups, &choice);
            solution.take(Search { groups, choice, left }.filled());
        }
        if is_least {
            solution.bound = solution.allocation.loss;
        }
    }
    Some(solution)
}

impl Solution {
    /// Records a uniform allocation that fits, and adopts it if it has less loss.
    pub(crate) fn compare(&mut self, scheme: Scheme, uniform: Allocation) {
        if self.uniform.is_none_or(|(_, least)| uniform.loss < least) {
            self.uniform = Some((scheme, uniform.loss));
        }
        if uniform.loss < self.allocation.loss {
            self.take(uniform);
            self.is_uniform = true;
        }
    }

    /// Adopts an allocation if it has less loss.
    fn take(&mut self, better: Allocation) {
        if better.loss < self.allocation.loss {
            self.bound = self.bound.min(better.loss);
            self.allocation = better;
            self.is_uniform = false;
        }
    }
}

/// Sizes and losses along the hulls from the smallest allocation to the largest: about `wanted` at most.
#[must_use]
pub(crate) fn trade_off(groups: &[FusionGroup], wanted: usize) -> Vec<(u64, f64)> {
    let hulls: Vec<Vec<usize>> = groups.iter().map(hull).collect();
    let mut choice: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut bytes = total_bytes(groups, &choice);
    let steps = steps(groups, &hulls);
    let largest = bytes + steps.iter().map(|step| step.bytes).sum::<u64>();
    let apart = ((largest - bytes) / wanted.max(1) as u64).max(1);
    let mut curve = vec![(bytes, total_loss(groups, &choice))];
    let mut next = bytes + apart;
    for (at, step) in steps.iter().enumerate() {
        bytes += step.bytes;
        choice[step.group] = step.to;
        if bytes >= next || at + 1 == steps.len() {
            curve.push((bytes, total_loss(groups, &choice)));
            next = bytes + apart;
        }
    }
    curve
}

fn total_bytes(groups: &[FusionGroup], choice: &[usize]) -> u64 {
    groups.iter().zip(choice).map(|(group, &at)| group.points[at].bytes).sum()
}

fn total_loss(groups: &[FusionGroup], choice: &[usize]) -> f64 {
    groups.iter().zip(choice).map(|(group, &at)| group.points[at].loss).sum()
}

/// Indices of the points on the lower convex hull, from the fewest bytes to the least loss.
fn hull(group: &FusionGroup) -> Vec<usize> {
    let points = &group.points;
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].bytes.cmp(&points[b].bytes).then(points[a].loss.total_cmp(&points[b].loss)));
    let mut hull: Vec<usize> = Vec::with_capacity(order.len());
    for at in order {
        let point = points[at];
        if hull.last().is_some_and(|&last| points[last].bytes == point.bytes || point.loss >= points[last].loss) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let (a, b) = (points[a], points[b]);
            // b lies on or above the line from a to the new point.
            let rise = (a.loss - b.loss) * (point.bytes - b.bytes) as f64;
            if rise > (b.loss - point.loss) * (b.bytes - a.bytes) as f64 {
                break;
            }
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

/// The steps along all hulls, by decreasing gain per byte.
fn steps(groups: &[FusionGroup], hulls: &[Vec<usize>]) -> Vec<HullStep> {
    let mut steps = Vec::new();
    for (group, hull) in hulls.iter().enumerate() {
        for pair in hull.windows(2) {
            let (a, b) = (groups[group].points[pair[0]], groups[group].points[pair[1]]);
            steps.push(HullStep { group, from: pair[0], to: pair[1], bytes: b.bytes - a.bytes, gain: a.loss - b.loss });
        }
    }
    // The sort is stable: equal steps keep the order of the groups, and of the steps within a group.
    steps.sort_by(|a, b| rate(*b).total_cmp(&rate(*a)).then(a.bytes.cmp(&b.bytes)));
    steps
}

fn rate(step: HullStep) -> f64 {
    step.gain / step.bytes as f64
}

/// The choice of `scheme` for every group. A group without it gets its smallest scheme of the same codec and bits that takes
/// more bytes; without one, its smallest with at least as many bits, or its largest.
#[must_use]
pub(crate) fn uniform_choice(groups: &[FusionGroup], scheme: Scheme) -> Vec<usize> {
    // A kept tensor has more bits than any code.
    let enough = |point: &SchemeCost| match (point.scheme.code_bits(), scheme.code_bits()) {
        (Some(bits), Some(least)) => bits >= least,
        (bits, _) => bits.is_none(),
    };
    let pick = |group: &FusionGroup| {
        let same = group.points.iter().position(|point| point.scheme == scheme);
        // Points are sorted by increasing bytes, so the first is the smallest.
        let is_finer = |point: &SchemeCost| {
            let is_alike = point.scheme.same_codec(scheme) && point.scheme.code_bits() == scheme.code_bits();
            is_alike && point.scheme.nominal_bytes() > scheme.nominal_bytes()
        };
        let finer = || group.points.iter().position(is_finer);
        same.or_else(finer).or_else(|| group.points.iter().position(enough)).unwrap_or(group.points.len() - 1)
    };
    groups.iter().map(pick).collect()
}

/// The uniform allocation of each of `schemes` that at least one group has, in their order.
#[must_use]
pub(crate) fn uniforms(groups: &[FusionGroup], schemes: &[Scheme]) -> Vec<(Scheme, Allocation)> {
    let has = |scheme: &Scheme| groups.iter().any(|group| group.points.iter().any(|point| point.scheme == *scheme));
    let uniform = |scheme| {
        let choice = uniform_choice(groups, scheme);
        let (bytes, loss) = (total_bytes(groups, &choice), total_loss(groups, &choice));
        (scheme, Allocation { choice, bytes, loss })
    };
    schemes.iter().copied().filter(has).map(uniform).collect()
}

/// An allocation that is being improved.
struct Search<'a> {
    groups: &'a [FusionGroup],
    choice: Vec<usize>,
    /// Unused bytes of the capacity.
    left: u64,
}

impl Search<'_> {
    fn loss(&self) -> f64 {
        total_loss(self.groups, &self.choice)
    }

    fn chosen(&self, group: usize) -> SchemeCost {
        self.groups[group].points[self.choice[group]]
    }

    /// The upgrades that fit into the unused bytes.
    fn fitting(&self) -> Vec<HullStep> {
        let mut fitting = Vec::new();
        for group in 0..self.groups.len() {
            let now = self.chosen(group);
            for (to, &point) in self.groups[group].points.iter().enumerate() {
                if point.loss < now.loss && point.bytes <= now.bytes.saturating_add(self.left) {
                    let (from, bytes) = (self.choice[group], point.bytes.abs_diff(now.bytes));
                    fitting.push(HullStep { group, from, to, bytes, gain: now.loss - point.loss });
                }
            }
        }
        fitting
    }

    /// Fills the unused bytes and returns the allocation.
    fn filled(mut self) -> Allocation {
        self.fill();
        Allocation { bytes: total_bytes(self.groups, &self.choice), loss: self.loss(), choice: self.choice }
    }

    /// Takes upgrades that fit, by decreasing gain, until none fits.
    fn fill(&mut self) {
        loop {
            let mut fitting = self.fitting();
            fitting.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.bytes.cmp(&b.bytes)));
            if fitting.is_empty() {
                return;
            }
            // An upgrade does not change the sizes of other groups' upgrades, so one sorted list serves several.
            for step in fitting {
                let (now, to) = (self.chosen(step.group), self.groups[step.group].points[step.to]);
                if self.choice[step.group] == step.from && to.bytes <= now.bytes + self.left {
                    self.left = self.left + now.bytes - to.bytes;
                    self.choice[step.group] = step.to;
                }
            }
        }
    }
}
