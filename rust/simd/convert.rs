//! Bytes, binary16 and bfloat16 to and from lanes.
//!
//! All methods have a body in plain Rust. An instruction set overrides those that it is faster at.

use half::{bf16, f16};

use super::shuffle::Shuffle;
use super::vector::{BAND_ROWS, Column, Vector};
use crate::dtype::Float;

/// Elements that are widened, rounded or packed at once.
pub(crate) const CHUNK: usize = 32;

/// Vectors that hold the elements of a chunk.
const VECTORS: usize = CHUNK / BAND_ROWS;

/// A type that weights are stored as.
pub(crate) trait Element: bytemuck::Pod {
    /// A chunk as numbers, in the order that [`Convert::round_to_bytes`] takes them in.
    fn widen<V: Convert>(chunk: &[Self; CHUNK]) -> [V; CHUNK / BAND_ROWS];

    /// The least and the greatest of each of eight groups of numbers, one group per lane. No element may be NaN; which zero
    /// (±0) is returned is unspecified.
    #[must_use]
    #[inline(always)]
    fn ranges<V: Convert, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        ranges(groups)
    }

    /// Transposes 8 × 8 elements, and widens them.
    #[must_use]
    fn transpose<V: Convert>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS];
}

impl Element for f32 {
    #[inline(always)]
    fn widen<V: Convert>(chunk: &[Self; CHUNK]) -> [V; VECTORS] {
        V::widen_f32(chunk)
    }

    #[inline(always)]
    fn transpose<V: Convert>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::transpose_f32(rows)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen<V: Convert>(chunk: &[Self; CHUNK]) -> [V; VECTORS] {
        V::widen_bf16(chunk)
    }

    #[inline(always)]
    fn ranges<V: Convert, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        V::ranges_bf16(groups)
    }

    #[inline(always)]
    fn transpose<V: Convert>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::transpose_bf16(bytemuck::cast(rows))
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen<V: Convert>(chunk: &[Self; CHUNK]) -> [V; VECTORS] {
        V::widen_f16(chunk)
    }

    #[inline(always)]
    fn ranges<V: Convert, const G: usize>(groups: &[[Self; G]; BAND_ROWS]) -> (V, V) {
        V::ranges_f16(groups)
    }

    #[inline(always)]
    fn transpose<V: Convert>(rows: [[Self; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut wide = [[0.0; BAND_ROWS]; BAND_ROWS];
        for (wide, row) in wide.iter_mut().zip(rows) {
            *wide = V::from_f16(row).store();
        }
        V::transpose_f32(wide)
    }
}

/// A chunk widened by `widen`, in its own order.
#[inline(always)]
fn widen_each<T: Copy, V: Vector>(chunk: &[T; CHUNK], widen: impl Fn(T) -> f32) -> [V; VECTORS] {
    let mut wide = [V::splat(0.0); VECTORS];
    for (wide, eight) in wide.iter_mut().zip(chunk.as_chunks::<BAND_ROWS>().0) {
        let mut lanes = [0.0; BAND_ROWS];
        for row in 0..BAND_ROWS {
            lanes[row] = widen(eight[row]);
        }
        *wide = V::load(lanes);
    }
    wide
}

/// [`Element::ranges`], of the widened elements.
#[inline(always)]
pub(super) fn ranges<V: Convert, T: Element, const G: usize>(groups: &[[T; G]; BAND_ROWS]) -> (V, V) {
    let [mut low, mut high] = [[V::splat(0.0); BAND_ROWS]; 2];
    for (at, w) in groups.iter().enumerate() {
        let chunks = w.as_chunks::<CHUNK>().0;
        let first = T::widen::<V>(&chunks[0]);
        let mut range = (first[0], first[0]);
        for chunk in chunks {
            for w in T::widen::<V>(chunk) {
                range = (w.min(range.0), w.max(range.1));
            }
        }
        (low[at], high[at]) = range;
    }
    (V::reduce_min(low), V::reduce_max(high))
}

/// Converts lanes from and to the types that weights and codes are stored as.
pub(crate) trait Convert: Shuffle {
    /// Bytes as floats.
    #[must_use]
    #[inline(always)]
    fn from_bytes(bytes: [u8; BAND_ROWS]) -> Self {
        Self::load(bytes.map(f32::from))
    }

    /// The lanes as bytes. Each must hold an integer in `[0, 255]`.
    #[inline(always)]
    #[expect(clippy::cast_sign_loss, reason = "the lanes are in [0, 255]")]
    fn to_bytes(self) -> [u8; BAND_ROWS] {
        self.store().map(|value| value as u8)
    }

    /// Eight binary16 numbers as `f32`.
    #[must_use]
    #[inline(always)]
    fn from_f16(of: [f16; BAND_ROWS]) -> Self {
        Self::load(of.map(f16::to_f32))
    }

    /// [`Element::widen`] of `f32`.
    #[must_use]
    #[inline(always)]
    fn widen_f32(chunk: &[f32; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        widen_each(chunk, |value| value)
    }

    /// [`Element::widen`] of bfloat16.
    #[must_use]
    #[inline(always)]
    fn widen_bf16(chunk: &[bf16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        widen_each(chunk, bf16::to_f32)
    }

    /// [`Element::widen`] of binary16.
    #[must_use]
    #[inline(always)]
    fn widen_f16(chunk: &[f16; CHUNK]) -> [Self; CHUNK / BAND_ROWS] {
        widen_each(chunk, f16::to_f32)
    }

    /// The nearest integers, ties to even, of values in `[0, 2^22]`, or `max` where that is less: the bytes of a chunk, whose
    /// values come in the order of [`Element::widen`]. Unspecified for NaN.
    #[must_use]
    #[inline(always)]
    fn round_to_bytes(values: [Self; CHUNK / BAND_ROWS], max: u8) -> [u8; CHUNK] {
        let mut bytes = [0; CHUNK];
        for (bytes, values) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = values.min(Self::splat(f32::from(max))).round_small().to_bytes();
        }
        bytes
    }

    /// [`Element::ranges`] of bfloat16.
    #[must_use]
    #[inline(always)]
    fn ranges_bf16<const G: usize>(groups: &[[bf16; G]; BAND_ROWS]) -> (Self, Self) {
        ranges(groups)
    }

    /// [`Element::ranges`] of binary16.
    #[must_use]
    #[inline(always)]
    fn ranges_f16<const G: usize>(groups: &[[f16; G]; BAND_ROWS]) -> (Self, Self) {
        ranges(groups)
    }

    /// Of the two values of type `store` on either side of a lane, the one further away; the lane itself if it is such a value.
    #[must_use]
    #[inline(always)]
    fn other_neighbour(self, store: Float) -> Self {
        self.map(|value| {
            let nearest = store.round(value);
            if nearest == value {
                nearest
            } else if nearest.abs() < value.abs() {
                store.outward(nearest.copysign(value))
            } else {
                store.inward(nearest)
            }
        })
    }
}
