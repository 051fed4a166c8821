//! Which bands of a matrix are encoded, and how many.

use super::StackJob;
use super::estimate::{MatrixSums, Spread, left};
use crate::band::bands;

/// Relative standard error above which more bands are encoded, as many as should reach it.
const TARGET_ERROR: f64 = 0.01;

/// Number of bands that the search encodes in the first round, over all matrices of a stack.
const PILOT_BANDS: u64 = 8;

/// Number of bands of a matrix up to which the search encodes all of them.
const FEW_BANDS: u64 = 32;

/// Time that the rule takes for a band, relative to the search: between 0.025 and 0.13. Sample sizes depend on its root.
const RULE_COST: f64 = 0.05;

/// Numbers of bands of a matrix to encode. The bands are the first ones of [`spread`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// By the rule.
    pub(super) ruled: u64,
    /// By the search, if there is one, without heavy bands; `u64::MAX` for all bands of the matrix.
    pub(super) searched: u64,
}

/// Bands to encode of each matrix in a stack of `count`, if `wanted` bands are to be encoded in all, and at least `least`
/// of each.
fn per_matrix(wanted: u64, count: usize, least: u64) -> u64 {
    wanted.div_ceil(count.max(1) as u64).max(least.min(wanted))
}

/// Number of bands, of a matrix of `all` in a stack of `count`, that are encoded in the first round for `wanted` bands in
/// all (0 for all bands).
pub(super) fn first_bands(all: u64, wanted: u64, count: usize) -> u64 {
    /// With fewer bands the spread between them is poorly known.
    const LEAST: u64 = 4;
    if wanted == 0 { all } else { per_matrix(wanted, count, LEAST).min(all) }
}

impl Sample {
    /// The sample of the first round, of a matrix of `all` bands, for `wanted` bands of a stack of `count`.
    pub(super) fn first(all: u64, (wanted, count): (u64, usize), has_search: bool) -> Self {
        let first = first_bands(all, wanted, count);
        if !has_search {
            return Self { ruled: first, searched: 0 };
        }
        if wanted == 0 || (first == all && all <= FEW_BANDS) {
            return Self { ruled: 0, searched: u64::MAX };
        }
        Self { ruled: first, searched: per_matrix(PILOT_BANDS, count, 2).min(first) }
    }

    /// Whether the search encodes all of `all` bands.
    pub(super) fn is_whole(self, all: u64) -> bool {
        self.searched >= all
    }

    /// Raises both numbers to at least those of `other`.
    fn raise(&mut self, other: Self) {
        self.ruled = self.ruled.max(other.ruled);
        self.searched = self.searched.max(other.searched);
    }
}

/// The first `wanted` of `all` bands in an order in which any number of first bands is spread about evenly.
///
/// Steps of the golden section (`2⁶⁴ / φ`) leave gaps that differ by less than a factor of three, and fall into step with
/// no period of the rows. Bands that were met before are skipped.
pub(super) fn spread(all: u64, wanted: u64) -> Vec<u64> {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let wanted = wanted.min(all);
    let mut is_taken = vec![false; usize::try_from(all).unwrap_or(0)];
    let mut order = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
    let mut at = 0_u64;
    while (order.len() as u64) < wanted {
        at = at.wrapping_add(STEP);
        let band = ((u128::from(at) * u128::from(all)) >> 64) as u64;
        if !std::mem::replace(&mut is_taken[band as usize], true) {
            order.push(band);
        }
    }
    order
}

/// The samples of the matrices of `stack` that should bring the error of all points below the target at the least cost,
/// after those of `sums`. If `is_last`, only those that replace samples without any information.
pub(super) fn more(stack: &StackJob<'_>, sums: &[MatrixSums], is_last: bool) -> Vec<Sample> {
    let all: Vec<u64> = stack.matrices.iter().map(|member| bands(member.matrix)).collect();
    let mut samples: Vec<Sample> =
        sums.iter().map(|sums| Sample { ruled: sums.ruled, searched: sums.searched }).collect();
    for at in 0..stack.schemes.len() {
        let (mut noise, mut variance) = (0.0, 0.0);
        let mut spreads = Vec::with_capacity(sums.len());
        for (((member, sums), sample), &all) in stack.matrices.iter().zip(sums).zip(&mut samples).zip(&all) {
            let estimate = sums.estimate(at, member.whole());
            noise += estimate.noise.weighted;
            if estimate.spread.is_some() {
                variance += estimate.variance;
            } else if !sums.has_search {
                sample.ruled = all;
            } else if sums.ruled >= 2 && sums.searched < 2 && !is_last {
                // The bands of the pilot are heavy.
                sample.raise(Sample { ruled: 0, searched: 2 * sums.heavy.len() as u64 });
            } else {
                sample.searched = u64::MAX;
            }
            spreads.push(estimate.spread.unwrap_or_default());
        }
        let target = (TARGET_ERROR * noise) * (TARGET_ERROR * noise);
        if variance > target && !is_last {
            let wanted = cheapest(&spreads, &all, &samples, target);
            samples.iter_mut().zip(wanted).for_each(|(sample, wanted)| sample.raise(wanted));
        }
    }
    for ((sample, &all), sums) in samples.iter_mut().zip(&all).zip(sums) {
        let heavy = sums.heavy.len() as u64;
        if sample.searched.saturating_add(heavy) >= all {
            // Where the search encodes all bands, the rule is not needed.
            *sample = Sample { ruled: sums.ruled, searched: u64::MAX };
        } else {
            sample.ruled = sample.ruled.max(sample.searched + heavy);
        }
    }
    samples
}

/// The numbers of bands with the least cost among those whose variances sum up to `target`, of matrices with these spreads
/// and numbers of bands, of which at least `encoded` bands are encoded.
///
/// By Lagrange, the numbers are `λ √(spread / cost)`. The numbers of the rule come first; those of the search use what
/// variance they leave.
fn cheapest(spreads: &[Spread], all: &[u64], encoded: &[Sample], target: f64) -> Vec<Sample> {
    let sum = |of: &dyn Fn(usize) -> f64| (0..spreads.len()).map(of).sum::<f64>();
    let deviations = sum(&|at| (RULE_COST * spreads[at].rule).sqrt() + spreads[at].search.sqrt());
    let whole = sum(&|at| (spreads[at].rule + spreads[at].search) / all[at] as f64);
    let scale = deviations / (target + whole);
    let ruled: Vec<u64> = (0..spreads.len())
        .map(|at| count(scale * (spreads[at].rule / RULE_COST).sqrt()).max(encoded[at].ruled).min(all[at]))
        .collect();
    let by_rule = sum(&|at| spreads[at].rule * left(ruled[at], all[at]));
    let rest = target - by_rule + sum(&|at| spreads[at].search / all[at] as f64);
    let scale = sum(&|at| spreads[at].search.sqrt()) / rest;
    let searched = |at: usize| count(scale * spreads[at].search.sqrt()).min(all[at]);
    (0..spreads.len()).map(|at| Sample { ruled: ruled[at], searched: searched(at) }).collect()
}

/// The number of bands for a wanted number, rounded up.
fn count(wanted: f64) -> u64 {
    #[expect(clippy::cast_sign_loss, reason = "a count; what is no number becomes 0")]
    let count = wanted.ceil() as u64;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_sample_contains_the_smaller_one_and_never_repeats() {
        for all in [1, 2, 3, 5, 128, 129, 1_000, 6_144] {
            let whole = spread(all, all);
            let mut sorted = whole.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..all));
            for wanted in [1, 3, 64, 700] {
                assert_eq!(spread(all, wanted), whole[..wanted.min(all) as usize]);
            }
        }
    }

    #[test]
    fn a_sample_is_spread_about_evenly() {
        for wanted in [4, 8, 11, 64, 100] {
            let mut sampled = spread(100_000, wanted);
            sampled.extend([0, 100_000]);
            sampled.sort_unstable();
            let gaps = sampled.windows(2).map(|pair| (pair[1] - pair[0]) as f64 * wanted as f64 / 1e5);
            assert!(gaps.clone().fold(0.0, f64::max) < 2.0, "{wanted}: {:?}", gaps.collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_cheapest_samples_reach_the_target() {
        let all = [4_000, 4_000, 40];
        let encoded = [Sample { ruled: 16, searched: 3 }; 3];
        for spreads in [
            [Spread { rule: 4.0, search: 1.0 }, Spread { rule: 0.0, search: 9.0 }, Spread { rule: 1.0, search: 0.0 }],
            [Spread { rule: 25.0, search: 0.1 }, Spread { rule: 1.0, search: 0.1 }, Spread { rule: 0.0, search: 0.0 }],
        ] {
            let samples = cheapest(&spreads, &all, &encoded, 0.05);
            let variance = |samples: &[Sample]| -> f64 {
                let of = |at: usize| {
                    let Sample { ruled, searched } = samples[at];
                    let part = |spread: f64, count| if spread > 0.0 { spread * left(count, all[at]) } else { 0.0 };
                    part(spreads[at].rule, ruled) + part(spreads[at].search, searched)
                };
                (0..all.len()).map(of).sum()
            };
            assert!(variance(&samples) <= 0.05, "{samples:?}");
            let half = samples.iter().map(|of| Sample { ruled: of.ruled / 2, searched: of.searched / 2 });
            assert!(variance(&half.collect::<Vec<_>>()) > 0.05, "{samples:?}");
            assert!(samples.iter().zip(all).all(|(of, all)| 16 <= of.ruled && of.ruled.max(of.searched) <= all));
        }
    }

    #[test]
    fn few_bands_are_all_searched_and_few_of_many() {
        assert_eq!(Sample::first(32, (64, 1), true), Sample { ruled: 0, searched: u64::MAX });
        assert_eq!(Sample::first(33, (64, 1), true), Sample { ruled: 33, searched: 8 });
        assert_eq!(Sample::first(1_000, (64, 1), false), Sample { ruled: 64, searched: 0 });
        assert_eq!(Sample::first(1_000, (64, 128), true), Sample { ruled: 4, searched: 2 });
        assert_eq!(Sample::first(1_000, (1, 1), true), Sample { ruled: 1, searched: 1 });
    }
}
