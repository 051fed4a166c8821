//! Types whose groups have a scale, and some a minimum, that are small multiples of numbers of the block.

use super::block::BlockType;
use super::levels::Levels;
use super::stored::to_f16;
use super::sums::GroupLine;
use crate::simd::vector::{Column, Simd};

/// How the encoder finds scales and minima.
pub(super) trait LinearBlock: BlockType {
    type Levels: Levels;

    /// Whether groups have minima.
    const MINIMA: bool;

    /// The least and the greatest scale of a group, in units of `d`. If the least is negative, so may `d` be.
    const SCALES: [f32; 2];

    /// The greatest minimum of a group, in units of `dmin`. The least is 0, or 1 if this is 1: then minima have any sign.
    const MAX_MIN: f32;

    /// The lines that the search of a group starts from.
    const STARTS: Starts;

    /// The quotients of the largest scale by `d`, and of the largest minimum by `dmin`, that are tried.
    const DIVISORS: &'static [[f32; 2]];

    /// The rule of `fast`; `None` for the first of the starts, rounded.
    #[inline(always)]
    fn rule<V: Simd>(_w: &[Column]) -> Option<RuleBlock<V>> {
        None
    }

    /// The nearest numbers that `d` can be.
    #[inline(always)]
    fn store<V: Simd>(d: V) -> V {
        to_f16(d)
    }
}

/// The lines that a search starts from.
#[derive(Clone, Copy)]
pub(super) enum Starts {
    /// How much of the range to clip at the low and the high end, in units of 10⁻⁴ of it. Negative shares widen
    /// the range.
    Clips(&'static [[i16; 2]]),
    /// Shares of the scale that covers the group, in units of 10⁻³.
    Shares(&'static [u16]),
}

/// A block of one group, coded by a rule of its own.
pub(super) struct RuleBlock<V> {
    /// As stored.
    pub line: GroupLine<V>,
    /// The numbers of the codes.
    pub numbers: [V; 32],
}
