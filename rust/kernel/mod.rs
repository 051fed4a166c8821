//! Hot loops on slices.
//!
//! Each loop is written once, over [`vector::Vector`], and compiled once for every [`Level`] by `kernel!`. Every
//! implementation of the trait rounds every operation alike, so all levels give the same bits; the tests hold them to
//! it. Which one runs is chosen once.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod affine;
pub mod band;
pub mod codes;
pub mod elementary;
pub mod product;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod reciprocal;
pub mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// The instruction set a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON, which is part of the target.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Set {
    /// The best that every CPU of the target has.
    #[cfg(not(target_arch = "aarch64"))]
    const BASELINE: Self = Self::Portable;
    #[cfg(target_arch = "aarch64")]
    const BASELINE: Self = Self::Neon;
}

impl Level {
    /// Plain Rust, as the compiler makes it for the target.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The best this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
        {
            return Self(Set::Avx2);
        }
        Self(Set::BASELINE)
    }

    /// Its name, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
        }
    }
}

/// Defines `fn name(level, args…)` with a body generic over the vector type `V`, compiled for each [`Level`].
///
/// Everything generic the body calls must be `#[inline(always)]`: a function of its own would be compiled without
/// the level's instructions.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$v:ident: Vector $(, const $size:ident: usize)? $(; $element:ident: Element)?>(
            $($arg:ident: $type:ty),* $(,)?
        )
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$($element: $crate::kernel::vector::Element,)? $(const $size: usize)?>(level: $crate::kernel::Level, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(
                clippy::allow_attributes,
                clippy::extra_unused_type_parameters,
                reason = "a body that names no vector is still compiled with the level's instructions"
            )]
            fn body<
                $v: $crate::kernel::vector::Vector,
                $($element: $crate::kernel::vector::Element,)?
                $(const $size: usize)?
            >($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($element: $crate::kernel::vector::Element,)? $(const $size: usize)?>($($arg: $type),*) $(-> $ret)? {
                body::<$crate::kernel::x86_64::Avx2, $($element,)? $($size)?>($($arg),*)
            }

            match level.0 {
                $crate::kernel::Set::Portable => body::<$crate::kernel::vector::Portable, $($element,)? $($size)?>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the CPU has AVX2, FMA and F16C: `Level::detect` saw them, and nothing else makes `Set::Avx2`.
                $crate::kernel::Set::Avx2 => unsafe { avx2::<$($element,)? $($size)?>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::kernel::Set::Neon => body::<$crate::kernel::aarch64::Neon, $($element,)? $($size)?>($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod agreement;
