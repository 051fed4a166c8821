//! Compares allocations of few groups with all possible allocations.

use crate::allocate::{FusionGroup, SchemeCost, Solution, allocate, minimum, trade_off, uniform_choice, uniforms};
use crate::band::Matrix;
use crate::codec::affine::{Affine, AffineCodec};
use crate::codec::{Codec, Scheme};
use crate::dtype::Float;
use proptest::prelude::*;

use super::support::{self, Numbers};

fn schemes() -> &'static [Scheme] {
    AffineCodec.schemes()
}

/// The least loss within `capacity`, by trying all allocations.
fn optimum(groups: &[FusionGroup], capacity: u64) -> Option<f64> {
    match groups {
        [] => Some(0.0),
        [first, rest @ ..] => first
            .points
            .iter()
            .filter_map(|point| Some(point.loss + optimum(rest, capacity.checked_sub(point.bytes)?)?))
            .min_by(f64::total_cmp),
    }
}

fn bytes(groups: &[FusionGroup], choice: &[usize]) -> u64 {
    groups.iter().zip(choice).map(|(group, &at)| group.points[at].bytes).sum()
}

fn loss(groups: &[FusionGroup], choice: &[usize]) -> f64 {
    groups.iter().zip(choice).map(|(group, &at)| group.points[at].loss).sum()
}

/// Whether an upgrade of one group fits into the unused bytes.
fn has_room(groups: &[FusionGroup], capacity: u64, Solution { allocation, .. }: &Solution) -> bool {
    let left = capacity - allocation.bytes;
    groups.iter().zip(&allocation.choice).any(|(group, &at)| {
        let now = group.points[at];
        group.points.iter().any(|point| point.loss < now.loss && point.bytes <= now.bytes + left)
    })
}

/// Groups with the curves of real matrices: 18 schemes and sometimes "kept"; the loss falls by about a factor of four
/// per bit.
fn matrices(seed: u64, count: usize) -> Vec<FusionGroup> {
    let mut numbers = Numbers(seed);
    let group = |_| {
        let weights = 64 * 128 * (1 + numbers.below(200));
        let weight = weights as f64 * crate::math::exp(2.0 * numbers.normal());
        let mut points: Vec<_> = schemes()
            .iter()
            .map(|&scheme| {
                let affine = Affine::of(scheme).unwrap();
                let steps = 1 << (2 * affine.bits());
                let grouped = (affine.group_size() as f64).sqrt() * (0.9 + 0.2 * numbers.unit());
                let bytes = scheme.stored_bytes(Matrix { rows: weights / 128, cols: 128, float: Float::BF16 });
                SchemeCost { scheme, bytes, loss: weight * grouped / f64::from(steps) }
            })
            .collect();
        if numbers.below(2) == 0 {
            points.push(SchemeCost { scheme: Scheme::KEPT, bytes: 2 * weights, loss: 0.0 });
        }
        FusionGroup { points }
    };
    (0..count).map(group).collect()
}

/// A few groups of a few points, by increasing bytes. Losses need not decrease, and often lie on a line.
fn few() -> impl Strategy<Value = Vec<FusionGroup>> {
    let schemes: Vec<_> = schemes().iter().copied().chain([Scheme::KEPT]).collect();
    let group = (prop::sample::subsequence(schemes, 1..6), any::<u64>(), any::<bool>());
    let group = group.prop_map(|(schemes, seed, on_a_line)| {
        let (mut numbers, mut bytes) = (Numbers(seed), 1 + seed % 7);
        let points = schemes.into_iter().map(|scheme| {
            bytes += 1 + numbers.below(if on_a_line { 4 } else { 12 });
            let loss = if on_a_line { 10.0 - 0.1 * bytes as f64 } else { 10.0 * numbers.unit() };
            SchemeCost { scheme, bytes, loss }
        });
        FusionGroup { points: points.collect() }
    });
    prop::collection::vec(group, 1..6)
}

proptest! {
    #![proptest_config(support::config(3_000))]

    #[test]
    fn bound_optimum_allocation_and_uniform_are_ordered_and_the_capacity_is_filled(
        groups in few(), percent in 0..120_u64,
    ) {
        let least = minimum(&groups);
        let most: u64 = groups.iter().map(|group| group.points.iter().map(|p| p.bytes).max().unwrap()).sum();
        let capacity = least + percent * (most - least) / 100;
        let solution = allocate(&groups, schemes(), capacity).unwrap();
        let allocation = &solution.allocation;
        prop_assert_eq!(allocation.bytes, bytes(&groups, &allocation.choice));
        prop_assert_eq!(allocation.loss, loss(&groups, &allocation.choice));
        prop_assert!(allocation.bytes <= capacity);
        let optimum = optimum(&groups, capacity).unwrap();
        let rounding = 1e-12 * (1.0 + optimum);
        prop_assert!(solution.bound <= optimum + rounding, "bound {} of {optimum}", solution.bound);
        prop_assert!((allocation.loss - optimum).abs() <= rounding.max(1e-5 * optimum), "{} of {optimum}", allocation.loss);
        let fitting = uniforms(&groups, schemes()).into_iter().filter(|(_, uniform)| uniform.bytes <= capacity);
        let uniform = fitting.map(|(_, uniform)| uniform.loss).min_by(f64::total_cmp);
        prop_assert_eq!(solution.uniform.map(|(_, loss)| loss), uniform);
        prop_assert!(uniform.is_none_or(|uniform| allocation.loss <= uniform));
        prop_assert!(!has_room(&groups, capacity, &solution), "{:?}", solution);
        prop_assert_eq!(allocate(&groups, schemes(), capacity).unwrap(), solution);
    }

    #[test]
    fn the_bound_is_at_least_that_of_the_linear_programme(groups in few(), percent in 0..100_u64) {
        let least = minimum(&groups);
        let most: u64 = groups.iter().map(|group| group.points.iter().map(|p| p.bytes).max().unwrap()).sum();
        let capacity = least + percent * (most - least) / 100;
        // The maximum over λ of  Σ min (loss + λ bytes) − λ capacity, at all λ where the optimum of a group can change.
        let slopes = groups.iter().flat_map(|group| {
            group.points.iter().flat_map(|a| group.points.iter().map(move |b| (a, b)))
                .filter(|(a, b)| a.bytes < b.bytes && a.loss > b.loss)
                .map(|(a, b)| (a.loss - b.loss) / (b.bytes - a.bytes) as f64)
        });
        let dual = |slope: f64| {
            let of = |group: &FusionGroup| {
                group.points.iter().map(|p| p.loss + slope * p.bytes as f64).min_by(f64::total_cmp).unwrap()
            };
            groups.iter().map(of).sum::<f64>() - slope * capacity as f64
        };
        let expected = slopes.chain([0.0]).map(dual).max_by(f64::total_cmp).unwrap();
        let found = allocate(&groups, schemes(), capacity).unwrap().bound;
        prop_assert!(found > expected - 1e-9, "{found}, and the dual's best is {expected}");
    }
}

#[test]
fn nothing_fits_below_the_smallest_points() {
    let groups = matrices(1, 5);
    let least = minimum(&groups);
    assert_eq!(allocate(&groups, schemes(), least - 1), None);
    let solution = allocate(&groups, schemes(), least).unwrap();
    assert_eq!((solution.allocation.bytes, solution.allocation.choice), (least, vec![0; 5]));
    assert_eq!(allocate(&[], schemes(), 0).unwrap().allocation.loss, 0.0);
}

#[test]
fn an_unlimited_capacity_gives_every_group_its_least_loss() {
    let groups = matrices(2, 30);
    let solution = allocate(&groups, schemes(), u64::MAX).unwrap();
    let least: f64 = groups.iter().map(|f| f.points.iter().map(|p| p.loss).min_by(f64::total_cmp).unwrap()).sum();
    assert_eq!((solution.allocation.loss, solution.bound), (least, least));
}

#[test]
fn allocations_are_close_to_the_optimum_of_few_groups_and_to_the_bound_of_many() {
    for seed in 0..60 {
        let groups = matrices(seed, 4);
        let (least, most) = (minimum(&groups), groups.iter().map(|f| f.points.last().unwrap().bytes).sum::<u64>());
        for share in [2, 3, 5, 8] {
            let capacity = least + (most - least) / share;
            let solution = allocate(&groups, schemes(), capacity).unwrap();
            let optimum = optimum(&groups, capacity).unwrap();
            assert!(solution.allocation.loss <= optimum * (1.0 + 1e-5), "{solution:?}, and there is {optimum}");
            assert!(solution.bound <= optimum * (1.0 + 1e-12), "{solution:?}, and there is {optimum}");
        }
    }
    // As many groups as a small model has: the search finds the minimum and proves it.
    for seed in 0..20 {
        let groups = matrices(seed, 36);
        let solution = allocate(&groups, schemes(), minimum(&groups) * 3 / 2).unwrap();
        assert!(solution.allocation.loss <= solution.bound * (1.0 + 1e-5), "{solution:?}");
    }
    for seed in 0..20 {
        let groups = matrices(seed, 250);
        let capacity = minimum(&groups) * 2;
        let solution = allocate(&groups, schemes(), capacity).unwrap();
        let gap = solution.allocation.loss / solution.bound - 1.0;
        assert!(gap < 1e-4, "{gap}");
        assert!(capacity - solution.allocation.bytes < capacity / 1_000 && !solution.is_uniform);
    }
}

#[test]
fn more_bytes_do_not_increase_the_loss_of_many_matrices() {
    let groups = matrices(7, 100);
    let least = minimum(&groups);
    let losses: Vec<f64> =
        (0..40).map(|at| allocate(&groups, schemes(), least + least * at / 20).unwrap().allocation.loss).collect();
    // Allocations are not optimal, so a small slack is allowed.
    assert!(losses.windows(2).all(|pair| pair[1] <= pair[0] * 1.000_1), "{losses:?}");
}

#[test]
fn twenty_thousand_matrices_are_allocated() {
    let groups = matrices(3, 20_000);
    let capacity = minimum(&groups) * 2;
    let solution = allocate(&groups, schemes(), capacity).unwrap();
    assert!(solution.allocation.bytes <= capacity && !has_room(&groups, capacity, &solution));
    assert!(solution.allocation.loss <= solution.bound * 1.000_1);
}

#[test]
fn the_order_of_the_groups_does_not_change_the_loss() {
    let groups = matrices(11, 60);
    let reversed: Vec<_> = groups.iter().rev().cloned().collect();
    let capacity = minimum(&groups) * 3 / 2;
    let (one, other) =
        (allocate(&groups, schemes(), capacity).unwrap(), allocate(&reversed, schemes(), capacity).unwrap());
    assert!((one.allocation.loss / other.allocation.loss - 1.0).abs() < 1e-9);
    assert!((one.bound / other.bound - 1.0).abs() < 1e-12);
}

#[test]
fn the_trade_off_falls_from_the_smallest_allocation_to_the_least_loss() {
    let groups = matrices(5, 40);
    let curve = trade_off(&groups, 50);
    let largest = allocate(&groups, schemes(), u64::MAX).unwrap().allocation;
    assert_eq!(curve[0].0, minimum(&groups));
    assert_eq!(curve.last().unwrap().0, largest.bytes);
    assert!((curve.last().unwrap().1 - largest.loss).abs() < 1e-9 * curve[0].1);
    assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1) && curve.len() <= 52);
    for (bytes, loss) in curve {
        let bound = allocate(&groups, schemes(), bytes).unwrap().bound;
        assert!((loss - bound).abs() <= 1e-9 * loss.max(1.0), "on the hull, loss {loss} and bound {bound} are one");
    }
}

#[test]
fn a_group_without_a_scheme_gets_its_smallest_of_as_many_bits() {
    let group = |schemes: &[&str]| FusionGroup {
        points: schemes
            .iter()
            .enumerate()
            .map(|(at, scheme)| SchemeCost { scheme: scheme.parse().unwrap(), bytes: at as u64, loss: -(at as f64) })
            .collect(),
    };
    let groups = [
        group(&["3g64", "4g64", "5g64"]),
        // Rows of 160 weights: no larger group size divides them.
        group(&["3g32", "4g32", "5g32"]),
        group(&["5g128", "5g64", "kept"]),
        group(&["2g64", "3g64"]),
        group(&["3g64", "kept"]),
    ];
    assert_eq!(uniform_choice(&groups, "4g64".parse().unwrap()), [1, 1, 0, 1, 1]);
    assert_eq!(uniform_choice(&groups, "4g128".parse().unwrap()), [1, 1, 0, 1, 1]);
    assert_eq!(uniform_choice(&groups, "4g32".parse().unwrap()), [1, 1, 0, 1, 1]);
    // Of the same bits, finer groups rather than smaller ones, and rather than another codec.
    let groups = [group(&["int4channel", "mxfp4", "int4g64", "int4g32"]), group(&["int4channel", "mxfp4", "int5g64"])];
    assert_eq!(uniform_choice(&groups, "int4g128".parse().unwrap()), [2, 0]);
}

#[test]
fn a_better_uniform_plan_is_improved_with_its_unused_bytes() {
    // In one of these cases the greedy allocation is no better than a uniform plan that leaves a hundredth of the
    // capacity.
    for seed in 0..400 {
        for count in [2, 4] {
            let groups = matrices(seed, count);
            let least = minimum(&groups);
            let most: u64 = groups.iter().map(|group| group.points.last().unwrap().bytes).sum();
            for share in [2, 3, 5, 8] {
                let capacity = least + (most - least) / share;
                let solution = allocate(&groups, schemes(), capacity).unwrap();
                assert!(!has_room(&groups, capacity, &solution), "{solution:?}");
            }
        }
    }
}
