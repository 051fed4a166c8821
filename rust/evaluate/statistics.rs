//! Statistics over windows, with standard errors.
//!
//! The positions of a window depend on each other, and windows do not. So a standard error comes from the differences
//! between windows. For quantiles these are resampled (the bootstrap), with a fixed generator.

use crate::math::exp;
use crate::probe::tokens::bits;

/// Resamples of the windows.
const RESAMPLES: usize = 200;

/// The generator's stream for resamples.
const STREAM: u64 = 8;

/// A measured number.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its standard error; `None` if there is one window only.
    pub error: Option<f64>,
}

/// The distribution of a number over all positions.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// Mean.
    pub mean: Estimate,
    /// Median.
    pub median: Estimate,
    /// 99th percentile.
    pub p99: Estimate,
}

impl Estimate {
    /// `e` to the power of the number.
    pub(super) fn exponential(self) -> Self {
        let value = exp(self.value);
        Self { value, error: self.error.map(|error| value * error) }
    }
}

fn mean_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `Σ (v − mean)²`.
fn spread(values: &[f64]) -> f64 {
    let mean = mean_of(values);
    values.iter().map(|value| (value - mean) * (value - mean)).sum()
}

fn window_means(values: &[f64], length: usize) -> Vec<f64> {
    values.chunks_exact(length).map(mean_of).collect()
}

/// The mean of `values`, `length` of each window.
pub(super) fn mean(values: &[f64], length: usize) -> Estimate {
    let windows = window_means(values, length);
    let count = windows.len() as f64;
    let error = (windows.len() > 1).then(|| (spread(&windows) / (count * (count - 1.0))).sqrt());
    Estimate { value: mean_of(&windows), error }
}

/// The exponential of the mean of the median window.
pub(super) fn median_window(values: &[f64], length: usize) -> f64 {
    let mut windows = window_means(values, length);
    windows.sort_by(f64::total_cmp);
    let middle = windows.len() / 2;
    exp(if windows.len().is_multiple_of(2) {
        f64::midpoint(windows[middle - 1], windows[middle])
    } else {
        windows[middle]
    })
}

/// Mean and quantiles of `values`, `length` of each window.
pub(super) fn quantiles(values: &[f64], length: usize) -> Quantiles {
    let windows = values.len() / length;
    let mut sorted: Vec<(f64, usize)> = values.iter().enumerate().map(|(at, &value)| (value, at / length)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [median, p99] = at_shares(&sorted, &vec![1; windows]);
    let (mut medians, mut p99s) = (Vec::with_capacity(RESAMPLES), Vec::with_capacity(RESAMPLES));
    if windows > 1 {
        for resample in 0..RESAMPLES {
            let mut counts = vec![0; windows];
            for draw in 0..windows {
                let random = bits(STREAM, (resample * windows + draw) as u64);
                counts[((u128::from(random) * windows as u128) >> 64) as usize] += 1;
            }
            let [median, p99] = at_shares(&sorted, &counts);
            medians.push(median);
            p99s.push(p99);
        }
    }
    // Resamples of n windows differ by (n − 1) / n of what such windows differ by.
    let error = |found: &[f64]| {
        let share = windows as f64 / (windows as f64 - 1.0);
        (windows > 1).then(|| (share * spread(found) / (RESAMPLES - 1) as f64).sqrt())
    };
    Quantiles {
        mean: mean(values, length),
        median: Estimate { value: median, error: error(&medians) },
        p99: Estimate { value: p99, error: error(&p99s) },
    }
}

/// The median and the 99th percentile of `sorted` values, of which those of window `w` occur `counts[w]` times.
/// Interpolates between adjacent values.
fn at_shares(sorted: &[(f64, usize)], counts: &[usize]) -> [f64; 2] {
    let all: usize = sorted.iter().map(|(_, window)| counts[*window]).sum();
    [0.5, 0.99].map(|share| {
        let place = share * (all - 1) as f64;
        let below = place.floor();
        let mut after = 0;
        let mut low = None;
        for &(value, window) in sorted {
            after += counts[window];
            if low.is_none() && after as f64 > below {
                low = Some(value);
            }
            // The next value, or the same if that is the last.
            if let Some(low) = low
                && (after as f64 > below + 1.0 || after == all)
            {
                return low + (value - low) * (place - below);
            }
        }
        0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_and_count_repeated_windows() {
        let sorted = [(1.0, 0), (2.0, 1), (3.0, 0), (4.0, 1)];
        assert_eq!(at_shares(&sorted, &[1, 1])[0], 2.5);
        assert_eq!(at_shares(&sorted, &[2, 0]), [2.0, 3.0]);
        assert_eq!(at_shares(&sorted, &[0, 1])[0], 3.0);
    }

    #[test]
    fn errors_come_from_the_differences_between_windows() {
        let values = [1.0, 1.0, 3.0, 3.0];
        assert_eq!(mean(&values, 2), Estimate { value: 2.0, error: Some(1.0) });
        assert_eq!(mean(&values, 4).error, None);
        let same = [1.0, 2.0, 1.0, 2.0];
        assert_eq!(quantiles(&same, 2).median, Estimate { value: 1.5, error: Some(0.0) });
        assert!(quantiles(&values, 2).median.error.is_some_and(|error| error > 0.5 && error < 2.0));
        assert_eq!(quantiles(&values, 4).p99.error, None);
    }

    #[test]
    fn the_median_window_is_that_of_the_mean_log_likelihood() {
        assert_eq!(median_window(&[0.0, 0.0, 5.0, 5.0, 1.0, 1.0], 2), exp(1.0));
        assert_eq!(median_window(&[0.0, 2.0], 1), exp(1.0));
    }
}
