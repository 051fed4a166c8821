//! The loss of a matrix from a sample of its bands, and the standard error.
//!
//! The rule encodes `m` of the `N` bands of a matrix. Bands whose error is far above the average carry much of the loss, and
//! the search encodes all of these *heavy* bands. Of the other `r` bands it encodes `n`. With the signal `S_b` of a band,
//! its noise `P_b` by the rule and `Q_b` by the search:
//!
//! ```text
//! L ≈ S · Σ_m Q̂_b / Σ_m S_b,     Q̂_b = Q_b for heavy bands, ρ P_b for others,     ρ = Σ_n Q_b / Σ_n P_b
//! ```
//!
//! This is double sampling with ratio estimators. The relative variances of both samples add up, where the part of the
//! ordinary bands in the sum is `a = ρ Σ_r P_b / Σ_m Q̂_b`:
//!
//! ```text
//! (1/m − 1/N) · v₁,           v₁ = Σ_m (Q̂_b − R S_b)² / (m − 1) / mean(Q̂)²,     R = Σ_m Q̂_b / Σ_m S_b
//! (1/n − m/rN) · a² v₂,       v₂ = Σ_n (Q_b − ρ P_b)² / (n − 1) / mean(Q)²
//! ```

use std::collections::BTreeSet;

use super::Noise;

/// Noise of a heavy band by the rule, relative to the mean, in at least one scheme.
const HEAVY: f64 = 2.0;

/// Sums over bands of a known quantity `x`, and of `y`.
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

    /// The sum of squares of `scale · y − ratio · x`.
    fn squares(&self, scale: f64, ratio: f64) -> f64 {
        (scale * scale * self.yy - 2.0 * scale * ratio * self.xy + ratio * ratio * self.xx).max(0.0)
    }
}

/// A quotient; 0 if the divisor is.
fn per(of: f64, by: f64) -> f64 {
    if by > 0.0 { of / by } else { 0.0 }
}

/// Sums over the encoded bands of one matrix.
#[derive(Clone, Debug)]
pub(super) struct MatrixSums {
    /// Whether there is a search; otherwise the rule is what is written.
    pub(super) has_search: bool,
    /// Number of bands in the rule's sample.
    pub(super) ruled: u64,
    /// Number of bands that the search encoded, without heavy ones.
    pub(super) searched: u64,
    /// The heavy bands of the rule's sample.
    pub(super) heavy: BTreeSet<u64>,
    /// The heavy bands that the search has not encoded yet.
    pub(super) pending: BTreeSet<u64>,
    schemes: Vec<SchemeSums>,
}

/// Sums over bands in one scheme.
#[derive(Clone, Copy, Debug, Default)]
struct SchemeSums {
    /// Signal, and noise by the rule, of the bands of the rule's sample that are not heavy.
    ordinary: Pairs,
    /// Signal, and noise by the search, of heavy bands.
    heavy: Pairs,
    /// Signal, and noise by the rule, of pending bands.
    pending: Pairs,
    /// Noise by the rule and by the search, of bands that are not heavy.
    search: Pairs,
    /// Weighted noise by the rule of all bands of its sample.
    rule: f64,
}

/// A band as encoded. Noises are those of each scheme.
pub(super) struct EncodedBand {
    pub(super) band: u64,
    /// Whether the band joins the rule's sample.
    pub(super) is_counted: bool,
    /// The signal and the energy, if they are needed.
    pub(super) signal: Noise,
    /// The noises by the rule; empty if it did not encode the band.
    pub(super) rule: Vec<Noise>,
    /// The noises by the search; empty if it did not encode the band.
    pub(super) search: Vec<Noise>,
}

/// The errors of a matrix in one scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoiseEstimate {
    pub(super) noise: Noise,
    /// Variance of the weighted noise.
    pub(super) variance: f64,
    /// What one band contributes to it; `None` if the sample says too little.
    pub(super) spread: Option<Spread>,
}

/// Variance of the weighted noise of a matrix for samples of one band, of the rule's sample and the search's.
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
    pub(super) fn new(schemes: usize, has_search: bool) -> Self {
        Self {
            has_search,
            ruled: 0,
            searched: 0,
            heavy: BTreeSet::new(),
            pending: BTreeSet::new(),
            schemes: vec![SchemeSums::default(); schemes],
        }
    }

    /// Adds the bands of a round, all pending bands among them.
    pub(super) fn add(&mut self, bands: &[EncodedBand]) {
        let resolved = std::mem::take(&mut self.pending);
        let counted = || bands.iter().filter(|band| band.is_counted);
        self.ruled += counted().count() as u64;
        for (at, sums) in self.schemes.iter_mut().enumerate() {
            sums.pending = Pairs::default();
            sums.rule += counted().map(|band| band.rule[at].weighted).sum::<f64>();
        }
        let means: Vec<f64> = self.schemes.iter().map(|sums| sums.rule / self.ruled as f64).collect();
        for band in bands {
            let is_large = || band.rule.iter().zip(&means).any(|(noise, mean)| noise.weighted > HEAVY * mean);
            let is_heavy = resolved.contains(&band.band) || self.has_search && band.is_counted && is_large();
            let is_searched = !band.search.is_empty();
            if is_heavy {
                self.heavy.insert(band.band);
                if !is_searched {
                    self.pending.insert(band.band);
                }
            } else {
                self.searched += u64::from(is_searched);
            }
            for (at, sums) in self.schemes.iter_mut().enumerate() {
                let (rule, search) = (band.rule.get(at).copied().unwrap_or_default(), band.search.get(at));
                match search {
                    Some(search) if is_heavy => sums.heavy.add(band.signal, *search),
                    None if is_heavy => sums.pending.add(band.signal, rule),
                    _ => {
                        if band.is_counted {
                            sums.ordinary.add(band.signal, rule);
                        }
                        if let Some(search) = search {
                            sums.search.add(rule, *search);
                        }
                    }
                }
            }
        }
    }

    /// Whether the search encoded all of `all` bands.
    pub(super) fn is_whole(&self, all: u64) -> bool {
        self.searched + self.heavy.len() as u64 == all && self.pending.is_empty()
    }

    /// Whether all sums are finite in scheme `at`.
    pub(super) fn is_finite(&self, at: usize) -> bool {
        let SchemeSums { ordinary, heavy, pending, search, .. } = self.schemes[at];
        let sums = [ordinary.y, heavy.y, pending.y, search.y];
        sums.iter().all(|noise| noise.weighted.is_finite() && noise.plain.is_finite())
    }

    /// Estimates the errors in scheme `at` of a matrix of `all` bands, with the signal and the energy `of_matrix`.
    pub(super) fn estimate(&self, at: usize, (all, of_matrix): (u64, Noise)) -> NoiseEstimate {
        let SchemeSums { ordinary, heavy, pending, search, .. } = self.schemes[at];
        let sum = |a: Noise, b: Noise| Noise { weighted: a.weighted + b.weighted, plain: a.plain + b.plain };
        if self.is_whole(all) {
            let noise = sum(heavy.y, search.y);
            return NoiseEstimate { noise, variance: 0.0, spread: Some(Spread::default()) };
        }
        let gain = if self.has_search {
            Noise { weighted: per(search.y.weighted, search.x.weighted), plain: per(search.y.plain, search.x.plain) }
        } else {
            Noise { weighted: 1.0, plain: 1.0 }
        };
        let by_rule = sum(ordinary.y, pending.y);
        let scaled = Noise { weighted: gain.weighted * by_rule.weighted, plain: gain.plain * by_rule.plain };
        let sampled = sum(scaled, heavy.y);
        let signal = sum(sum(ordinary.x, pending.x), heavy.x);
        let ratio = per(sampled.weighted, signal.weighted);
        let noise = if self.ruled == all {
            sampled
        } else {
            Noise { weighted: of_matrix.weighted * ratio, plain: of_matrix.plain * per(sampled.plain, signal.plain) }
        };
        // One band has no spread, and bands of zeros, or without an error, do not represent a matrix with others.
        let lacks = |sum: f64, others: f64| sum <= 0.0 && others > 0.0;
        let says_little = self.ruled < all
            && (self.ruled < 2 || lacks(signal.weighted, of_matrix.weighted) || lacks(signal.plain, of_matrix.plain));
        let compares_little = self.has_search
            && (self.searched < 2
                || lacks(search.x.weighted, by_rule.weighted)
                || lacks(search.x.plain, by_rule.plain));
        if says_little || compares_little {
            return NoiseEstimate { noise, variance: f64::INFINITY, spread: None };
        }
        let (ruled, searched) = (self.ruled as f64, self.searched as f64);
        let mut spread = Spread::default();
        if self.ruled < all {
            let squares = ordinary.squares(gain.weighted, ratio)
                + pending.squares(gain.weighted, ratio)
                + heavy.squares(1.0, ratio);
            // `noise / sampled` is the number of bands of the matrix per band of the sample, by signal.
            let scale = per(noise.weighted, sampled.weighted) * ruled;
            spread.rule = scale * scale * squares / (ruled - 1.0);
        }
        let mut variance = spread.rule * left(self.ruled, all);
        if self.has_search {
            let part = per(scaled.weighted, sampled.weighted) * noise.weighted;
            let scale = per(part, search.y.weighted) * searched;
            spread.search = scale * scale * search.squares(1.0, gain.weighted) / (searched - 1.0);
            let others = (self.ruled - self.heavy.len() as u64) as f64;
            let unsearched = 1.0 / searched - ruled / (others * all as f64);
            variance += spread.search * unsearched.max(0.0);
        }
        NoiseEstimate { noise, variance, spread: Some(spread) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::spread;
    use super::*;
    use crate::math::exp;
    use crate::tests::support::Numbers;

    /// Signals, noises by the rule and noises by the search of the bands of a matrix; one of ten bands has half of the signal.
    fn matrix(numbers: &mut Numbers, bands: u64) -> Vec<[f64; 3]> {
        let mut band = || {
            let is_large = numbers.below(10) == 0;
            let signal = exp(0.2 * numbers.normal()) * if is_large { 9.0 } else { 1.0 };
            let by_rule = signal * exp(0.1 * numbers.normal());
            [signal, by_rule, by_rule * (if is_large { 0.5 } else { 0.7 }) * exp(0.05 * numbers.normal())]
        };
        (0..bands).map(|_| band()).collect()
    }

    /// The bands of these numbers; the rule encodes all of them, and the search those that `is_searched` names.
    fn encoded(matrix: &[[f64; 3]], bands: &[u64], is_searched: impl Fn(u64) -> bool) -> Vec<EncodedBand> {
        let noise = |weighted: f64| Noise { weighted, plain: 2.0 * weighted };
        let of = |&band: &u64| {
            let [signal, rule, search] = matrix[band as usize].map(noise);
            let search = if is_searched(band) { vec![search] } else { Vec::new() };
            EncodedBand { band, is_counted: true, signal, rule: vec![rule], search }
        };
        bands.iter().map(of).collect()
    }

    /// The estimate from `ruled` bands, of which the search encodes heavy ones and the first `searched`; and the noise.
    fn sampled(matrix: &[[f64; 3]], (ruled, searched): (u64, usize)) -> (NoiseEstimate, f64) {
        let all = matrix.len() as u64;
        let sum = |at: usize| matrix.iter().map(|band| band[at]).sum::<f64>();
        let mut sums = MatrixSums::new(1, true);
        let order = spread(all, ruled);
        sums.add(&encoded(matrix, &order, |band| order[..searched].contains(&band)));
        let pending: Vec<u64> = sums.pending.iter().copied().collect();
        let mut resolved = encoded(matrix, &pending, |_| true);
        for band in &mut resolved {
            band.is_counted = false;
        }
        sums.add(&resolved);
        assert!(sums.pending.is_empty() && sums.ruled == ruled);
        (sums.estimate(0, (all, Noise { weighted: sum(0), plain: 2.0 * sum(0) })), sum(2))
    }

    #[test]
    fn estimates_are_off_by_about_their_standard_error() {
        for sample in [(64, 8), (64, 30), (250, 12), (500, 20)] {
            let mut numbers = Numbers(sample.0);
            let times = 400;
            let (mut squares, mut within) = (0.0, 0);
            for _ in 0..times {
                let matrix = matrix(&mut numbers, 500);
                let (estimate, noise) = sampled(&matrix, sample);
                let off = (estimate.noise.weighted - noise) / estimate.variance.sqrt();
                assert!((estimate.noise.plain / estimate.noise.weighted - 2.0).abs() < 1e-9);
                squares += off * off;
                within += usize::from(off.abs() < 1.0);
            }
            let (spread, within) = ((squares / f64::from(times)).sqrt(), within as f64 / f64::from(times));
            assert!((0.8..1.3).contains(&spread) && (0.6..0.8).contains(&within), "{sample:?}: {spread} {within}");
        }
    }

    #[test]
    fn a_search_of_all_bands_is_exact() {
        let matrix = matrix(&mut Numbers(1), 100);
        let (estimate, noise) = sampled(&matrix, (100, 100));
        assert!(estimate.variance == 0.0 && (estimate.noise.weighted / noise - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_pilot_of_heavy_bands_or_of_zeros_says_too_little() {
        let whole = (100, Noise { weighted: 100.0, plain: 200.0 });
        let sums = |matrix: &[[f64; 3]], searched: u64| {
            let mut sums = MatrixSums::new(1, true);
            sums.add(&encoded(matrix, &[0, 1, 2, 3], |band| band < searched));
            sums
        };
        assert!(sums(&[[1.0; 3]; 4], 2).estimate(0, whole).spread.is_some());
        assert!(sums(&[[1.0; 3]; 4], 1).estimate(0, whole).spread.is_none());
        assert!(sums(&[[0.0; 3]; 4], 2).estimate(0, whole).spread.is_none());
        let heavy = sums(&[[9.0; 3], [1.0; 3], [1.0; 3], [1.0; 3]], 2);
        assert_eq!((heavy.searched, heavy.heavy.len()), (1, 1));
        assert!(heavy.estimate(0, whole).spread.is_none());
    }
}
