//! Hot loops on slices.
//!
//! Each loop is written once, over [`vector::Vector`], and compiled once for every [`Level`] by `kernel!`. Every
//! implementation of the trait rounds every operation alike, so all levels give the same bits; the tests hold them to
//! it. Which one runs is chosen once.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod affine;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod band;
pub mod codes;
pub mod elementary;
pub mod product;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod reciprocal;
pub mod vector;
mod wide;
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
    /// The same with AVX-512 (F, DQ and VL) where a kernel is [`wide`].
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which is part of the target.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl")
}

impl Level {
    /// Plain Rust, as the compiler makes it for the target.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// Those that this CPU has, the best one last.
    pub fn available() -> impl Iterator<Item = Self> {
        let sets = [
            (Set::Portable, true),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, has_avx2()),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, has_avx2() && has_avx512()),
            #[cfg(target_arch = "aarch64")]
            (Set::Neon, true),
        ];
        sets.into_iter().filter(|(_, is_there)| *is_there).map(|(set, _)| Self(set))
    }

    /// The best this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::PORTABLE)
    }

    /// Its name, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
        }
    }
}

/// Defines `fn name(level, args…)` with a body generic over the vector type `V`, compiled for each [`Level`]; and with
/// `V: Vector in W: Wide`, over what is as wide as the level's registers, too.
///
/// Everything generic the body calls must be `#[inline(always)]`: a function of its own would be compiled without
/// the level's instructions.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<
            $v:ident: Vector $(in $w:ident: Wide)? $(, const $size:ident: usize)? $(; $element:ident: Element)?
        >(
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
                $($w: $crate::kernel::wide::Wide<Part = $v>,)?
                $($element: $crate::kernel::vector::Element,)?
                $(const $size: usize)?
            >($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($element: $crate::kernel::vector::Element,)? $(const $size: usize)?>($($arg: $type),*) $(-> $ret)? {
                use $crate::kernel::x86_64::Avx2;

                $crate::kernel::align_stack();
                body::<Avx2, $($crate::kernel::second!($w, Avx2),)? $($element,)? $($size)?>($($arg),*)
            }

            $crate::kernel::if_any! { ($($w)?)
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512vl")]
                fn avx512<$($element: $crate::kernel::vector::Element,)? $(const $size: usize)?>($($arg: $type),*) $(-> $ret)? {
                    use $crate::kernel::{avx512::Avx512, x86_64::Avx2};

                    $crate::kernel::align_stack();
                    body::<Avx2, $($crate::kernel::second!($w, Avx512),)? $($element,)? $($size)?>($($arg),*)
                }

                #[cfg(target_arch = "x86_64")]
                if level.0 == $crate::kernel::Set::Avx512 {
                    // SAFETY: the CPU has AVX2, FMA, F16C and AVX-512 F, DQ and VL: `Level::available` saw them, and nothing
                    // else makes `Set::Avx512`.
                    return unsafe { avx512::<$($element,)? $($size)?>($($arg),*) };
                }
            }

            match level.0 {
                $crate::kernel::Set::Portable => {
                    use $crate::kernel::vector::Portable;

                    body::<Portable, $($crate::kernel::second!($w, Portable),)? $($element,)? $($size)?>($($arg),*)
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the CPU has AVX2, FMA and F16C: `Level::available` saw them, and nothing else makes these.
                $crate::kernel::Set::Avx2 | $crate::kernel::Set::Avx512 => unsafe { avx2::<$($element,)? $($size)?>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::kernel::Set::Neon => {
                    use $crate::kernel::aarch64::Neon;

                    body::<Neon, $($crate::kernel::second!($w, Neon),)? $($element,)? $($size)?>($($arg),*)
                }
            }
        }
    };
}
pub(crate) use kernel;

/// Aligns the stack of the function that this is inlined into to the lines of the cache. Else it has the alignment of the
/// caller, 16 bytes, and what does not fit the registers lies across two lines half of the time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn align_stack() {
    #[repr(align(64))]
    struct Line(#[expect(dead_code, reason = "it only lies there")] [u8; 64]);

    std::hint::black_box(&std::mem::MaybeUninit::<Line>::uninit());
}

/// The rest, if there is anything in the first parentheses.
macro_rules! if_any {
    (() $($rest:tt)*) => {};
    (($any:ident) $($rest:tt)*) => { $($rest)* };
}
pub(crate) use if_any;

/// The second of two types: the first says how often.
macro_rules! second {
    ($first:ident, $second:ty) => {
        $second
    };
}
pub(crate) use second;

#[cfg(test)]
mod agreement;
