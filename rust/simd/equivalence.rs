//! Every operation of [`Simd`](super::vector::Simd) gives the same bits on all instruction sets of this CPU.

use half::{bf16, f16};

use super::batch::MAX_PARTS;
use super::convert::{CHUNK, Element};
use super::vector::{BAND_ROWS, Column};
use super::{Isa, kernel};
use crate::dtype::Float;

/// Numbers of every kind, infinities and NaNs.
const VALUES: [f32; 17] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.5,
    2.5,
    1e-45,
    -1e-40,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::from_bits(u32::MAX),
    255.0,
    254.5,
    1e-7,
];

/// The bit patterns of the lanes, with every NaN mapped to one.
fn bits(lanes: Column) -> [u32; BAND_ROWS] {
    lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
}

kernel! {
    /// The results of every operation on two vectors.
    fn results<V: Simd>(a: Column, b: Column) -> Vec<[u32; BAND_ROWS]> {
        let (x, y, third) = (V::load(a), V::load(b), b[3]);
        let (zero, max) = (V::splat(0.0), V::splat(255.0));
        let clamped = x.clamp(max);
        // Numbers other than −0: which zero is the least is unspecified.
        let a = x.max(V::splat(f32::MIN)).add(zero);
        let b = y.max(V::splat(f32::MIN)).add(zero);
        let power = x.clamp(V::splat(253.0)).round_small().sub(V::splat(126.0));
        let masks = [x.lt(y), x.lt(x), zero.lt(clamped.add(max))];
        let whether = masks.map(|mask| f32::from(u8::from(V::all(mask))));
        let results = [
            x.add(y),
            x.sub(y),
            x.mul(y),
            x.div(y),
            x.mul_add(y, V::splat(third)),
            x.mul_add(x, y),
            x.min(y),
            x.max(y),
            x.abs(),
            x.select(masks[0], y),
            V::load([whether[0], whether[1], whether[2], 0.0, 0.0, 0.0, 0.0, 0.0]),
            clamped,
            clamped.round_small(),
            zero.sub(clamped).round_small(),
            x.code(max),
            x.abs().code_nonneg(max),
            clamped.min_positive(y.clamp(max)),
            clamped.fused_code(V::splat(0.37), V::splat(93.0).code_limit()),
            power.power_of_two(),
            V::from_bytes(clamped.round_small().to_bytes()),
            V::splat(third),
            x.round_ties_even(),
            x.round_to(Float::BF16),
            x.round_to(Float::F16),
            x.round_to(Float::F32),
            x.other_neighbour(Float::BF16),
            x.other_neighbour(Float::F16),
            x.other_neighbour(Float::F32),
            V::reduce_min([a, b, clamped, a, b, clamped, a, b]),
            V::reduce_max([a, b, clamped, a, b, clamped, a, b]),
        ];
        results.map(|result| bits(result.store())).to_vec()
    }
}

kernel! {
    /// The results of arithmetic on the pairs (`a`, `b`) and (`b`, `b`), in one batch or one after the other.
    fn batch_results<V: Simd in W: Batch>(a: Column, b: Column) -> [Vec<[u32; BAND_ROWS]>; MAX_PARTS] {
        let mut found = [Vec::new(), Vec::new()];
        for (at, found) in found.iter_mut().enumerate() {
            let parts = [V::load(a), V::load(b)];
            let (x, part) = if W::PARTS == 1 { (W::concat(&parts[at..]), 0) } else { (W::concat(&parts), at) };
            let (y, max) = (W::broadcast(b), W::splat(255.0));
            let results = [
                x.add(y),
                x.sub(y),
                x.mul(y),
                x.div(y),
                x.mul_add(y, W::splat(b[3])),
                x.min(y),
                x.max(y),
                x.round_ties_even(),
                x.clamp(max).round_small(),
                x.clamp(max),
                x.code(max),
                x.max(W::splat(0.0)).code_nonneg(max),
                x.clamp(max).min_positive(y.clamp(max)),
                x.clamp(max).fused_code(W::splat(0.37), W::splat(93.0).code_limit()),
                x.round_to(Float::BF16),
                x.round_to(Float::F16),
                x.round_to(Float::F32),
                // A single vector fills all parts.
                W::concat(&parts[at..=at]).sub(y),
            ];
            found.extend(results.map(|result| bits(result.extract(part).store())));
        }
        found
    }
}

fn assert_alike(a: Column, b: Column) {
    let portable = results(Isa::PORTABLE, a, b);
    let batched = batch_results(Isa::PORTABLE, a, b);
    for isa in Isa::available() {
        for (at, (found, portable)) in results(isa, a, b).iter().zip(&portable).enumerate() {
            assert_eq!(found, portable, "{at}, {isa:?}: {a:?} {b:?}");
        }
        assert_eq!(batch_results(isa, a, b), batched, "{isa:?}: {a:?} {b:?}");
    }
}

#[test]
fn every_operation_gives_the_bits_of_the_portable_one() {
    for at in 0..VALUES.len() {
        for by in 0..VALUES.len() {
            let a: Column = std::array::from_fn(|lane| VALUES[(at + lane) % VALUES.len()]);
            let b: Column = std::array::from_fn(|lane| VALUES[(by + 3 * lane) % VALUES.len()]);
            assert_alike(a, b);
        }
    }
}

#[test]
fn every_operation_gives_the_bits_of_the_portable_one_on_floats_of_every_size() {
    let mut state = 1_u64;
    let mut any = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = f32::from_bits((state >> 32) as u32);
        // Quiet NaNs only, as arithmetic returns them.
        if value.is_nan() { f32::from_bits(value.to_bits() | 0x0040_0000) } else { value }
    };
    // Near binary16 numbers, and halfway between two numbers of each type.
    let near = |value: f32, at: usize| match at % 4 {
        0 => value,
        1 => f32::from_bits(value.to_bits() & 0x83ff_ffff | 0x3800_0000),
        2 => f32::from_bits(value.to_bits() & 0xffff_8000 | 0x0000_8000),
        _ => f32::from_bits(value.to_bits() & 0x87ff_f000 | 0x3800_1000),
    };
    for at in 0..20_000 {
        let [a, b]: [Column; 2] = std::array::from_fn(|_| std::array::from_fn(|_| near(any(), at)));
        assert_alike(a, b);
    }
}

kernel! {
    fn power_of_two<V: Simd>(n: f32) -> Column {
        V::splat(n).power_of_two().store()
    }
}

kernel! {
    fn fused<V: Simd>(a: f32, b: f32, c: f32) -> Column {
        V::splat(a).mul_add(V::splat(b), V::splat(c)).store()
    }
}

#[test]
fn powers_of_two_are_exact_and_fused_products_are_rounded_once() {
    for isa in Isa::available() {
        for n in -126_i16..=127 {
            let power = f64::from_bits((i64::from(n) + 1023).cast_unsigned() << 52);
            assert_eq!(power_of_two(isa, n.into()).map(f64::from), [power; BAND_ROWS]);
        }
        // Rounded twice it would be 0.
        let (x, square) = (1.0 + f32::EPSILON, 1.0 + 2.0 * f32::EPSILON);
        assert_eq!(fused(isa, x, x, -square), [f32::EPSILON * f32::EPSILON; BAND_ROWS]);
    }
}

kernel! {
    /// Elements, rounded to bytes.
    fn bytes<V: Simd; T: Element>(of: &[T; CHUNK], max: u8) -> [u8; CHUNK] {
        V::round_to_bytes(T::widen(of), max)
    }
}

#[test]
fn bytes_keep_their_order_and_their_limit() {
    let values: [f32; CHUNK] = std::array::from_fn(|at| (at * 7) as f32 + if at % 3 == 0 { 0.5 } else { 0.25 });
    let expected: [u8; CHUNK] = std::array::from_fn(|at| (at * 7) as u8 + u8::from(at % 3 == 0 && at % 2 == 1));
    let (halves, brain) = (values.map(f16::from_f32), values.map(bf16::from_f32));
    let large = values.map(|value| if value < 100.0 { value } else { value * 20_000.0 });
    for isa in Isa::available() {
        for max in [255, 63] {
            let expected = expected.map(|byte| byte.min(max));
            assert_eq!(bytes::<f32>(isa, &values, max), expected);
            assert_eq!(bytes::<f16>(isa, &halves, max), expected);
            assert_eq!(bytes::<bf16>(isa, &brain, max), bytes::<bf16>(Isa::PORTABLE, &brain, max));
            let clamped = std::array::from_fn(|at| if large[at] < 100.0 { expected[at] } else { max });
            assert_eq!(bytes::<f32>(isa, &large, max), clamped);
        }
    }
}

kernel! {
    /// The least and the greatest number of each group.
    fn ranges<V: Simd; T: Element>(groups: &[[T; CHUNK]; BAND_ROWS]) -> (Column, Column) {
        let (low, high) = T::ranges::<V, CHUNK>(groups);
        (low.store(), high.store())
    }
}

/// Checks on all instruction sets the ranges of `values`, stored as each type.
fn check_ranges(values: &[[f32; CHUNK]; BAND_ROWS]) {
    fn check<T: Element>(groups: &[[T; CHUNK]; BAND_ROWS], value: fn(T) -> f32) {
        let least = groups.map(|group| group.into_iter().map(value).fold(f32::INFINITY, f32::min));
        let most = groups.map(|group| group.into_iter().map(value).fold(f32::NEG_INFINITY, f32::max));
        for isa in Isa::available() {
            assert_eq!(ranges::<T>(isa, groups), (least, most), "{isa:?}");
        }
    }
    check(values, |value| value);
    check(&values.map(|group| group.map(bf16::from_f32)), bf16::to_f32);
    check(&values.map(|group| group.map(f16::from_f32)), f16::to_f32);
}

#[test]
fn ranges_are_those_of_the_numbers() {
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(state.to_le_bytes()[3]) / 16.0 - 8.0
    };
    // Both signs, as in weights; then one group without negative numbers, without positive ones, or with zeros of either sign.
    for odd in [None, Some([0.0, 8.0]), Some([-8.0, -0.5]), Some([0.0, 0.0]), Some([-0.0, 1.0]), Some([-0.0, -0.0])] {
        for at in 0..BAND_ROWS {
            let mut groups = [[0.0; CHUNK]; BAND_ROWS];
            groups.iter_mut().flatten().for_each(|value| *value = number());
            if let Some([low, high]) = odd {
                groups[at].iter_mut().for_each(|value| *value = value.clamp(low, high));
                groups[at][at] = low;
            }
            check_ranges(&groups);
        }
    }
    // Each number in each place.
    for value in VALUES.into_iter().filter(|value| !value.is_nan()) {
        for at in 0..CHUNK {
            let mut group = [0.25; CHUNK];
            group[(at + 1) % CHUNK] = -0.25;
            let mut groups = [group; BAND_ROWS];
            groups[at % BAND_ROWS][at] = value;
            check_ranges(&groups);
        }
    }
}

kernel! {
    fn transpose_u8<V: Simd>(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        V::transpose_u8(rows)
    }
}

kernel! {
    fn transpose_bf16<V: Simd>(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::transpose_bf16(rows)
    }
}

kernel! {
    fn transpose_f32<V: Simd>(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::transpose_f32(rows)
    }
}

kernel! {
    fn from_f16<V: Simd>(of: [f16; BAND_ROWS]) -> Column {
        V::from_f16(of).store()
    }
}

#[test]
fn halves_are_widened_exactly() {
    for first in (0..=u16::MAX).step_by(BAND_ROWS) {
        let halves: [f16; BAND_ROWS] = std::array::from_fn(|at| f16::from_bits(first + at as u16));
        for isa in Isa::available() {
            assert_eq!(bits(from_f16(isa, halves)), bits(halves.map(f16::to_f32)), "{isa:?}: {halves:?}");
        }
    }
}

#[test]
fn transposes_exchange_rows_and_columns() {
    let rows: [[u8; BAND_ROWS]; BAND_ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|at| (row * 31 + at * 7) as u8));
    let wide: [[u16; BAND_ROWS]; BAND_ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|at| (row * 8 + at) as u16 * 521));
    for isa in Isa::available() {
        let (bytes, halves) = (transpose_u8(isa, rows), transpose_bf16(isa, wide));
        let numbers = transpose_f32(isa, rows.map(|row| row.map(f32::from)));
        for row in 0..BAND_ROWS {
            for column in 0..BAND_ROWS {
                assert_eq!(bytes[column][row], rows[row][column], "{isa:?}: [{row}, {column}]");
                let bits = u32::from(wide[row][column]) << 16;
                assert_eq!(halves[column][row].to_bits(), bits, "{isa:?}: [{row}, {column}]");
                assert_eq!(numbers[column][row], f32::from(rows[row][column]), "{isa:?}: [{row}, {column}]");
            }
        }
    }
}

kernel! {
    fn pack_bits<V: Simd, const BITS: usize>(codes: &[u8; CHUNK]) -> [u8; CHUNK] {
        let mut out = [0; CHUNK];
        V::pack_bits::<BITS>(codes, &mut out);
        out
    }
}

kernel! {
    fn pack_nibbles<V: Simd>(codes: &[u8; 2 * CHUNK]) -> [u8; CHUNK] {
        V::pack_nibbles(codes)
    }
}

#[test]
fn codes_are_packed_alike() {
    fn check<const BITS: usize>() {
        for seed in 0..64 {
            let codes = std::array::from_fn(|at| ((at * 73 + seed * 37) as u8) >> (8 - BITS));
            let portable = pack_bits::<BITS>(Isa::PORTABLE, &codes);
            for isa in Isa::available() {
                let found = pack_bits::<BITS>(isa, &codes);
                assert_eq!(found[..CHUNK / 8 * BITS], portable[..CHUNK / 8 * BITS], "{BITS}, {isa:?}: {codes:?}");
            }
        }
    }
    check::<2>();
    check::<3>();
    check::<4>();
    check::<5>();
    check::<6>();
    check::<8>();
}

#[test]
fn nibbles_are_packed_as_codes_of_four_bits() {
    for seed in 0..64 {
        let codes: [u8; 2 * CHUNK] = std::array::from_fn(|at| ((at * 73 + seed * 37) as u8) >> 4);
        let [first, second] = codes.as_chunks::<CHUNK>().0 else { unreachable!("two chunks") };
        let expected = [first, second].map(|codes| pack_bits::<4>(Isa::PORTABLE, codes));
        let expected = [&expected[0][..CHUNK / 2], &expected[1][..CHUNK / 2]].concat();
        for isa in Isa::available() {
            assert_eq!(pack_nibbles(isa, &codes)[..], expected, "{isa:?}: {codes:?}");
        }
    }
}

#[test]
#[cfg(target_arch = "aarch64")]
fn neon_is_what_is_compared() {
    assert_eq!(Isa::detect().name(), "neon");
}
