//! A band of weights to measure kernels on.

use ramrs::bench::{BAND_ROWS, Float};

/// The bfloat16 bytes of a band of `columns` columns: about normal, and always the same.
pub(super) fn source(columns: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 24) as f32
    };
    let values: Vec<f32> =
        (0..BAND_ROWS * columns).map(|_| 0.02 * ((0..12).map(|_| unit()).sum::<f32>() - 6.0)).collect();
    let mut bytes = Vec::with_capacity(2 * values.len());
    Float::BF16.append(&values, &mut bytes);
    bytes
}
