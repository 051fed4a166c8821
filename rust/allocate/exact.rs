//! The least loss within a capacity, if few choices remain open.
//!
//! At the multiplier `λ` of the dual bound, every point has a reduced cost: `loss + λ · bytes`, minus the minimum of
//! its group. It is the amount that the point adds to the bound. The reduced costs of an allocation, plus `λ` for every
//! unused byte, add up to its distance from the bound. A point whose reduced cost exceeds the distance of a known
//! allocation is therefore in no better one. The search builds all allocations of the remaining points, group by group.
//! It discards partial allocations that exceed the distance, and those that another one beats in both bytes and loss.

use super::FusionGroup;

/// Maximum number of partial allocations carried from one group to the next. If there are more, those closest to the
/// bound are kept, and the result may not be the minimum.
const MAX_PARTIAL: usize = 2_048;

pub(super) struct Exact {
    /// An allocation with less loss than the known one, if one was found.
    pub choice: Option<Vec<usize>>,
    /// Whether no allocation has less loss.
    pub is_least: bool,
}

/// A point that may be in a better allocation.
#[derive(Clone, Copy)]
struct OpenPoint {
    point: usize,
    bytes: u64,
    loss: f64,
    reduced: f64,
}

/// A partial allocation, of the first groups.
#[derive(Clone, Copy)]
struct Prefix {
    bytes: u64,
    loss: f64,
    reduced: f64,
    /// Index of its prefix in the previous stage.
    from: usize,
    /// Index of the chosen open point of the last group.
    by: usize,
}

/// Searches for an allocation of at most `capacity` bytes with less loss than `known`.
pub(super) fn search(groups: &[FusionGroup], capacity: u64, multiplier: f64, known: f64) -> Exact {
    let of = |group: &FusionGroup| {
        let cost = |at: usize| group.points[at].loss + multiplier * group.points[at].bytes as f64;
        (0..group.points.len()).map(cost).fold(f64::INFINITY, f64::min)
    };
    let least: Vec<f64> = groups.iter().map(of).collect();
    let bound = least.iter().sum::<f64>() - multiplier * capacity as f64;
    // Tolerates rounding: the sums are in another order.
    let distance = known - bound + 1e-9 * known.abs();
    let open: Vec<Vec<OpenPoint>> =
        groups.iter().zip(&least).map(|(group, least)| open(group, multiplier, *least, distance)).collect();
    // Groups with few open points come first: they constrain the others most.
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&group| open[group].len());

    let mut rest_least: u64 = open.iter().filter_map(|open| open.first()).map(|open| open.bytes).sum();
    let mut rest_most: u64 = open.iter().filter_map(|open| open.last()).map(|open| open.bytes).sum();
    let mut stages: Vec<Vec<Prefix>> = vec![vec![Prefix { bytes: 0, loss: 0.0, reduced: 0.0, from: 0, by: 0 }]];
    let mut is_least = true;
    for &group in &order {
        let open = &open[group];
        let (Some(first), Some(last)) = (open.first(), open.last()) else {
            return Exact { choice: None, is_least: true };
        };
        rest_least -= first.bytes;
        rest_most -= last.bytes;
        let may_be_better = |partial: &Prefix| {
            let left = capacity.saturating_sub(partial.bytes + rest_most);
            partial.bytes + rest_least <= capacity && partial.reduced + multiplier * left as f64 <= distance
        };
        let before = stages.last().map_or(&[][..], Vec::as_slice);
        let mut next = Vec::with_capacity(before.len() * open.len());
        for (from, partial) in before.iter().enumerate() {
            next.extend(open.iter().enumerate().map(|(by, open)| Prefix {
                bytes: partial.bytes + open.bytes,
                loss: partial.loss + open.loss,
                reduced: partial.reduced + open.reduced,
                from,
                by,
            }));
        }
        next.retain(may_be_better);
        retain_pareto_front(&mut next, |partial| (partial.bytes, partial.loss));
        if next.len() > MAX_PARTIAL {
            is_least = false;
            next.sort_by(|a, b| a.reduced.total_cmp(&b.reduced).then(a.bytes.cmp(&b.bytes)));
            next.truncate(MAX_PARTIAL);
            next.sort_by_key(|partial| partial.bytes);
        }
        stages.push(next);
    }
    let best = stages.last().and_then(|last| last.iter().enumerate().min_by(|a, b| a.1.loss.total_cmp(&b.1.loss)));
    let Some((mut at, _)) = best.filter(|(_, best)| best.loss < known) else {
        return Exact { choice: None, is_least };
    };
    let mut choice = vec![0; groups.len()];
    for (&group, stage) in order.iter().zip(&stages[1..]).rev() {
        choice[group] = open[group][stage[at].by].point;
        at = stage[at].from;
    }
    Exact { choice: Some(choice), is_least }
}

/// The points of a group that may be in a better allocation, by increasing bytes.
fn open(group: &FusionGroup, multiplier: f64, least: f64, distance: f64) -> Vec<OpenPoint> {
    let all = group.points.iter().enumerate().map(|(at, point)| OpenPoint {
        point: at,
        bytes: point.bytes,
        loss: point.loss,
        reduced: (point.loss + multiplier * point.bytes as f64 - least).max(0.0),
    });
    let mut open: Vec<OpenPoint> = all.filter(|open| open.reduced <= distance).collect();
    retain_pareto_front(&mut open, |open| (open.bytes, open.loss));
    open
}

/// Sorts by bytes and removes all elements that another beats; `of` returns bytes and loss.
fn retain_pareto_front<T>(all: &mut Vec<T>, of: impl Fn(&T) -> (u64, f64)) {
    all.sort_by(|a, b| {
        let (a, b) = (of(a), of(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut lowest = f64::INFINITY;
    all.retain(|one| {
        let (_, loss) = of(one);
        let is_lower = loss < lowest;
        lowest = lowest.min(loss);
        is_lower
    });
}
