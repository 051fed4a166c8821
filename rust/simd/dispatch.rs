//! The instruction set that kernels run with, and how a kernel gets its vectors.
//!
//! # Soundness
//!
//! Operations on the vectors of an instruction set are safe functions that run its instructions, so no code may reach them on
//! a CPU without these. The types of the vectors are private to [`simd`](super), and this file alone gives them to kernels:
//! a kernel is generic, and [`Isa::run`] calls it with `V = Avx2` only from a function that enables the instructions and only
//! where [`Isa::available`] saw them. Code outside of `simd` cannot name such a type; if it has one as `V`, then the CPU has
//! the instructions. The type parameter is the token that other libraries pass as a value, and costs no argument.
//!
//! It follows that nothing else in `simd` may name `Avx2`, `Avx512` or `Neon`, and that their modules must stay private.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::batch::Batch;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
use super::vector::Simd;

/// The instruction set a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same, and AVX-512 (F, DQ and VL) for kernels that work on a [`Batch`].
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
    /// Plain Rust, compiled for the target's baseline.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The instruction sets of this CPU, the best one last.
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

    /// The best instruction set of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::PORTABLE)
    }

    /// The name for reports.
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

    /// Runs `K` on the vectors of this instruction set.
    pub(crate) fn run<K: Kernel<A>, A>(self, arguments: A) -> K::Output {
        match self.0 {
            Set::Portable => K::run::<Portable, Portable>(arguments),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 if K::IS_BATCHED => {
                // SAFETY: the CPU has AVX2, FMA, F16C and AVX-512 F, DQ and VL: `available` saw them, and nothing else makes
                // this value.
                unsafe { run_avx512::<K, A>(arguments) }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has AVX2, FMA and F16C: `available` saw them, and nothing else makes these values.
            Set::Avx2 | Set::Avx512 => unsafe { run_avx2::<K, A>(arguments) },
            #[cfg(target_arch = "aarch64")]
            Set::Neon => K::run::<Neon, Neon>(arguments),
        }
    }
}

/// A function over vectors, with arguments `A`: what [`kernel!`] defines.
pub(crate) trait Kernel<A> {
    type Output;

    /// Whether it works on a [`Batch`]: only then are wider registers of use.
    #[cfg(target_arch = "x86_64")]
    const IS_BATCHED: bool;

    /// The function. It must be `#[inline(always)]`, see [`kernel!`].
    fn run<V: Simd, W: Batch<Part = V>>(arguments: A) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel<A>, A>(arguments: A) -> K::Output {
    align_stack();
    K::run::<Avx2, Avx2>(arguments)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512vl")]
fn run_avx512<K: Kernel<A>, A>(arguments: A) -> K::Output {
    align_stack();
    K::run::<Avx2, Avx512>(arguments)
}

/// Aligns the stack of the function that this is inlined into to cache lines. Otherwise it has the alignment of the caller, 16
/// bytes, and half of the spilled registers lie across two lines.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn align_stack() {
    #[repr(align(64))]
    struct Line(#[expect(dead_code, reason = "only its alignment is used")] [u8; 64]);

    std::hint::black_box(&std::mem::MaybeUninit::<Line>::uninit());
}

/// Defines `fn name(isa, args…)` with a body that is generic over the vector type `V`, and compiled once for each instruction
/// set. With `V: Simd in W: Batch` the body can also use `W`, as many vectors as fill a register.
///
/// Every generic function that the body calls must be `#[inline(always)]`: a function of its own would be compiled without the
/// instructions.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$v:ident: Simd in $w:ident: Batch $($rest:tt)*
    ) => {
        $crate::simd::kernel! { @define true; $(#[$meta])* $vis fn $name<$v, $w $($rest)* }
    };
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$v:ident: Simd $($rest:tt)*
    ) => {
        $crate::simd::kernel! { @define false; $(#[$meta])* $vis fn $name<$v, Unused $($rest)* }
    };
    (
        @define $is_batched:literal;
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<
            $v:ident, $w:ident $(, const $size:ident: usize)? $(; $element:ident: Element)?
        >(
            $($arg:ident: $type:ty),* $(,)?
        )
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$($element: $crate::simd::convert::Element,)? $(const $size: usize)?>(
            isa: $crate::simd::Isa,
            $($arg: $type),*
        ) $(-> $ret)? {
            struct Body<$($element,)? $(const $size: usize)?>($(std::marker::PhantomData<$element>)?);

            impl<$($element: $crate::simd::convert::Element,)? $(const $size: usize)?>
                $crate::simd::dispatch::Kernel<($($type,)*)> for Body<$($element,)? $($size)?>
            {
                type Output = $crate::simd::dispatch::output!($($ret)?);

                #[cfg(target_arch = "x86_64")]
                const IS_BATCHED: bool = $is_batched;

                #[inline(always)]
                fn run<V: $crate::simd::vector::Simd, W: $crate::simd::batch::Batch<Part = V>>(
                    ($($arg,)*): ($($type,)*),
                ) $(-> $ret)? {
                    // A function of its own: its arguments do not alias, which fields of a tuple do not say.
                    body::<V, W, $($element,)? $($size)?>($($arg),*)
                }
            }

            #[inline(always)]
            #[allow(
                clippy::allow_attributes,
                clippy::extra_unused_type_parameters,
                reason = "a body that names no vector is still compiled with the instructions of `isa`"
            )]
            fn body<
                $v: $crate::simd::vector::Simd,
                $w: $crate::simd::batch::Batch<Part = $v>,
                $($element: $crate::simd::convert::Element,)?
                $(const $size: usize)?
            >($($arg: $type),*) $(-> $ret)? $body

            isa.run::<Body<$($element,)? $($size)?>, _>(($($arg,)*))
        }
    };
}
pub(crate) use kernel;

/// The type that a function returns, `()` if it names none.
macro_rules! output {
    () => {
        ()
    };
    ($ret:ty) => {
        $ret
    };
}
pub(crate) use output;
