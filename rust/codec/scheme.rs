//! A scheme: a codec with its parameters, or "kept".

use std::fmt;
use std::str::FromStr;

use super::{CODECS, Codec, Encode, PartSpec};
use crate::band::Matrix;
use crate::dtype::{Dtype, Float};

/// A codec with its parameters, or [`KEPT`](Scheme::KEPT). The codec defines its text form: `4g64`, `mxfp4`, `kept`.
///
/// Schemes are ordered by codec, then by the codec's own order; `KEPT` is the last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scheme {
    /// Position in [`CODECS`]; `u8::MAX` for [`KEPT`](Scheme::KEPT).
    codec: u8,
    /// Parameters in the codec's own encoding.
    params: u16,
}

impl Scheme {
    /// The source's bytes are kept.
    pub const KEPT: Self = Self { codec: u8::MAX, params: 0 };

    /// The scheme whose only part consists of blocks of `dtype`; `None` if there is none.
    #[must_use]
    pub(crate) fn of_blocks(dtype: Dtype) -> Option<Self> {
        let (elements, _) = dtype.block();
        if elements == 1 {
            return None;
        }
        let row = Matrix { rows: 1, cols: elements, float: Float::F32 };
        let is_it = |scheme: &Self| {
            scheme.fits(elements) && matches!(scheme.parts(row).as_slice(), [only] if only.dtype == dtype)
        };
        CODECS.iter().flat_map(|codec| codec.schemes()).copied().find(is_it)
    }

    /// The scheme with these parameters of the codec at position `codec` of the registry.
    #[must_use]
    pub const fn new(codec: u8, params: u16) -> Self {
        Self { codec, params }
    }

    /// The parameters in the codec's own encoding.
    #[must_use]
    pub const fn params(self) -> u16 {
        self.params
    }

    /// Whether the source's bytes are kept.
    #[must_use]
    pub fn is_kept(self) -> bool {
        self == Self::KEPT
    }

    /// The codec; `None` for [`KEPT`](Scheme::KEPT).
    #[must_use]
    pub fn codec(self) -> Option<&'static dyn Codec> {
        CODECS.get(usize::from(self.codec)).copied()
    }

    /// Whether both schemes have the same codec.
    #[must_use]
    pub fn same_codec(self, other: Self) -> bool {
        self.codec == other.codec
    }

    /// The encoder; `None` for [`KEPT`](Scheme::KEPT), and if rows can only be passed through.
    #[must_use]
    pub fn encoder(self) -> Option<&'static dyn Encode> {
        self.codec()?.encoder()
    }

    /// Whether rows of `cols` weights can be stored in this scheme.
    #[must_use]
    pub fn fits(self, cols: u64) -> bool {
        self.codec().is_some_and(|codec| codec.fits(self, cols))
    }

    /// The stored parts of `matrix`; empty for [`KEPT`](Scheme::KEPT).
    #[must_use]
    pub fn parts(self, matrix: Matrix) -> Vec<PartSpec> {
        self.codec().map_or_else(Vec::new, |codec| codec.parts(self, matrix))
    }

    /// Bytes of all parts of `matrix`.
    #[must_use]
    pub fn stored_bytes(self, matrix: Matrix) -> u64 {
        self.parts(matrix).iter().map(|part| part.bytes(matrix.rows)).sum()
    }

    /// Bytes of a matrix of 1,024 by 4,096 weights with scales of 16 bits, by which schemes are compared.
    #[must_use]
    pub(crate) fn nominal_bytes(self) -> u64 {
        self.stored_bytes(Matrix { rows: 1024, cols: 4096, float: Float::BF16 })
    }

    /// Bits of a code, without scales and biases; `None` for [`KEPT`](Scheme::KEPT).
    #[must_use]
    pub fn code_bits(self) -> Option<Bits> {
        Some(self.codec()?.code_bits(self))
    }
}

/// Bits per code: a ratio, since some codecs store several weights in one code.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    bits: u32,
    weights: u32,
}

impl Bits {
    /// A whole number of bits per weight.
    #[must_use]
    pub const fn whole(bits: u32) -> Self {
        Self { bits, weights: 1 }
    }

    /// `bits` bits for `weights` weights; `weights` must be positive.
    #[must_use]
    pub const fn of(bits: u32, weights: u32) -> Self {
        assert!(weights > 0, "bits of no weights");
        Self { bits, weights }
    }

    /// Bits of the codes of `weights` weights.
    #[must_use]
    pub fn total(self, weights: u64) -> u64 {
        weights * u64::from(self.bits) / u64::from(self.weights)
    }

    /// Bits per weight.
    #[must_use]
    pub fn per_weight(self) -> f64 {
        f64::from(self.bits) / f64::from(self.weights)
    }
}

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bits {}

impl PartialOrd for Bits {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bits {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let cross = |a: u32, b: u32| u64::from(a) * u64::from(b);
        cross(self.bits, other.weights).cmp(&cross(other.bits, self.weights))
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.per_weight().fmt(out)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec() {
            Some(codec) => out.write_str(&codec.spell(*self)),
            None => out.write_str("kept"),
        }
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A text that is not a scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scheme")]
pub struct NotAScheme(pub String);

impl FromStr for Scheme {
    type Err = NotAScheme;

    /// Parses the text that [`Display`](fmt::Display) writes: the codecs are tried in order.
    fn from_str(text: &str) -> Result<Self, NotAScheme> {
        if text == "kept" {
            return Ok(Self::KEPT);
        }
        CODECS.iter().find_map(|codec| codec.parse(text)).ok_or_else(|| NotAScheme(text.to_owned()))
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
    fn every_scheme_of_every_codec_reads_back_and_knows_its_codec() {
        for (at, codec) in CODECS.iter().enumerate() {
            for &scheme in codec.schemes() {
                assert_eq!(usize::from(scheme.codec), at, "{scheme} knows where its codec is");
                assert_eq!(scheme.to_string().parse(), Ok(scheme));
                assert_eq!(codec.encoder().is_some(), scheme.encoder().is_some());
            }
        }
        for text in ["kept", "mxfp4", "nvfp4", "fp8", "int4g32", "int8channel"] {
            assert_eq!(text.parse::<Scheme>().unwrap().to_string(), text);
        }
        for text in ["7g64", "4g16", "4", "g64", "4g", "", "-4g64", "4g64 ", "bf16", "int4g16", "int4g", "int7channel"]
        {
            assert_eq!(text.parse::<Scheme>(), Err(NotAScheme(text.to_owned())));
        }
    }

    #[test]
    fn schemes_of_a_codec_are_listed_from_the_fewest_bytes_to_the_most() {
        for codec in CODECS {
            let bytes = |scheme: &Scheme| scheme.stored_bytes(Matrix { rows: 8, cols: 256, float: Float::BF16 });
            let sizes: Vec<_> = codec.schemes().iter().map(bytes).collect();
            assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "{sizes:?}");
        }
    }

    #[test]
    fn kept_is_the_last_and_has_no_codec() {
        assert!("8g32".parse::<Scheme>().unwrap() < Scheme::KEPT);
        assert!(Scheme::KEPT.codec().is_none() && Scheme::KEPT.code_bits().is_none() && !Scheme::KEPT.fits(64));
    }

    #[test]
    fn bits_compare_as_ratios() {
        assert_eq!(Bits::of(6, 2), Bits::whole(3));
        assert!(Bits::of(41, 16) < Bits::whole(3) && Bits::of(41, 16) > Bits::whole(2));
        assert_eq!((Bits::of(41, 16).total(256), Bits::whole(4).to_string()), (656, "4".to_owned()));
    }
}
