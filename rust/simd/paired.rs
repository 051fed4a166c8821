//! Several vectors at once.
//!
//! Where several eights of lanes ask for the same operations, as the same rows do that are tried on several grids, a register
//! that is wider than eight lanes has room for more than one of them: its *parts*. What comes of a part is the same bits
//! however many are worked on together.

use super::vector::{Column, Lanes, Vector};

/// The most parts there are.
pub(crate) const MOST_PARTS: usize = 2;

/// Vectors side by side, worked on alike.
pub(crate) trait Wide: Lanes {
    /// One of them.
    type Part: Vector;

    /// How many they are.
    const PARTS: usize;

    /// The same lanes in each part.
    fn each(lanes: Column) -> Self;

    /// `parts`, of which there is one at least: the last one again where there are fewer than [`PARTS`](Self::PARTS).
    fn beside(parts: &[Self::Part]) -> Self;

    /// Part `at`.
    fn part(self, at: usize) -> Self::Part;
}

impl<V: Vector> Wide for V {
    type Part = V;

    const PARTS: usize = 1;

    #[inline(always)]
    fn each(lanes: Column) -> Self {
        Self::load(lanes)
    }

    #[inline(always)]
    fn beside(parts: &[V]) -> Self {
        parts[0]
    }

    #[inline(always)]
    fn part(self, _: usize) -> V {
        self
    }
}
