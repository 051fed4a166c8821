//! Hot loops on slices.
//!
//! Each loop is written once, over [`vector::Vector`], and compiled once for every [`Isa`] by `kernel!`. Every
//! implementation of the trait rounds every operation alike, so all levels give the same bits; the tests hold them to
//! it. Which one runs is chosen once.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub mod elementary;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub mod paired;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) mod reciprocal;
pub mod vector;

/// The instruction set a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with AVX-512 (F, DQ and VL) where a kernel is [`paired`].
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

impl Isa {
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

/// Defines `fn name(isa, args…)` with a body generic over the vector type `V`, compiled for each [`Isa`]; and with
/// `V: Vector in W: Wide`, over what is as wide as its registers, too.
///
/// Everything generic the body calls must be `#[inline(always)]`: a function of its own would be compiled without
/// those instructions.
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
        $vis fn $name<$($element: $crate::simd::vector::Element,)? $(const $size: usize)?>(isa: $crate::simd::Isa, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(
                clippy::allow_attributes,
                clippy::extra_unused_type_parameters,
                reason = "a body that names no vector is still compiled with the instructions of `isa`"
            )]
            fn body<
                $v: $crate::simd::vector::Vector,
                $($w: $crate::simd::paired::Wide<Part = $v>,)?
                $($element: $crate::simd::vector::Element,)?
                $(const $size: usize)?
            >($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($element: $crate::simd::vector::Element,)? $(const $size: usize)?>($($arg: $type),*) $(-> $ret)? {
                use $crate::simd::avx2::Avx2;

                $crate::simd::align_stack();
                body::<Avx2, $($crate::simd::second!($w, Avx2),)? $($element,)? $($size)?>($($arg),*)
            }

            $crate::simd::if_any! { ($($w)?)
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512vl")]
                fn avx512<$($element: $crate::simd::vector::Element,)? $(const $size: usize)?>($($arg: $type),*) $(-> $ret)? {
                    use $crate::simd::{avx512::Avx512, avx2::Avx2};

                    $crate::simd::align_stack();
                    body::<Avx2, $($crate::simd::second!($w, Avx512),)? $($element,)? $($size)?>($($arg),*)
                }

                #[cfg(target_arch = "x86_64")]
                if isa.0 == $crate::simd::Set::Avx512 {
                    // SAFETY: the CPU has AVX2, FMA, F16C and AVX-512 F, DQ and VL: `Isa::available` saw them, and nothing
                    // else makes `Set::Avx512`.
                    return unsafe { avx512::<$($element,)? $($size)?>($($arg),*) };
                }
            }

            match isa.0 {
                $crate::simd::Set::Portable => {
                    use $crate::simd::vector::Portable;

                    body::<Portable, $($crate::simd::second!($w, Portable),)? $($element,)? $($size)?>($($arg),*)
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the CPU has AVX2, FMA and F16C: `Isa::available` saw them, and nothing else makes these.
                $crate::simd::Set::Avx2 | $crate::simd::Set::Avx512 => unsafe { avx2::<$($element,)? $($size)?>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Set::Neon => {
                    use $crate::simd::neon::Neon;

                    body::<Neon, $($crate::simd::second!($w, Neon),)? $($element,)? $($size)?>($($arg),*)
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
pub(crate) fn align_stack() {
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
mod equivalence;
