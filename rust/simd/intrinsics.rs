//! How the folders of instruction sets wrap intrinsics.

/// Defines intrinsics of `std::arch::$arch` that take and give registers as safe functions: `(arguments) -> result: names`. With
/// `imm type` they have an immediate operand.
///
/// An intrinsic is unsafe to call where the compiler does not know that the CPU has the instruction. The module that uses this
/// must be private to the methods of a vector type that the CPU has the instructions of, see [`dispatch`](super::dispatch).
/// (A safe `#[target_feature]` function would need no wrapper, but cannot be forced inline, and a kernel of calls is no
/// kernel.)
macro_rules! intrinsics {
    ($arch:ident: $($args:tt -> $ret:ty: $($name:ident),*;)*) => {
        $($($crate::simd::intrinsics::intrinsics! { @define $arch $name $args -> $ret })*)*
    };
    (@define $arch:ident $name:ident (imm $immediate:ty, $($arg:ident: $type:ty),*) -> $ret:ty) => {
        #[inline(always)]
        pub(super) fn $name<const IMM: $immediate>($($arg: $type),*) -> $ret {
            // SAFETY: the CPU has the instruction, see the module that uses this; no memory is accessed.
            unsafe { std::arch::$arch::$name::<IMM>($($arg),*) }
        }
    };
    (@define $arch:ident $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty) => {
        #[inline(always)]
        pub(super) fn $name($($arg: $type),*) -> $ret {
            // SAFETY: the CPU has the instruction, see the module that uses this; no memory is accessed.
            unsafe { std::arch::$arch::$name($($arg),*) }
        }
    };
}
pub(super) use intrinsics;
