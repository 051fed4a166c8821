//! The experts that a token goes to, the weight of each, and the gradients at the router's logits.
//!
//! `s` is the softmax of all logits, or the sigmoid of each. The largest are chosen, within the best groups if experts
//! form groups; their shares are `scale · s`, or `scale · s / Σ s` over the chosen.

use crate::arch::conventions::Routing;
use crate::math::exp;

/// A group's score is the sum of this many of its largest scores (DeepSeek-V3).
const GROUP_SCORE_TOP_K: usize = 2;

/// The route of one token through a mixture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    /// `s` of every expert.
    scores: Vec<f64>,
    /// Indices of the chosen experts, ascending.
    pub(super) experts: Vec<usize>,
    /// Weight of the output of each.
    pub(super) shares: Vec<f32>,
}

impl Route {
    /// The route for the router's `logits`; `correction` is added to `s` when experts are chosen.
    pub(super) fn new(routing: &Routing, logits: &[f32], correction: &[f32]) -> Self {
        let most = logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
        let mut scores: Vec<f64> = if routing.sigmoid {
            logits.iter().map(|&logit| 1.0 / (1.0 + exp(-f64::from(logit)))).collect()
        } else {
            logits.iter().map(|&logit| exp(f64::from(logit) - f64::from(most))).collect()
        };
        if !routing.sigmoid {
            let sum: f64 = scores.iter().sum();
            for score in &mut scores {
                *score /= sum;
            }
        }
        let mut keys: Vec<f64> = scores.clone();
        for (key, &correction) in keys.iter_mut().zip(correction) {
            *key += f64::from(correction);
        }
        if let Some((groups, kept)) = routing.groups {
            leave_out_groups(&mut keys, groups, kept);
        }
        let mut experts = greatest(&keys, routing.chosen);
        experts.sort_unstable();
        let sum: f64 = if routing.normalised { experts.iter().map(|&expert| scores[expert]).sum() } else { 1.0 };
        let shares = experts.iter().map(|&expert| (routing.scale * scores[expert] / sum) as f32).collect();
        Self { scores, experts, shares }
    }

    /// Gradients at the router's logits from those at the shares.
    pub(super) fn back(&self, routing: &Routing, of_shares: &[f64], out: &mut [f32]) {
        let chosen = || self.experts.iter().map(|&expert| self.scores[expert]);
        let sum: f64 = if routing.normalised { chosen().sum() } else { 1.0 };
        let mean: f64 = if routing.normalised {
            of_shares.iter().zip(chosen()).map(|(of, score)| of * score / sum).sum()
        } else {
            0.0
        };
        let mut of_scores = vec![0.0; self.scores.len()];
        for (&expert, of) in self.experts.iter().zip(of_shares) {
            of_scores[expert] = routing.scale * (of - mean) / sum;
        }
        let along: f64 =
            if routing.sigmoid { 0.0 } else { of_scores.iter().zip(&self.scores).map(|(of, score)| of * score).sum() };
        for ((out, of), score) in out.iter_mut().zip(of_scores).zip(&self.scores) {
            *out = if routing.sigmoid { of * score * (1.0 - score) } else { score * (of - along) } as f32;
        }
    }
}

/// Indices of the `count` largest; of equal ones the first.
fn greatest(keys: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Sets the keys to 0 outside of the `kept` groups with the largest scores.
fn leave_out_groups(keys: &mut [f64], groups: usize, kept: usize) {
    let size = keys.len() / groups;
    let best = |group: &[f64]| greatest(group, GROUP_SCORE_TOP_K).into_iter().map(|at| group[at]).sum();
    let sums: Vec<f64> = keys.chunks(size).map(best).collect();
    let best = greatest(&sums, kept);
    for (group, keys) in keys.chunks_mut(size).enumerate() {
        if !best.contains(&group) {
            keys.fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Routing = Routing { chosen: 2, sigmoid: false, normalised: false, scale: 1.0, groups: None };
    const LOGITS: [f32; 6] = [0.3, -1.0, 2.0, 0.7, 1.9, -0.2];

    #[test]
    fn the_largest_are_chosen_under_groups_and_corrections() {
        assert_eq!(Route::new(&PLAIN, &LOGITS, &[]).experts, [2, 4]);
        let corrected = Route::new(&PLAIN, &LOGITS, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(corrected.experts, [0, 2]);
        // In threes: the second group's best two beat the first's.
        let grouped = Routing { groups: Some((2, 1)), sigmoid: true, ..PLAIN };
        assert_eq!(Route::new(&grouped, &LOGITS, &[]).experts, [3, 4]);
        let ties = Route::new(&PLAIN, &[1.0; 6], &[]);
        assert_eq!(ties.experts, [0, 1]);
    }

    #[test]
    fn shares_add_up_as_asked() {
        let normalised = Route::new(&Routing { normalised: true, scale: 2.5, ..PLAIN }, &LOGITS, &[]);
        assert!((normalised.shares.iter().sum::<f32>() - 2.5).abs() < 1e-6);
        let plain = Route::new(&PLAIN, &LOGITS, &[]);
        assert!(plain.shares.iter().sum::<f32>() < 1.0);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for routing in [
            PLAIN,
            Routing { normalised: true, ..PLAIN },
            Routing { sigmoid: true, scale: 1.7, ..PLAIN },
            Routing { sigmoid: true, normalised: true, ..PLAIN },
        ] {
            let of_shares = [0.8, -1.3];
            let value = |logits: &[f32]| -> f64 {
                let route = Route::new(&routing, logits, &[]);
                route.shares.iter().zip(of_shares).map(|(&share, of)| f64::from(share) * of).sum()
            };
            let mut found = [0.0; 6];
            Route::new(&routing, &LOGITS, &[]).back(&routing, &of_shares, &mut found);
            for (at, found) in found.iter().enumerate() {
                let moved = |by: f32| {
                    let mut logits = LOGITS;
                    logits[at] += by;
                    value(&logits)
                };
                let expected = (moved(0.01) - moved(-0.01)) / 0.02;
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{routing:?} {at}: {found} {expected}");
            }
        }
    }
}
