//! The grids that the search starts from.

/// How much of a group's range to clip at its low and its high end, in units of 10⁻⁴ of the range: one list of grids per code
/// width, in the order of [`super::BITS`].
///
/// Chosen by greedy selection from a 9 × 9 lattice for the least mean weighted error over groups of real weights (see
/// `docs/method.md`), then made symmetric.
pub(crate) const CLIP_GRID: [&[[u16; 2]]; 6] = [
    &[
        [1800, 1800],
        [2400, 2400],
        [1200, 3000],
        [3000, 1200],
        [600, 1800],
        [1800, 600],
        [600, 3600],
        [3600, 600],
        [1800, 2700],
        [2700, 1800],
        [600, 4800],
        [4800, 600],
    ],
    &[
        [450, 450],
        [900, 900],
        [1350, 1350],
        [450, 1350],
        [1350, 450],
        [450, 2250],
        [2250, 450],
        [900, 1800],
        [1800, 900],
        [0, 900],
        [900, 0],
        [450, 3150],
        [3150, 450],
    ],
    &[
        [0, 0],
        [300, 300],
        [600, 600],
        [0, 300],
        [300, 0],
        [0, 600],
        [600, 0],
        [300, 900],
        [900, 300],
        [300, 1500],
        [1500, 300],
    ],
    &[[0, 0], [200, 200], [0, 200], [200, 0], [0, 400], [400, 0], [200, 400], [400, 200], [200, 800], [800, 200]],
    &[[0, 0], [100, 100], [0, 100], [100, 0], [0, 200], [200, 0]],
    &[[0, 0], [33, 33], [0, 33], [33, 0]],
];
