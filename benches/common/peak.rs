//! The rate of multiply-adds that a core reaches in registers.

use std::hint::black_box;

use super::clock::processor_seconds;

/// Rounds of a measurement.
const ROUNDS: usize = 5_000_000;

/// Every lane of `held` through `rounds` multiply-adds.
#[inline(always)]
fn chains<const LANES: usize>(rounds: usize, held: &mut [f32; LANES], by: f32, plus: f32) {
    let mut lanes = *held;
    for _ in 0..rounds {
        for lane in &mut lanes {
            #[expect(clippy::disallowed_methods, reason = "the instruction is what is measured")]
            {
                *lane = lane.mul_add(by, plus);
            }
        }
    }
    *held = lanes;
}

/// Twelve registers of eight lanes.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn narrow(rounds: usize, held: &mut [f32; 96], by: f32, plus: f32) {
    chains(rounds, held, by, plus);
}

/// Twelve registers of sixteen lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
fn wide(rounds: usize, held: &mut [f32; 192], by: f32, plus: f32) {
    chains(rounds, held, by, plus);
}

fn rate<const LANES: usize>(run: impl Fn(usize, &mut [f32; LANES], f32, f32)) -> f64 {
    let mut held = [0.5; LANES];
    let before = processor_seconds();
    run(black_box(ROUNDS), &mut held, black_box(0.999), black_box(1e-3));
    black_box(held);
    (ROUNDS * LANES) as f64 / (processor_seconds() - before)
}

/// Fused multiply-adds per second of one core, in its widest registers.
///
/// # Panics
/// Without AVX2 and FMA on x86-64.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_unsafe, reason = "there the functions ask for no features"))]
pub(super) fn multiply_adds_per_second() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the features were looked for.
        return rate::<192>(|rounds, held, by, plus| unsafe { wide(rounds, held, by, plus) });
    }
    #[cfg(target_arch = "x86_64")]
    assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "no AVX2 with FMA here");
    // SAFETY: the features were looked for.
    rate::<96>(|rounds, held, by, plus| unsafe { narrow(rounds, held, by, plus) })
}
