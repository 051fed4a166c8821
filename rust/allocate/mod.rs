//! Budget to allocation: one scheme for each family, the least loss that fits.
//!
//! A multiple-choice knapsack. On each family's lower convex hull of (bytes, loss) the steps of all families are taken
//! by falling gain per byte: the optimum of the Lagrangian at every multiplier. Where the next step does not fit, its
//! fraction that would gives the dual bound: no allocation of these points within the capacity has less loss. What is
//! left is filled with the upgrades that fit; where that is not as good as the bound, all that could still be better is
//! searched (`exact`). Ties are broken by bytes, then by the order of the families, so the result is a function of its
//! input alone.

mod exact;

use crate::scheme::{Affine, Scheme};

/// One choice for a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The scheme.
    pub scheme: Scheme,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// What it costs.
    pub loss: f64,
}

/// The choices of one family; never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// By growing bytes.
    pub points: Vec<Point>,
}

/// One point for each family.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Index into each family's points.
    pub choice: Vec<usize>,
    /// Bytes of all.
    pub bytes: u64,
    /// Loss of all.
    pub loss: f64,
}

/// The outcome for one capacity.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The allocation.
    pub allocation: Allocation,
    /// No allocation within the capacity has less loss than this.
    pub bound: f64,
    /// The best that one scheme for all families would do within the capacity, where it exists, and its loss.
    pub uniform: Option<(Scheme, f64)>,
    /// Whether the allocation is that uniform one.
    pub is_uniform: bool,
}

/// A step along a family's hull.
#[derive(Clone, Copy, Debug)]
struct Step {
    family: usize,
    from: usize,
    to: usize,
    bytes: u64,
    gain: f64,
}

/// Nothing better is looked for where the loss is within this of the bound, relatively.
const CLOSE_ENOUGH: f64 = 1e-5;

/// Bytes of every family at its smallest.
#[must_use]
pub fn minimum(families: &[Family]) -> u64 {
    families.iter().map(|family| family.points.iter().map(|point| point.bytes).min().unwrap_or(0)).sum()
}

/// The allocation of at most `capacity` bytes with the least loss that was found; `None` if not even the smallest
/// points fit.
#[must_use]
pub fn allocate(families: &[Family], capacity: u64) -> Option<Outcome> {
    let hulls: Vec<Vec<usize>> = families.iter().map(hull).collect();
    let mut now = Search {
        families,
        choice: hulls.iter().map(|hull| hull[0]).collect(),
        left: capacity.checked_sub(minimum(families))?,
    };
    let mut dual = None;
    for step in steps(families, &hulls) {
        if step.bytes <= now.left && now.choice[step.family] == step.from {
            now.choice[step.family] = step.to;
            now.left -= step.bytes;
        } else if dual.is_none() {
            let taken = now.left as f64 / step.bytes as f64;
            dual = Some((now.loss() - step.gain * taken, rate(step)));
        }
    }
    let allocation = now.filled();
    let (bound, multiplier) = dual.unwrap_or((allocation.loss, 0.0));
    let bound = bound.clamp(0.0, allocation.loss);
    let mut outcome = Outcome { allocation, bound, uniform: None, is_uniform: false };
    for (scheme, uniform) in uniforms(families).into_iter().filter(|(_, uniform)| uniform.bytes <= capacity) {
        outcome.compare(scheme, uniform);
    }
    if outcome.is_uniform {
        // What it leaves may do for more.
        let Allocation { choice, bytes, .. } = outcome.allocation.clone();
        outcome.take(Search { families, choice, left: capacity - bytes }.filled());
    }
    if outcome.allocation.loss > bound * (1.0 + CLOSE_ENOUGH) {
        let exact::Found { choice, is_least } = exact::search(families, capacity, multiplier, outcome.allocation.loss);
        if let Some(choice) = choice {
            let left = capacity - total_bytes(families, &choice);
            outcome.take(Search { families, choice, left }.filled());
        }
        if is_least {
            outcome.bound = outcome.allocation.loss;
        }
    }
    Some(outcome)
}

impl Outcome {
    /// Takes note of a uniform allocation that fits, and takes it where it has less loss.
    pub fn compare(&mut self, scheme: Scheme, uniform: Allocation) {
        if self.uniform.is_none_or(|(_, least)| uniform.loss < least) {
            self.uniform = Some((scheme, uniform.loss));
        }
        if uniform.loss < self.allocation.loss {
            self.take(uniform);
            self.is_uniform = true;
        }
    }

    /// Takes an allocation of less loss.
    fn take(&mut self, better: Allocation) {
        if better.loss < self.allocation.loss {
            self.bound = self.bound.min(better.loss);
            self.allocation = better;
            self.is_uniform = false;
        }
    }
}

/// Sizes and losses from the smallest allocation to the largest, along the hulls, at most about `wanted` of them.
#[must_use]
pub fn trade_off(families: &[Family], wanted: usize) -> Vec<(u64, f64)> {
    let hulls: Vec<Vec<usize>> = families.iter().map(hull).collect();
    let mut choice: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut bytes = total_bytes(families, &choice);
    let steps = steps(families, &hulls);
    let largest = bytes + steps.iter().map(|step| step.bytes).sum::<u64>();
    let apart = ((largest - bytes) / wanted.max(1) as u64).max(1);
    let mut curve = vec![(bytes, total_loss(families, &choice))];
    let mut next = bytes + apart;
    for (at, step) in steps.iter().enumerate() {
        bytes += step.bytes;
        choice[step.family] = step.to;
        if bytes >= next || at + 1 == steps.len() {
            curve.push((bytes, total_loss(families, &choice)));
            next = bytes + apart;
        }
    }
    curve
}

fn total_bytes(families: &[Family], choice: &[usize]) -> u64 {
    families.iter().zip(choice).map(|(family, &at)| family.points[at].bytes).sum()
}

fn total_loss(families: &[Family], choice: &[usize]) -> f64 {
    families.iter().zip(choice).map(|(family, &at)| family.points[at].loss).sum()
}

/// Indices of the points on the lower convex hull, from the fewest bytes to the least loss.
fn hull(family: &Family) -> Vec<usize> {
    let points = &family.points;
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

/// The steps along all hulls, by falling gain per byte.
fn steps(families: &[Family], hulls: &[Vec<usize>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (family, hull) in hulls.iter().enumerate() {
        for pair in hull.windows(2) {
            let (a, b) = (families[family].points[pair[0]], families[family].points[pair[1]]);
            steps.push(Step { family, from: pair[0], to: pair[1], bytes: b.bytes - a.bytes, gain: a.loss - b.loss });
        }
    }
    // A stable sort: equal steps stay in the order of the families, and of a family's own steps.
    steps.sort_by(|a, b| rate(*b).total_cmp(&rate(*a)).then(a.bytes.cmp(&b.bytes)));
    steps
}

fn rate(step: Step) -> f64 {
    step.gain / step.bytes as f64
}

/// The choice that gives every family `scheme`; where a family has not got it, the smallest that it has of at least as
/// many bits, or its largest.
#[must_use]
pub fn uniform_choice(families: &[Family], scheme: Scheme) -> Vec<usize> {
    let bits = |scheme: Scheme| scheme.affine().map_or(u8::MAX, Affine::bits);
    let pick = |family: &Family| {
        let same = family.points.iter().position(|point| point.scheme == scheme);
        // Points grow by bytes: the first is the smallest.
        same.or_else(|| family.points.iter().position(|point| bits(point.scheme) >= bits(scheme)))
            .unwrap_or(family.points.len() - 1)
    };
    families.iter().map(pick).collect()
}

/// The allocation that each scheme for all families gives, of the schemes that a family has.
#[must_use]
pub fn uniforms(families: &[Family]) -> Vec<(Scheme, Allocation)> {
    let has = |scheme: &Scheme| families.iter().any(|family| family.points.iter().any(|point| point.scheme == *scheme));
    let uniform = |scheme| {
        let choice = uniform_choice(families, scheme);
        let (bytes, loss) = (total_bytes(families, &choice), total_loss(families, &choice));
        (scheme, Allocation { choice, bytes, loss })
    };
    Affine::all().map(Scheme::Affine).filter(has).map(uniform).collect()
}

/// An allocation that is being improved.
struct Search<'a> {
    families: &'a [Family],
    choice: Vec<usize>,
    /// Bytes to spare.
    left: u64,
}

impl Search<'_> {
    fn loss(&self) -> f64 {
        total_loss(self.families, &self.choice)
    }

    fn chosen(&self, family: usize) -> Point {
        self.families[family].points[self.choice[family]]
    }

    /// The upgrades that fit into what is left.
    fn fitting(&self) -> Vec<Step> {
        let mut fitting = Vec::new();
        for family in 0..self.families.len() {
            let now = self.chosen(family);
            for (to, &point) in self.families[family].points.iter().enumerate() {
                if point.loss < now.loss && point.bytes <= now.bytes.saturating_add(self.left) {
                    let (from, bytes) = (self.choice[family], point.bytes.abs_diff(now.bytes));
                    fitting.push(Step { family, from, to, bytes, gain: now.loss - point.loss });
                }
            }
        }
        fitting
    }

    /// The allocation, once what is left was filled.
    fn filled(mut self) -> Allocation {
        self.fill();
        Allocation { bytes: total_bytes(self.families, &self.choice), loss: self.loss(), choice: self.choice }
    }

    /// Takes the upgrades that fit, each time the one that gains most, until none does.
    fn fill(&mut self) {
        loop {
            let mut fitting = self.fitting();
            fitting.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.bytes.cmp(&b.bytes)));
            if fitting.is_empty() {
                return;
            }
            // The sizes of the others do not change by taking one: one pass serves many.
            for step in fitting {
                let (now, to) = (self.chosen(step.family), self.families[step.family].points[step.to]);
                if self.choice[step.family] == step.from && to.bytes <= now.bytes + self.left {
                    self.left = self.left + now.bytes - to.bytes;
                    self.choice[step.family] = step.to;
                }
            }
        }
    }
}
