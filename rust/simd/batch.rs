//! Several vectors in one register.
//!
//! Where kernels do the same operations on several vectors, as when the same rows are tried on several grids, a register
//! wider than eight lanes has room for more than one of them: its *parts*. The result for a part is the same bits however
//! many parts are processed together.

use super::quantize::Quantize;
use super::vector::{Column, Simd};

/// The largest [`Batch::PARTS`].
pub(crate) const MAX_PARTS: usize = 2;

/// Vectors in one register.
pub(crate) trait Batch: Quantize {
    /// One of them.
    type Part: Simd;

    /// How many there are.
    const PARTS: usize;

    /// The same lanes in each part.
    fn broadcast(lanes: Column) -> Self;

    /// The vectors `parts`, at least one: the last one again where there are fewer than [`PARTS`](Self::PARTS).
    fn concat(parts: &[Self::Part]) -> Self;

    /// Part `at`.
    fn extract(self, at: usize) -> Self::Part;
}

impl<V: Simd> Batch for V {
    type Part = V;

    const PARTS: usize = 1;

    #[inline(always)]
    fn broadcast(lanes: Column) -> Self {
        Self::load(lanes)
    }

    #[inline(always)]
    fn concat(parts: &[V]) -> Self {
        parts[0]
    }

    #[inline(always)]
    fn extract(self, _: usize) -> V {
        self
    }
}
