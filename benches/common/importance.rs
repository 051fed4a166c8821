//! What columns of weights are measured with.

/// The importance of `columns` columns: no two alike that are near.
pub(super) fn importance(columns: usize) -> Vec<f32> {
    (0..columns).map(|column| 1.0 + (column * 37 % 101) as f32).collect()
}
