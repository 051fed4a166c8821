//! The loss of a matrix from a sample of its bands, and the standard error.
//!
//! Both steps of the estimate are ratios between sums over bands: the rule's loss per signal, and the search's loss per
//! loss of the rule. A ratio of sums over `n` of `N` bands, drawn without replacement, has the relative variance
//!
//! ```text
//! (1/n − 1/N) · v,     v = Σ_b (y_b − ρ x_b)² / (n − 1) / ȳ²,     ρ = Σ_b y_b / Σ_b x_b
//! ```
//!
//! and the relative variances of both steps add up.

use super::{Member, Noise};
use crate::band::bands;

/// Sums over bands of two quantities, `y` and the known `x`, which it is about proportional to.
#[derive(Clone, Copy, Debug, Default)]
struct Pairs {
    x: Noise,
    y: Noise,
    /// Sums of products of the weighted quantities.
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Pairs {
    fn add(&mut self, x: Noise, y: Noise) {
        self.x.add(x);
        self.y.add(y);
        self.xx += x.weighted * x.weighted;
        self.xy += x.weighted * y.weighted;
        self.yy += y.weighted * y.weighted;
    }

    /// The ratios of the sums.
    fn ratio(&self) -> Noise {
        Noise { weighted: per(self.y.weighted, self.x.weighted), plain: per(self.y.plain, self.x.plain) }
    }

    /// Relative variance of one of the `count` bands.
    fn variance(&self, count: u64) -> f64 {
        let (count, ratio) = (count as f64, self.ratio().weighted);
        let spread = (self.yy - 2.0 * ratio * self.xy + ratio * ratio * self.xx).max(0.0);
        let mean = self.y.weighted / count;
        per(spread / (count - 1.0), mean * mean)
    }
}

/// A quotient; 0 if the divisor is.
fn per(of: f64, by: f64) -> f64 {
    if by > 0.0 { of / by } else { 0.0 }
}

/// Sums over the encoded bands of one matrix.
#[derive(Clone, Debug)]
pub(super) struct MatrixSums {
    /// Number of bands that the rule encoded.
    pub(super) ruled: u64,
    /// Number of bands that the search encoded.
    pub(super) searched: u64,
    schemes: Vec<SchemeSums>,
}

/// Sums over bands in one scheme.
#[derive(Clone, Copy, Debug, Default)]
struct SchemeSums {
    /// The signal, and the noise by the rule.
    rule: Pairs,
    /// The noise by the rule, and by the search.
    search: Pairs,
}

/// A band as encoded. Noises are those of each scheme.
pub(super) struct EncodedBand {
    /// The signal and the energy, if the band counts as one of the rule's sample.
    pub(super) signal: Option<Noise>,
    /// The noises by the rule; empty if it did not encode the band.
    pub(super) rule: Vec<Noise>,
    /// The noises by the search; empty if it did not encode the band.
    pub(super) search: Vec<Noise>,
}

/// The errors of a matrix in one scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    pub(super) noise: Noise,
    /// Variance of the weighted noise.
    pub(super) variance: f64,
    /// What one band contributes to it; `None` if the sample says nothing about the matrix.
    pub(super) spread: Option<Spread>,
}

/// Variance of the weighted noise of a matrix for a sample of one band, of each step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    pub(super) rule: f64,
    pub(super) search: f64,
}

/// The part of a variance that is left with `count` of `all` bands.
pub(super) fn left(count: u64, all: u64) -> f64 {
    if count >= all { 0.0 } else { 1.0 / count as f64 - 1.0 / all as f64 }
}

impl MatrixSums {
    pub(super) fn new(schemes: usize) -> Self {
        Self { ruled: 0, searched: 0, schemes: vec![SchemeSums::default(); schemes] }
    }

    /// Adds a band.
    pub(super) fn add(&mut self, band: &EncodedBand) {
        self.ruled += u64::from(band.signal.is_some());
        self.searched += u64::from(!band.search.is_empty());
        for (at, sums) in self.schemes.iter_mut().enumerate() {
            let rule = band.rule.get(at).copied();
            if let Some((signal, noise)) = band.signal.zip(rule) {
                sums.rule.add(signal, noise);
            }
            if let Some(noise) = band.search.get(at) {
                sums.search.add(rule.unwrap_or_default(), *noise);
            }
        }
    }

    /// Whether all sums are finite in scheme `at`.
    pub(super) fn is_finite(&self, at: usize) -> bool {
        let SchemeSums { rule, search } = self.schemes[at];
        let sums = [rule.y, search.x, search.y];
        sums.iter().all(|noise| noise.weighted.is_finite() && noise.plain.is_finite())
    }

    /// Estimates the errors of `member` in scheme `at`.
    pub(super) fn estimate(&self, at: usize, member: &Member<'_>) -> Estimate {
        let (SchemeSums { rule, search }, all) = (self.schemes[at], bands(member.matrix));
        if self.searched == all {
            return Estimate { noise: search.y, variance: 0.0, spread: Some(Spread::default()) };
        }
        let (signal, energy) = (member.measured.signal, member.measured.energy);
        let by_rule = if self.ruled == all {
            rule.y
        } else {
            let ratio = rule.ratio();
            Noise { weighted: signal * ratio.weighted, plain: energy * ratio.plain }
        };
        let is_searched = self.searched > 0;
        let noise = if is_searched {
            let ratio = search.ratio();
            Noise { weighted: by_rule.weighted * ratio.weighted, plain: by_rule.plain * ratio.plain }
        } else {
            by_rule
        };
        // One band has no spread, and bands of zeros, or without an error, do not represent a matrix with others.
        let lacks = |sum: f64, of_matrix: f64| sum <= 0.0 && of_matrix > 0.0;
        let is_unknown = self.ruled < all
            && (self.ruled < 2 || lacks(rule.x.weighted, signal) || lacks(rule.x.plain, energy))
            || is_searched
                && (self.searched < 2
                    || lacks(search.x.weighted, by_rule.weighted)
                    || lacks(search.x.plain, by_rule.plain));
        if is_unknown {
            return Estimate { noise, variance: f64::INFINITY, spread: None };
        }
        let square = noise.weighted * noise.weighted;
        let spread = Spread {
            rule: if self.ruled < all { square * rule.variance(self.ruled) } else { 0.0 },
            search: if is_searched { square * search.variance(self.searched) } else { 0.0 },
        };
        let of_search = if is_searched { spread.search * left(self.searched, all) } else { 0.0 };
        Estimate { noise, variance: spread.rule * left(self.ruled, all) + of_search, spread: Some(spread) }
    }
}
