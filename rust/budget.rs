//! Budgets: parsing a size limit in any of its units, and converting it to bytes.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::option::OptionName;

/// A budget as the user wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Budget {
    pub text: String,
    amount: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    BitsPerWeight(f64),
    FileBytes(f64),
    PercentOfFiles(f64),
}

/// A limit in bytes, and what it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// All tensor data.
    TensorBytes(u64),
    /// All files of weights, including headers.
    FileBytes(u64),
}

/// Units of sizes, in bytes. The search takes the first suffix that matches, so `B` comes last.
const UNITS: [(&str, f64); 9] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];

impl Budget {
    /// The limit for a source of `parameters` weights whose files are `file_bytes` long.
    #[must_use]
    #[expect(clippy::cast_sign_loss, reason = "a budget is positive")]
    pub(crate) fn limit(&self, parameters: u64, file_bytes: u64) -> Limit {
        // Rounds down to whole bytes; the cast saturates at 2^64 − 1, which limits nothing.
        match self.amount {
            Amount::BitsPerWeight(bits) => {
                let bytes = (bits * parameters as f64 / 8.0) as u64;
                // The product may round down to one byte less. Bits per weight that a plan states must allow that plan.
                let is_one_more = 8.0 * bytes.saturating_add(1) as f64 / parameters.max(1) as f64 <= bits;
                Limit::TensorBytes(bytes.saturating_add(u64::from(is_one_more)))
            }
            Amount::FileBytes(bytes) => Limit::FileBytes(bytes as u64),
            Amount::PercentOfFiles(percent) => Limit::FileBytes((percent / 100.0 * file_bytes as f64) as u64),
        }
    }

    /// Formats `bytes` in the unit of this budget, rounded up. The result, given as a budget, allows `bytes`.
    #[must_use]
    pub(crate) fn format_like(&self, bytes: u64, parameters: u64, file_bytes: u64) -> String {
        let (whole, decimals, unit) = match self.amount {
            Amount::BitsPerWeight(_) => (8.0 * bytes as f64 / parameters.max(1) as f64, 4, " bits per weight"),
            Amount::FileBytes(_) => return format!("{bytes}B ({})", size(bytes)),
            Amount::PercentOfFiles(_) => (100.0 * bytes as f64 / file_bytes.max(1) as f64, 2, "%"),
        };
        let scale = f64::from(10_u32.pow(decimals));
        let steps = (whole * scale).ceil();
        format!("{:.*}{unit}", decimals as usize, steps / scale)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.amount {
            Amount::BitsPerWeight(bits) => write!(out, "{bits} bits per weight"),
            _ => out.write_str(&self.text),
        }
    }
}

impl FromStr for Budget {
    type Err = Error;

    /// Parses `4.0` or `4.0bpw` (tensor data in bits per weight of the source), `24GB`, `24GiB`, `900MB`… (files of
    /// weights), or `30%` (of the source's files).
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::option(OptionName::Budget, text, reason);
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let ends = |unit: &str| lower.strip_suffix(&unit.to_ascii_lowercase()).map(str::trim);
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        let known = "write bits per weight (4.0), a size (24GB, 24GiB, 900MB) or a share of the source (30%)";
        let (number, amount): (_, fn(f64) -> Amount) = if let Some(percent) = ends("%") {
            (number(percent), Amount::PercentOfFiles)
        } else if let Some(bits) = ends("bpw") {
            (number(bits), Amount::BitsPerWeight)
        } else if let Some((rest, unit)) = UNITS.iter().find_map(|(name, unit)| Some((ends(name)?, *unit))) {
            (number(rest).map(|number| number * unit), Amount::FileBytes)
        } else {
            (number(&lower), Amount::BitsPerWeight)
        };
        let number = number.ok_or_else(|| wrong(known))?;
        if number <= 0.0 {
            return Err(wrong("a budget is more than nothing"));
        }
        match amount(number) {
            Amount::BitsPerWeight(bits) if bits > 64.0 => {
                Err(wrong(&format!("more bits than any weight has; {known}")))
            }
            amount => Ok(Self { text: trimmed.to_owned(), amount }),
        }
    }
}

/// Parses a size with a unit (`24GB`, `900MiB`) to bytes; `None` if it is not one.
#[must_use]
#[expect(clippy::cast_sign_loss, reason = "a size is not negative")]
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let ends =
        |(name, unit): &(&str, f64)| Some((lower.strip_suffix(&name.to_ascii_lowercase())?.trim().to_owned(), *unit));
    let (number, unit) = UNITS.iter().find_map(ends)?;
    let bytes = number.parse::<f64>().ok()? * unit;
    // Just below 2^64.
    (0.0..1.8e19).contains(&bytes).then_some(bytes as u64)
}

/// Formats a number of bytes for people: `24.10 GB`.
#[must_use]
pub(crate) fn size(bytes: u64) -> String {
    let scaled = |unit: f64| bytes as f64 / unit;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.2} KB", scaled(1e3)),
        1_000_000..1_000_000_000 => format!("{:.2} MB", scaled(1e6)),
        _ => format!("{:.2} GB", scaled(1e9)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Limit {
        text.parse::<Budget>().unwrap().limit(1_000, 5_000)
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let read = ["2GB", " 1.5 KiB ", "7b", "0MB", "2", "GB", "-1GB", "nanGB", "1e30TB"].map(bytes);
        assert_eq!(read, [Some(2_000_000_000), Some(1536), Some(7), Some(0), None, None, None, None, None]);
    }

    #[test]
    fn every_form_is_understood() {
        assert_eq!(limit("4.0"), Limit::TensorBytes(500));
        assert_eq!(limit(" 4.5bpw "), Limit::TensorBytes(562));
        assert_eq!(limit("24GB"), Limit::FileBytes(24_000_000_000));
        assert_eq!(limit("24 GiB"), Limit::FileBytes(24 << 30));
        assert_eq!(limit("1.5kb"), Limit::FileBytes(1_500));
        assert_eq!(limit("200KB"), Limit::FileBytes(200_000));
        assert_eq!(limit("17B"), Limit::FileBytes(17));
        assert_eq!(limit("30%"), Limit::FileBytes(1_500));
    }

    #[test]
    fn the_bits_per_weight_of_any_size_are_a_budget_for_that_size() {
        for (parameters, step) in [(279_232, 1), (134_515_008, 9_973), (7_000_000_007, 9_999_991)] {
            for bytes in (1..2_000).map(|at| at * step) {
                let bits = 8.0 * bytes as f64 / parameters as f64;
                let budget: Budget = format!("{bits}").parse().unwrap();
                assert_eq!(budget.limit(parameters, 0), Limit::TensorBytes(bytes), "{bits}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused_and_says_what_to_write() {
        for text in ["", "four", "4.0.0", "-1", "0", "0GB", "nan", "inf", "infGB", "4 apples", "%", "GB", "1e9", "24G"]
        {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("⟨budget⟩ `{text}`: ")), "{error}");
        }
    }

    #[test]
    fn a_size_is_formatted_in_the_unit_of_the_budget() {
        let formatted = |text: &str| text.parse::<Budget>().unwrap().format_like(400, 1_000, 5_000);
        assert_eq!(formatted("4.0"), "3.2000 bits per weight");
        assert_eq!(formatted("24GB"), "400B (400 B)");
        assert_eq!(formatted("30%"), "8.00%");
        assert_eq!(size(24_100_000_000), "24.10 GB");
    }

    #[test]
    fn a_formatted_size_is_a_budget_that_allows_that_size() {
        for bytes in (1..2_000).chain([123_456_789_012, 70_000_000_001]) {
            for text in ["4.0", "24GB", "30%"] {
                let formatted = text.parse::<Budget>().unwrap().format_like(bytes, 70_000_000_000, 140_000_000_123);
                let budget = formatted.split(" (").next().unwrap().replace(" bits per weight", "bpw");
                let limit = budget.parse::<Budget>().unwrap().limit(70_000_000_000, 140_000_000_123);
                let (Limit::TensorBytes(limit) | Limit::FileBytes(limit)) = limit;
                assert!(limit >= bytes, "{bytes} bytes are formatted as {formatted}, which allows {limit}");
            }
        }
    }
}
