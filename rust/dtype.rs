//! Element types of files, and the float types that weights are decoded from and stored in.
//!
//! [`Float::widen`] converts source weights to `f32`. All computation after that is in `f32`.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

#[cfg(target_endian = "big")]
compile_error!("safetensors is little-endian and ramrs reads it in place: big-endian hosts are not supported");

/// Every element type of the safetensors format, and the block types of GGUF, whether or not ramrs can compute with them.
///
/// Unless it is prequantized, a tensor of a type that is not a [`Float`] is copied byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the names are the format's own")]
#[expect(clippy::upper_case_acronyms, reason = "the names are the format's own")]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E5M2FNUZ,
    F8_E4M3FNUZ,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// Name, and the elements and the bytes of the smallest unit that is stored.
const DTYPES: [(Dtype, &str, (u64, u64)); 47] = [
    (Dtype::BOOL, "BOOL", (1, 1)),
    (Dtype::F4, "F4", (2, 1)),
    (Dtype::F6_E2M3, "F6_E2M3", (4, 3)),
    (Dtype::F6_E3M2, "F6_E3M2", (4, 3)),
    (Dtype::U8, "U8", (1, 1)),
    (Dtype::I8, "I8", (1, 1)),
    (Dtype::F8_E5M2, "F8_E5M2", (1, 1)),
    (Dtype::F8_E4M3, "F8_E4M3", (1, 1)),
    (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", (1, 1)),
    (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", (1, 1)),
    (Dtype::F8_E8M0, "F8_E8M0", (1, 1)),
    (Dtype::I16, "I16", (1, 2)),
    (Dtype::U16, "U16", (1, 2)),
    (Dtype::F16, "F16", (1, 2)),
    (Dtype::BF16, "BF16", (1, 2)),
    (Dtype::I32, "I32", (1, 4)),
    (Dtype::U32, "U32", (1, 4)),
    (Dtype::F32, "F32", (1, 4)),
    (Dtype::C64, "C64", (1, 8)),
    (Dtype::F64, "F64", (1, 8)),
    (Dtype::I64, "I64", (1, 8)),
    (Dtype::U64, "U64", (1, 8)),
    (Dtype::Q4_0, "Q4_0", (32, 18)),
    (Dtype::Q4_1, "Q4_1", (32, 20)),
    (Dtype::Q5_0, "Q5_0", (32, 22)),
    (Dtype::Q5_1, "Q5_1", (32, 24)),
    (Dtype::Q8_0, "Q8_0", (32, 34)),
    (Dtype::Q2_K, "Q2_K", (256, 84)),
    (Dtype::Q3_K, "Q3_K", (256, 110)),
    (Dtype::Q4_K, "Q4_K", (256, 144)),
    (Dtype::Q5_K, "Q5_K", (256, 176)),
    (Dtype::Q6_K, "Q6_K", (256, 210)),
    (Dtype::IQ2_XXS, "IQ2_XXS", (256, 66)),
    (Dtype::IQ2_XS, "IQ2_XS", (256, 74)),
    (Dtype::IQ3_XXS, "IQ3_XXS", (256, 98)),
    (Dtype::IQ1_S, "IQ1_S", (256, 50)),
    (Dtype::IQ4_NL, "IQ4_NL", (32, 18)),
    (Dtype::IQ3_S, "IQ3_S", (256, 110)),
    (Dtype::IQ2_S, "IQ2_S", (256, 82)),
    (Dtype::IQ4_XS, "IQ4_XS", (256, 136)),
    (Dtype::IQ1_M, "IQ1_M", (256, 56)),
    (Dtype::TQ1_0, "TQ1_0", (256, 54)),
    (Dtype::TQ2_0, "TQ2_0", (256, 66)),
    (Dtype::MXFP4, "MXFP4", (32, 17)),
    (Dtype::NVFP4, "NVFP4", (64, 36)),
    (Dtype::Q1_0, "Q1_0", (128, 18)),
    (Dtype::Q2_0, "Q2_0", (64, 18)),
];

impl Dtype {
    /// The type that the headers of safetensors files call `name`; none of them is a block type of GGUF.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        DTYPES[..=Self::U64 as usize].iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in headers.
    #[must_use]
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].1
    }

    /// The number of elements that are stored together, and their bytes; of the packed small floats, as many as fill whole
    /// bytes.
    #[must_use]
    pub const fn block(self) -> (u64, u64) {
        DTYPES[self as usize].2
    }

    /// Bits per element; 4 and 6 for the packed small floats. Those of a block of GGUF are rounded down.
    #[must_use]
    pub fn bits(self) -> u64 {
        let (elements, bytes) = self.block();
        8 * bytes / elements
    }

    /// Bytes of `elements` elements; `None` if they do not fill whole blocks, or on overflow.
    #[must_use]
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (of_block, bytes) = self.block();
        (elements / of_block).checked_mul(bytes).filter(|_| elements.is_multiple_of(of_block))
    }

    /// Whether the elements are real floating-point numbers: weights, not indices or masks.
    #[must_use]
    pub fn is_float(self) -> bool {
        self.name().starts_with(['F', 'B']) && self != Dtype::BOOL
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A float type that ramrs computes with, and stores scales and biases in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// binary32
    F32,
    /// binary16
    F16,
    /// bfloat16
    BF16,
}

impl Float {
    /// The float type of `dtype`; `None` if ramrs cannot compute with it.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The same type as a [`Dtype`].
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Bytes per element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Widens little-endian elements to `f32`, exactly.
    ///
    /// # Panics
    /// If `source` is not `out.len()` elements long or not aligned to the element.
    #[inline]
    pub fn widen(self, source: &[u8], out: &mut [f32]) {
        assert_eq!(source.len(), out.len() * self.bytes(), "widen: lengths differ");
        if source.is_empty() {
            // An empty slice need not be aligned, which `cast_slice` would demand.
            return;
        }
        match self {
            Self::F32 => out.copy_from_slice(bytemuck::cast_slice(source)),
            Self::F16 => bytemuck::cast_slice::<u8, f16>(source).convert_to_f32_slice(out),
            Self::BF16 => {
                for (wide, &bits) in out.iter_mut().zip(bytemuck::cast_slice::<u8, u16>(source)) {
                    *wide = f32::from_bits(u32::from(bits) << 16);
                }
            }
        }
    }

    /// Rounds to the nearest value of this type, ties to even; to infinity if out of range.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// The next value of this type further from zero.
    #[must_use]
    pub fn outward(self, value: f32) -> f32 {
        match self {
            Self::F32 => f32::from_bits(value.to_bits() + 1),
            Self::F16 => f16::from_bits(f16::from_f32(value).to_bits() + 1).to_f32(),
            Self::BF16 => bf16::from_bits(bf16::from_f32(value).to_bits() + 1).to_f32(),
        }
    }

    /// The next value of this type nearer to zero. The value must not be zero.
    #[must_use]
    pub fn inward(self, value: f32) -> f32 {
        match self {
            Self::F32 => f32::from_bits(value.to_bits() - 1),
            Self::F16 => f16::from_bits(f16::from_f32(value).to_bits() - 1).to_f32(),
            Self::BF16 => bf16::from_bits(bf16::from_f32(value).to_bits() - 1).to_f32(),
        }
    }

    /// Rounds `values` to this 16-bit type, and stores their bits in `out`.
    ///
    /// # Panics
    /// If the type is not 16 bits wide, or the lengths differ.
    pub fn round_to_bits(self, values: &[f32], out: &mut [u16]) {
        assert!(self != Self::F32 && values.len() == out.len(), "round_to_bits: shapes");
        if self == Self::F16 {
            bytemuck::cast_slice_mut::<u16, f16>(out).convert_from_f32_slice(values);
        } else {
            out.iter_mut().zip(values).for_each(|(bits, &value)| *bits = bf16_bits(value));
        }
    }

    /// Appends `values`, each rounded to this type, as little-endian bytes.
    pub fn append(self, values: &[f32], out: &mut Vec<u8>) {
        if self == Self::F32 {
            out.extend_from_slice(bytemuck::cast_slice(values));
        } else {
            let mut halves = vec![0; values.len()];
            self.round_to_bits(values, &mut halves);
            out.extend_from_slice(bytemuck::cast_slice(&halves));
        }
    }
}

/// Rounds to bfloat16, ties to even, and returns the bits. Unlike [`bf16::from_f32`] it has no branch, so that loops
/// vectorise.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // NaN stays NaN, and becomes quiet.
    let nan = bits >> 16 | 0x40;
    (if value.is_nan() { nan } else { nearest }) as u16
}

/// Decodes a float of one sign bit, `exponent` bits and `mantissa` bits, with this bias of the exponent. Exponent 0 is
/// subnormal; no code is infinite or NaN.
fn decode_small_float(code: u8, exponent: u32, mantissa: u32, bias: i32) -> f32 {
    let sign = if code >> (exponent + mantissa) == 0 { 1.0 } else { -1.0 };
    let power = i32::from(code >> mantissa & u8::MAX >> (8 - exponent));
    let fraction = f32::from(code & ((1 << mantissa) - 1)) / f32::from(1_u16 << mantissa);
    let scale = power_of_two(power.max(1) - bias);
    sign * scale * if power == 0 { fraction } else { 1.0 + fraction }
}

/// `2^exponent`, exactly, for exponents from -149 to 127.
fn power_of_two(exponent: i32) -> f32 {
    if exponent >= -126 {
        f32::from_bits((exponent + 127).cast_unsigned() << 23)
    } else {
        f32::from_bits(1 << (exponent + 149))
    }
}

/// An 8-bit float type of prequantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float8 {
    /// 4 bits of exponent, 3 of mantissa; no infinities.
    E4M3,
    /// 5 bits of exponent, 2 of mantissa.
    E5M2,
}

impl Float8 {
    /// The type of `dtype`; `None` if it is not one of these.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8_E4M3 => Some(Self::E4M3),
            Dtype::F8_E5M2 => Some(Self::E5M2),
            _ => None,
        }
    }

    /// The value of each code.
    #[must_use]
    pub fn values(self) -> [f32; 256] {
        std::array::from_fn(|code| {
            let code = code as u8;
            match self {
                // Exponent and mantissa all ones: NaN. There is no infinity.
                Self::E4M3 if code & 0x7f == 0x7f => f32::NAN,
                Self::E4M3 => decode_small_float(code, 4, 3, 7),
                Self::E5M2 if code & 0x7f == 0x7c => decode_small_float(code, 5, 2, 15) * f32::INFINITY,
                Self::E5M2 if code & 0x7c == 0x7c => f32::NAN,
                Self::E5M2 => decode_small_float(code, 5, 2, 15),
            }
        })
    }
}

/// The values of the 16 codes of E2M1, the elements of MXFP4.
#[must_use]
pub(crate) fn e2m1_values() -> [f32; 16] {
    std::array::from_fn(|code| decode_small_float(code as u8, 2, 1, 1))
}

/// The value of a scale of type E8M0: a power of two, or NaN.
#[must_use]
pub(crate) fn e8m0(code: u8) -> f32 {
    if code == u8::MAX { f32::NAN } else { power_of_two(i32::from(code) - 127) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_eight_bits_and_less_have_the_values_of_their_standards() {
        let (e4m3, e5m2) = (Float8::E4M3.values(), Float8::E5M2.values());
        assert_eq!((e4m3[0x01], e4m3[0x08], e4m3[0x38], e4m3[0x7e]), (0.001_953_125, 0.015_625, 1.0, 448.0));
        assert_eq!((e4m3[0xb8], e4m3[0x80].to_bits()), (-1.0, (-0.0_f32).to_bits()));
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        assert_eq!((e5m2[0x3c], e5m2[0x7b], e5m2[0x7c], e5m2[0xfc]), (1.0, 57_344.0, f32::INFINITY, f32::NEG_INFINITY));
        assert!(e5m2[0x7d].is_nan() && e5m2[0xff].is_nan());
        assert_eq!(e2m1_values()[..8], [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert!(e2m1_values()[8..].iter().zip(e2m1_values()).all(|(minus, plus)| *minus == -plus));
        assert_eq!((e8m0(0), e8m0(127), e8m0(254)), (2_f32.powi(-127), 1.0, 2_f32.powi(127)));
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, row) in DTYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, at, "{}", row.1);
            assert_eq!(Dtype::parse(row.1), (row.0 <= Dtype::U64).then_some(row.0));
        }
        assert_eq!(Dtype::parse("F7"), None);
        assert_eq!(Dtype::parse("bf16"), None);
    }

    #[test]
    fn sizes_of_packed_types_must_fill_bytes() {
        assert_eq!(Dtype::F4.bytes(4), Some(2));
        assert_eq!(Dtype::F4.bytes(3), None);
        assert_eq!(Dtype::F6_E2M3.bytes(4), Some(3));
        assert_eq!(Dtype::F32.bytes(u64::MAX), None);
        assert_eq!(Dtype::Q4_K.bytes(512), Some(288));
        assert_eq!(Dtype::Q4_K.bytes(128), None);
    }

    #[test]
    fn floats_are_distinguished_from_integers() {
        let floats: Vec<_> = DTYPES.iter().filter(|row| row.0.is_float()).map(|row| row.1).collect();
        assert_eq!(floats.len(), 12, "{floats:?}");
        assert!(!Dtype::BOOL.is_float() && !Dtype::U8.is_float() && !Dtype::C64.is_float());
    }

    #[test]
    fn every_16_bit_value_survives_the_round_trip() {
        for float in [Float::F16, Float::BF16] {
            for bits in 0..=u16::MAX {
                let mut wide = [0.0];
                float.widen(&bits.to_le_bytes(), &mut wide);
                if wide[0].is_nan() {
                    continue;
                }
                let mut back = Vec::new();
                float.append(&wide, &mut back);
                assert_eq!(back, bits.to_le_bytes(), "{float:?} {bits:#06x}");
                assert_eq!(float.round(wide[0]).to_bits(), wide[0].to_bits());
            }
        }
    }

    #[test]
    fn append_rounds_to_the_nearest_value() {
        // Every pattern of the upper bits with some of the lower, among them halves and their neighbours.
        let lows = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> =
            (0..=u16::MAX).flat_map(|high| lows.map(|low| f32::from_bits(u32::from(high) << 16 | low))).collect();
        for (float, nearest) in [
            (Float::BF16, (|value| bf16::from_f32(value).to_bits()) as fn(f32) -> u16),
            (Float::F16, |value| f16::from_f32(value).to_bits()),
        ] {
            let mut bytes = vec![7];
            float.append(&values, &mut bytes);
            assert_eq!(bytes.remove(0), 7);
            for (bytes, &value) in bytes.as_chunks().0.iter().zip(&values) {
                assert_eq!(u16::from_le_bytes(*bytes), nearest(value), "{float:?} {value:e}");
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(Float::BF16.round(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(Float::BF16.round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(Float::F16.round(70_000.0), f32::INFINITY);
        assert_eq!(Float::BF16.outward(-1.0), -1.007_812_5);
    }
}
