//! [`Shuffle`] in NEON registers.
//!
//! Transposes are perfect shuffles: elements of the first half of the registers alternate with those of the second half. The
//! place of an element of a matrix with `2^n` rows and columns is a number of `2n` bits, the row's above the column's. A shuffle
//! rotates it by one bit, so `n` shuffles exchange row and column.

use std::arch::aarch64::{float32x4_t, uint8x16_t, uint16x8_t};

use super::Neon;
use super::raw::{
    load_u8, load_u16, store_u8, vdupq_n_u16, vmaxq_f32, vminq_f32, vpmaxq_f32, vpminq_f32, vzip1q_f32, vzip1q_u8,
    vzip1q_u16, vzip2q_f32, vzip2q_u8, vzip2q_u16,
};
use crate::simd::shuffle::Shuffle;
use crate::simd::vector::{BAND_ROWS, Column, Lanes, Vector};

/// Shuffles rows of eight bytes, two in a register.
#[inline(always)]
fn shuffle_u8([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    [vzip1q_u8(a, c), vzip2q_u8(a, c), vzip1q_u8(b, d), vzip2q_u8(b, d)]
}

/// Shuffles rows of eight integers of 16 bits, one in a register.
#[inline(always)]
fn shuffle_u16(of: [uint16x8_t; BAND_ROWS]) -> [uint16x8_t; BAND_ROWS] {
    let mut shuffled = of;
    for at in 0..BAND_ROWS / 2 {
        let (first, later) = (of[at], of[at + BAND_ROWS / 2]);
        (shuffled[2 * at], shuffled[2 * at + 1]) = (vzip1q_u16(first, later), vzip2q_u16(first, later));
    }
    shuffled
}

/// Shuffles rows of four floats, one in a register.
#[inline(always)]
fn shuffle_f32([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    [vzip1q_f32(a, c), vzip2q_f32(a, c), vzip1q_f32(b, d), vzip2q_f32(b, d)]
}

/// The columns of four rows, from row `first` on.
#[inline(always)]
fn transpose_four(rows: &[Neon; BAND_ROWS], first: usize) -> [float32x4_t; BAND_ROWS] {
    let [a, b, c, d] = [rows[first], rows[first + 1], rows[first + 2], rows[first + 3]];
    let left = shuffle_f32(shuffle_f32([a.0, b.0, c.0, d.0]));
    let right = shuffle_f32(shuffle_f32([a.1, b.1, c.1, d.1]));
    [left[0], left[1], left[2], left[3], right[0], right[1], right[2], right[3]]
}

impl Shuffle for Neon {
    #[inline(always)]
    fn reduce_min(vectors: [Self; BAND_ROWS]) -> Self {
        let mut fours = [vectors[0].0; BAND_ROWS];
        for at in 0..BAND_ROWS {
            fours[at] = vminq_f32(vectors[at].0, vectors[at].1);
        }
        // Of neighbours, then of fours: one lane is left of each vector.
        Self(
            vpminq_f32(vpminq_f32(fours[0], fours[1]), vpminq_f32(fours[2], fours[3])),
            vpminq_f32(vpminq_f32(fours[4], fours[5]), vpminq_f32(fours[6], fours[7])),
        )
    }

    #[inline(always)]
    fn reduce_max(vectors: [Self; BAND_ROWS]) -> Self {
        let mut fours = [vectors[0].0; BAND_ROWS];
        for at in 0..BAND_ROWS {
            fours[at] = vmaxq_f32(vectors[at].0, vectors[at].1);
        }
        Self(
            vpmaxq_f32(vpmaxq_f32(fours[0], fours[1]), vpmaxq_f32(fours[2], fours[3])),
            vpmaxq_f32(vpmaxq_f32(fours[4], fours[5]), vpmaxq_f32(fours[6], fours[7])),
        )
    }

    #[inline(always)]
    fn transpose_u8(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        let [a, b, c, d] = rows.as_flattened().as_chunks().0 else { unreachable!("four pairs of rows") };
        let shuffled = shuffle_u8([load_u8(a), load_u8(b), load_u8(c), load_u8(d)]);
        let shuffled = shuffle_u8(shuffle_u8(shuffled));
        let mut columns = [[0; BAND_ROWS]; BAND_ROWS];
        for (shuffled, pair) in shuffled.into_iter().zip(columns.as_flattened_mut().as_chunks_mut().0) {
            store_u8(shuffled, pair);
        }
        columns
    }

    #[inline(always)]
    fn transpose_f32(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut held = [Self::splat(0.0); BAND_ROWS];
        for (held, row) in held.iter_mut().zip(rows) {
            *held = Self::load(row);
        }
        let (upper, lower) = (transpose_four(&held, 0), transpose_four(&held, 4));
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for at in 0..BAND_ROWS {
            columns[at] = Self(upper[at], lower[at]).store();
        }
        columns
    }

    #[inline(always)]
    fn transpose_bf16(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        let mut held = [vdupq_n_u16(0); BAND_ROWS];
        for (held, row) in held.iter_mut().zip(&rows) {
            *held = load_u16(row);
        }
        let shuffled = shuffle_u16(shuffle_u16(shuffle_u16(held)));
        let mut columns = [[0.0; BAND_ROWS]; BAND_ROWS];
        for (column, shuffled) in columns.iter_mut().zip(shuffled) {
            *column = Self::from_upper(shuffled).store();
        }
        columns
    }
}
