//! What a tensor may be turned into, and exactly how many bytes that takes.

use std::fmt;
use std::str::FromStr;

use crate::dtype::Float;

/// Code widths of MLX's affine mode, in bits.
pub const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Group sizes of MLX's affine mode, in elements along a row.
pub const GROUP_SIZES: [u16; 3] = [32, 64, 128];

/// Codes of `bits` bits in groups of `group_size` along a row; each group has a scale and a bias:
/// `w = code * scale + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Affine {
    bits: u8,
    group_size: u16,
}

impl Affine {
    /// The scheme, or `None` if no runtime has it: see [`BITS`] and [`GROUP_SIZES`].
    #[must_use]
    pub fn new(bits: u8, group_size: u16) -> Option<Self> {
        (BITS.contains(&bits) && GROUP_SIZES.contains(&group_size)).then_some(Self { bits, group_size })
    }

    /// All schemes, by bits, then by falling group size: from the fewest bytes to the most.
    pub fn all() -> impl Iterator<Item = Self> {
        BITS.into_iter().flat_map(|bits| GROUP_SIZES.into_iter().rev().map(move |group_size| Self { bits, group_size }))
    }

    /// Bits per code.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Elements that share a scale and a bias.
    #[must_use]
    pub fn group_size(self) -> usize {
        usize::from(self.group_size)
    }

    /// The largest code, `2^bits - 1`.
    #[must_use]
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Whether a row of `cols` elements divides into whole groups (and so into whole words).
    #[must_use]
    pub fn fits(self, cols: u64) -> bool {
        cols > 0 && cols.is_multiple_of(u64::from(self.group_size))
    }

    /// Bytes of the packed codes of one row.
    #[must_use]
    pub fn code_bytes(self, cols: u64) -> u64 {
        cols * u64::from(self.bits) / 8
    }

    /// Groups in one row: as many scales, and as many biases.
    #[must_use]
    pub fn groups(self, cols: u64) -> u64 {
        cols / u64::from(self.group_size)
    }

    /// Bytes of everything stored for `rows` rows of `cols`: codes, scales and biases.
    #[must_use]
    pub fn stored_bytes(self, rows: u64, cols: u64, scale: Float) -> u64 {
        rows * (self.code_bytes(cols) + 2 * self.groups(cols) * scale.bytes() as u64)
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}g{}", self.bits, self.group_size)
    }
}

/// What becomes of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Group-wise affine codes.
    Affine(Affine),
    /// The source's own bytes.
    Kept,
}

impl Scheme {
    /// The affine scheme, unless kept.
    #[must_use]
    pub fn affine(self) -> Option<Affine> {
        match self {
            Self::Affine(affine) => Some(affine),
            Self::Kept => None,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affine(affine) => affine.fmt(out),
            Self::Kept => out.write_str("kept"),
        }
    }
}

/// A form in which a release stores weights and a runtime computes with them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packed {
    /// E2M1 codes and an E8M0 scale for every 32 of them.
    Mxfp4,
    /// Integers from −8 to 7 with a scale for each group: stored as [`Affine`] of 4 bits with biases of −8 scales.
    Int4(Affine),
}

impl Packed {
    /// Bytes of everything stored for `rows` rows of `cols`.
    #[must_use]
    pub fn stored_bytes(self, rows: u64, cols: u64, scale: Float) -> u64 {
        match self {
            Self::Mxfp4 => rows * (cols / 2 + cols / 32),
            Self::Int4(affine) => affine.stored_bytes(rows, cols, scale),
        }
    }

    /// Whether rows of `cols` can be stored so.
    #[must_use]
    pub fn fits(self, cols: u64) -> bool {
        match self {
            Self::Mxfp4 => cols > 0 && cols.is_multiple_of(32),
            Self::Int4(affine) => affine.fits(cols),
        }
    }
}

impl fmt::Display for Packed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mxfp4 => out.write_str("mxfp4"),
            Self::Int4(affine) => write!(out, "int4g{}", affine.group_size),
        }
    }
}

impl FromStr for Packed {
    type Err = NotAScheme;

    fn from_str(text: &str) -> Result<Self, NotAScheme> {
        let int4 = || Affine::new(4, text.strip_prefix("int4g")?.parse().ok()?).map(Self::Int4);
        if text == "mxfp4" { Ok(Self::Mxfp4) } else { int4().ok_or_else(|| NotAScheme(text.to_owned())) }
    }
}

/// A text that is not a scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scheme")]
pub struct NotAScheme(pub String);

impl FromStr for Scheme {
    type Err = NotAScheme;

    /// `4g64` or `kept`, as [`Display`](fmt::Display) writes them.
    fn from_str(text: &str) -> Result<Self, NotAScheme> {
        if text == "kept" {
            return Ok(Self::Kept);
        }
        text.split_once('g')
            .and_then(|(bits, group_size)| Affine::new(bits.parse().ok()?, group_size.parse().ok()?))
            .map(Self::Affine)
            .ok_or_else(|| NotAScheme(text.to_owned()))
    }
}

impl serde::Serialize for Scheme {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Scheme {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_18_schemes_and_each_reads_back() {
        let all: Vec<_> = Affine::all().collect();
        assert_eq!(all.len(), 18);
        for &affine in &all {
            let scheme = Scheme::Affine(affine);
            assert_eq!(scheme.to_string().parse(), Ok(scheme));
        }
        assert_eq!("kept".parse(), Ok(Scheme::Kept));
        for text in ["7g64", "4g16", "4", "g64", "4g", "", "-4g64", "4g64 ", "bf16"] {
            assert_eq!(text.parse::<Scheme>(), Err(NotAScheme(text.to_owned())));
        }
    }

    #[test]
    fn stored_bytes_count_codes_scales_and_biases() {
        let four = Affine::new(4, 64).unwrap();
        // 4.5 bits per weight with 16-bit scales and biases, 5 with 32-bit ones.
        assert_eq!(four.stored_bytes(10, 128, Float::BF16) * 8, 10 * 128 * 9 / 2);
        assert_eq!(four.stored_bytes(10, 128, Float::F32) * 8, 10 * 128 * 5);
        assert_eq!(Affine::new(3, 32).unwrap().code_bytes(32), 12);
        assert_eq!(four.max_code(), 15);
        assert_eq!(Affine::new(8, 32).unwrap().max_code(), 255);
    }

    #[test]
    fn schemes_are_listed_from_the_fewest_bytes_to_the_most() {
        let sizes: Vec<_> = Affine::all().map(|s| s.stored_bytes(1, 128, Float::BF16)).collect();
        assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "{sizes:?}");
    }

    #[test]
    fn a_group_must_divide_the_row() {
        let wide = Affine::new(4, 128).unwrap();
        assert!(wide.fits(256) && !wide.fits(192) && !wide.fits(0) && !wide.fits(172));
    }
}
