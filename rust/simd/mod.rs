//! Vector instructions.
//!
//! A hot loop is written once, over the operations of [`vector`], and compiled once for every [`Isa`] by `kernel!`. Every
//! implementation rounds every operation alike, so all instruction sets give the same bits, and the tests compare them.
//! Which one runs is chosen once.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod batch;
pub(crate) mod convert;
pub(crate) mod dispatch;
pub(crate) mod divide;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod intrinsics;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod pack;
mod portable;
pub(crate) mod quantize;
pub(crate) mod shuffle;
pub(crate) mod vector;

pub use dispatch::Isa;
pub(crate) use dispatch::kernel;

#[cfg(test)]
mod equivalence;
