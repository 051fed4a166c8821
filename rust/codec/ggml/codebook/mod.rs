//! Types that code the magnitudes of several weights by one vector of a codebook, and their signs by bits of their own.
//!
//! `w = ± magnitude · (d · (scale + ½) · STEP)`. A scale of four bits belongs to a group of 16 or 32 weights, and `d` to the
//! block of 256. No magnitude is zero. Types with `EVEN_SIGNS` store seven signs of each eight: the number of negative ones is
//! even.
//!
//! | module | what |
//! |---|---|
//! | [`sets`] [`book`] | the codebooks, and their tables |
//! | [`nearest`] | the vectors with the least weighted error, for a given scale |
//! | [`signs`] | the signs |
//! | [`tries`] [`mod@encode`] | the search of `d` and the scales |

mod book;
mod encode;
mod nearest;
mod sets;
mod signs;
mod tries;

use super::block::BlockType;
pub(super) use book::Codebook;
pub(super) use encode::encode;
pub(super) use sets::{IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};

/// Weights whose signs are stored together.
const EIGHT: usize = 8;

/// The bit of a code that says that the weight is negative. The other bits are the position of the magnitude.
const NEGATIVE: u8 = 1 << 7;

/// The largest scale of a group.
const MAX_SCALE: f32 = 15.0;

/// What a type is to the encoder.
pub(super) trait CodebookBlock: BlockType {
    const CODEBOOK: &'static Codebook;

    /// Weights of a vector: 4 or 8.
    const DIMENSIONS: usize;

    /// The magnitudes of the elements, ascending.
    const MAGNITUDES: &'static [f32];

    /// The factor of the scales, see the [module](self). A power of two.
    const STEP: f32;

    /// Whether the number of negative weights of each eight must be even.
    const EVEN_SIGNS: bool;

    /// The quotient of the best scale of a group by its mean, in the norm of power 4, that normal weights have.
    const START: f32;

    /// The `d` that are tried, as shares of the one that is fitted to the first vectors, and how many scales of each group
    /// are tried with it.
    const TRIED: &'static [(f32, u8)];

    /// The number that a code stands for.
    fn signed(code: u8) -> f32 {
        let magnitude = Self::MAGNITUDES[usize::from(code & !NEGATIVE)];
        if code & NEGATIVE == 0 { magnitude } else { -magnitude }
    }

    /// The factor of `d` for a scale.
    fn multiple(scale: i8) -> f32 {
        (f32::from(scale) + 0.5) * Self::STEP
    }

    /// The code in the codebook of the magnitudes that `codes` stand for.
    fn vector(codes: &[u8]) -> u16 {
        let base = Self::MAGNITUDES.len() as u8;
        let half = |codes: &[u8]| codes.iter().rev().fold(0, |half, code| half * base + (code & !NEGATIVE));
        let (first, second) = codes.split_at(Self::DIMENSIONS / 2);
        Self::CODEBOOK.code(half(first), half(second))
    }

    /// Writes the codes of a vector of the codebook with the signs `negative`, that of the first weight in the lowest bit.
    fn put_vector(vector: u16, negative: u8, codes: &mut [u8]) {
        let base = Self::MAGNITUDES.len() as u8;
        let book = Self::CODEBOOK;
        let halves = [book.firsts, book.seconds];
        for (halves, codes) in halves.into_iter().zip(codes.chunks_exact_mut(Self::DIMENSIONS / 2)) {
            let mut half = halves[usize::from(vector)];
            for code in codes {
                *code = half % base;
                half /= base;
            }
        }
        for (at, code) in codes.iter_mut().enumerate() {
            *code |= (negative >> at & 1) << 7;
        }
    }
}

/// The signs of eight codes, that of the first in the lowest bit.
pub(super) fn signs_of(codes: &[u8]) -> u8 {
    codes.iter().rev().fold(0, |signs, code| signs << 1 | code >> 7)
}

/// The signs of eight weights of which the first seven are given and the number of negative ones is even.
pub(super) fn even_signs(seven: u8) -> u8 {
    let odd = (seven & 127).count_ones() as u8 & 1;
    seven & 127 | odd << 7
}

/// Writes scales of four bits, the even groups in the lower halves.
pub(super) fn put_scales(scales: &[i8], out: &mut [u8]) {
    for (pair, out) in scales.chunks_exact(2).zip(out) {
        *out = pair[0].cast_unsigned() | pair[1].cast_unsigned() << 4;
    }
}

/// Reads what [`put_scales`] wrote.
pub(super) fn scales_of(bytes: &[u8], scales: &mut [i8]) {
    for (byte, pair) in bytes.iter().zip(scales.chunks_exact_mut(2)) {
        (pair[0], pair[1]) = ((byte & 15).cast_signed(), (byte >> 4).cast_signed());
    }
}

/// Writes seven signs of each eight of `codes` and the scale of each 32 to a word.
pub(super) fn put_signs_and_scales<'a>(codes: &[u8], scales: &[i8], out: impl Iterator<Item = &'a mut [u8]>) {
    for ((codes, scale), out) in codes.chunks_exact(32).zip(scales).zip(out) {
        let signs = codes.chunks_exact(EIGHT).rev().fold(0, |word, codes| word << 7 | u32::from(signs_of(codes) & 127));
        out.copy_from_slice(&(signs | u32::from(scale.cast_unsigned()) << 28).to_le_bytes());
    }
}

/// Reads what [`put_signs_and_scales`] wrote: adds the signs to the codes.
pub(super) fn add_signs_and_scales<'a>(words: impl Iterator<Item = &'a [u8]>, codes: &mut [u8], scales: &mut [i8]) {
    for ((word, codes), scale) in words.zip(codes.chunks_exact_mut(32)).zip(scales) {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        *scale = ((word >> 28) as u8).cast_signed();
        for (at, codes) in codes.chunks_exact_mut(EIGHT).enumerate() {
            let signs = even_signs((word >> (7 * at)) as u8);
            for (element, code) in codes.iter_mut().enumerate() {
                *code |= (signs >> element & 1) << 7;
            }
        }
    }
}
