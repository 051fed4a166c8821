//! A part of a job: some of its units, and of the digests of its source.
//!
//! The units of all parts are those of the whole job. Which part has a unit depends on the job alone.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The largest number of parts.
const MOST_PARTS: u64 = 4096;

/// Part `number` of `count`, from 1 on. Written as `3/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobPart {
    number: u64,
    count: u64,
}

impl JobPart {
    /// All parts of as many.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        (1..=self.count).map(move |number| Self { number, count: self.count })
    }

    /// Whether the part has the work whose middle is at `middle` of `total`.
    #[must_use]
    pub(crate) fn has(self, middle: u64, total: u64) -> bool {
        let of = u128::from(middle) * u128::from(self.count) / u128::from(total.max(1));
        of.min(u128::from(self.count - 1)) + 1 == u128::from(self.number)
    }

    /// The part whose [`file_name`](Self::file_name) is `text`.
    #[must_use]
    pub(crate) fn of_file_name(text: &str) -> Option<Self> {
        text.replace("-of-", "/").parse().ok().filter(|part: &Self| part.file_name() == text)
    }

    /// The part in a file name.
    #[must_use]
    pub(crate) fn file_name(self) -> String {
        format!("{}-of-{}", self.number, self.count)
    }
}

impl FromStr for JobPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((number, count)) if (1..=count).contains(&number) && count <= MOST_PARTS => Ok(Self { number, count }),
            _ => Err(format!("write a part as 3/16: the third of sixteen, of at most {MOST_PARTS}")),
        }
    }
}

impl fmt::Display for JobPart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.number, self.count)
    }
}

impl Serialize for JobPart {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written_and_others_refused() {
        assert_eq!("3/16".parse::<JobPart>().unwrap().to_string(), "3/16");
        for wrong in ["", "3", "0/16", "17/16", "1/0", "a/b", "1/2/3", "-1/2", "1/5000"] {
            assert!(wrong.parse::<JobPart>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_piece_of_work_is_in_one_part() {
        let parts: Vec<JobPart> = "1/7".parse::<JobPart>().unwrap().all().collect();
        for total in [1, 6, 7, 1000, u64::MAX] {
            for middle in [0, total / 3, total - 1, total] {
                assert_eq!(parts.iter().filter(|part| part.has(middle, total)).count(), 1, "{middle} of {total}");
            }
        }
    }
}
