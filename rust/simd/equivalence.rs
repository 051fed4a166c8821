//! Every operation of [`Vector`](super::vector::Vector), by plain Rust and by the best instruction set there is: the same bits.

use half::{bf16, f16};

use super::Isa;
use super::paired::MOST_PARTS;
use super::vector::{BAND_ROWS, BYTES, Column, Element};
use crate::dtype::Float;

/// Numbers of every kind, and what is none.
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

/// The bits of a lane; all that is no number alike.
fn bits(lanes: Column) -> [u32; BAND_ROWS] {
    lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
}

kernel! {
    /// What every operation on lanes gives of a pair.
    fn results<V: Vector>(a: Column, b: Column) -> Vec<[u32; BAND_ROWS]> {
        let (x, y, third) = (V::load(a), V::load(b), b[3]);
        let (zero, max) = (V::splat(0.0), V::splat(255.0));
        let held = x.clamp(max);
        // Numbers, and no −0: which of two zeros is the least is not said.
        let a = x.max(V::splat(f32::MIN)).add(zero);
        let b = y.max(V::splat(f32::MIN)).add(zero);
        let power = x.clamp(V::splat(253.0)).round().sub(V::splat(126.0));
        let masks = [x.less(y), x.less(x), zero.less(held.add(max))];
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
            x.where_or(masks[0], y),
            V::load([whether[0], whether[1], whether[2], 0.0, 0.0, 0.0, 0.0, 0.0]),
            held,
            held.round(),
            zero.sub(held).round(),
            x.code(max),
            x.abs().capped_code(max),
            held.min_by_bits(y.clamp(max)),
            held.product_code(V::splat(0.37), V::splat(93.0).cap()),
            power.power_of_two(),
            V::from_bytes(held.round().bytes()),
            V::splat(third),
            x.nearest_integer(),
            x.nearest(Float::BF16),
            x.nearest(Float::F16),
            x.nearest(Float::F32),
            x.other_side(Float::BF16),
            x.other_side(Float::F16),
            x.other_side(Float::F32),
            V::least([a, b, held, a, b, held, a, b]),
            V::greatest([a, b, held, a, b, held, a, b]),
        ];
        results.map(|result| bits(result.store())).to_vec()
    }
}

kernel! {
    /// What arithmetic gives of `a` with `b` beside `b` with itself, or of each alone.
    fn side_by_side<V: Vector in W: Wide>(a: Column, b: Column) -> [Vec<[u32; BAND_ROWS]>; MOST_PARTS] {
        let mut found = [Vec::new(), Vec::new()];
        for (at, found) in found.iter_mut().enumerate() {
            let parts = [V::load(a), V::load(b)];
            let (x, part) = if W::PARTS == 1 { (W::beside(&parts[at..]), 0) } else { (W::beside(&parts), at) };
            let (y, max) = (W::each(b), W::splat(255.0));
            let results = [
                x.add(y),
                x.sub(y),
                x.mul(y),
                x.div(y),
                x.mul_add(y, W::splat(b[3])),
                x.min(y),
                x.max(y),
                x.nearest_integer(),
                x.clamp(max).round(),
                x.clamp(max),
                x.code(max),
                x.max(W::splat(0.0)).capped_code(max),
                x.clamp(max).min_by_bits(y.clamp(max)),
                x.clamp(max).product_code(W::splat(0.37), W::splat(93.0).cap()),
                x.nearest(Float::BF16),
                x.nearest(Float::F16),
                x.nearest(Float::F32),
                // One that is given alone is all there is.
                W::beside(&parts[at..=at]).sub(y),
            ];
            found.extend(results.map(|result| bits(result.part(part).store())));
        }
        found
    }
}

fn is_alike(a: Column, b: Column) {
    let portable = results(Isa::PORTABLE, a, b);
    let beside = side_by_side(Isa::PORTABLE, a, b);
    for isa in Isa::available() {
        for (at, (found, portable)) in results(isa, a, b).iter().zip(&portable).enumerate() {
            assert_eq!(found, portable, "{at}, {isa:?}: {a:?} {b:?}");
        }
        assert_eq!(side_by_side(isa, a, b), beside, "{isa:?}: {a:?} {b:?}");
    }
}

#[test]
fn every_operation_gives_the_bits_of_the_portable_one() {
    for at in 0..VALUES.len() {
        for by in 0..VALUES.len() {
            let a: Column = std::array::from_fn(|lane| VALUES[(at + lane) % VALUES.len()]);
            let b: Column = std::array::from_fn(|lane| VALUES[(by + 3 * lane) % VALUES.len()]);
            is_alike(a, b);
        }
    }
}

#[test]
fn every_operation_gives_the_bits_of_the_portable_one_on_floats_of_every_size() {
    let mut state = 1_u64;
    let mut any = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = f32::from_bits((state >> 32) as u32);
        // What is no number is such as arithmetic gives.
        if value.is_nan() { f32::from_bits(value.to_bits() | 0x0040_0000) } else { value }
    };
    // Next to what binary16 holds, and in the middle of two of each type.
    let near = |value: f32, at: usize| match at % 4 {
        0 => value,
        1 => f32::from_bits(value.to_bits() & 0x83ff_ffff | 0x3800_0000),
        2 => f32::from_bits(value.to_bits() & 0xffff_8000 | 0x0000_8000),
        _ => f32::from_bits(value.to_bits() & 0x87ff_f000 | 0x3800_1000),
    };
    for at in 0..20_000 {
        let [a, b]: [Column; 2] = std::array::from_fn(|_| std::array::from_fn(|_| near(any(), at)));
        is_alike(a, b);
    }
}

kernel! {
    fn power_of_two<V: Vector>(n: f32) -> Column {
        V::splat(n).power_of_two().store()
    }
}

kernel! {
    fn fused<V: Vector>(a: f32, b: f32, c: f32) -> Column {
        V::splat(a).mul_add(V::splat(b), V::splat(c)).store()
    }
}

#[test]
fn powers_of_two_and_fused_products_are_what_they_are() {
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
    /// Elements, as the nearest bytes.
    fn bytes<V: Vector; T: Element>(of: &[T; BYTES], max: u8) -> [u8; BYTES] {
        V::nearest_bytes(T::widened(of), max)
    }
}

#[test]
fn bytes_keep_their_order_and_their_limit() {
    let values: [f32; BYTES] = std::array::from_fn(|at| (at * 7) as f32 + if at % 3 == 0 { 0.5 } else { 0.25 });
    let expected: [u8; BYTES] = std::array::from_fn(|at| (at * 7) as u8 + u8::from(at % 3 == 0 && at % 2 == 1));
    let (halves, brain) = (values.map(f16::from_f32), values.map(bf16::from_f32));
    let large = values.map(|value| if value < 100.0 { value } else { value * 20_000.0 });
    for isa in Isa::available() {
        for max in [255, 63] {
            let expected = expected.map(|byte| byte.min(max));
            assert_eq!(bytes::<f32>(isa, &values, max), expected);
            assert_eq!(bytes::<f16>(isa, &halves, max), expected);
            assert_eq!(bytes::<bf16>(isa, &brain, max), bytes::<bf16>(Isa::PORTABLE, &brain, max));
            let held = std::array::from_fn(|at| if large[at] < 100.0 { expected[at] } else { max });
            assert_eq!(bytes::<f32>(isa, &large, max), held);
        }
    }
}

kernel! {
    /// Groups of numbers, as their least and greatest ones.
    fn ranges<V: Vector; T: Element>(groups: &[[T; BYTES]; BAND_ROWS]) -> (Column, Column) {
        let (low, high) = T::ranges::<V, BYTES>(groups);
        (low.store(), high.store())
    }
}

/// Whether all levels find the ranges of `values`, stored as each type.
fn have_ranges(values: &[[f32; BYTES]; BAND_ROWS]) {
    fn check<T: Element>(groups: &[[T; BYTES]; BAND_ROWS], value: fn(T) -> f32) {
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
    // Both signs, as weights are; then one of the groups without negative ones, without others, of zeros of either sign.
    for odd in [None, Some([0.0, 8.0]), Some([-8.0, -0.5]), Some([0.0, 0.0]), Some([-0.0, 1.0]), Some([-0.0, -0.0])] {
        for at in 0..BAND_ROWS {
            let mut groups = [[0.0; BYTES]; BAND_ROWS];
            groups.iter_mut().flatten().for_each(|value| *value = number());
            if let Some([low, high]) = odd {
                groups[at].iter_mut().for_each(|value| *value = value.clamp(low, high));
                groups[at][at] = low;
            }
            have_ranges(&groups);
        }
    }
    // Each number in each place, of every size.
    for value in VALUES.into_iter().filter(|value| !value.is_nan()) {
        for at in 0..BYTES {
            let mut group = [0.25; BYTES];
            group[(at + 1) % BYTES] = -0.25;
            let mut groups = [group; BAND_ROWS];
            groups[at % BAND_ROWS][at] = value;
            have_ranges(&groups);
        }
    }
}

kernel! {
    fn transposed<V: Vector>(rows: [[u8; BAND_ROWS]; BAND_ROWS]) -> [[u8; BAND_ROWS]; BAND_ROWS] {
        V::transposed(rows)
    }
}

kernel! {
    fn columns<V: Vector>(rows: [[u16; BAND_ROWS]; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::columns(rows)
    }
}

kernel! {
    fn turned<V: Vector>(rows: [Column; BAND_ROWS]) -> [Column; BAND_ROWS] {
        V::turned(rows)
    }
}

kernel! {
    fn from_halves<V: Vector>(of: [f16; BAND_ROWS]) -> Column {
        V::from_halves(of).store()
    }
}

#[test]
fn halves_are_widened_exactly() {
    for first in (0..=u16::MAX).step_by(BAND_ROWS) {
        let halves: [f16; BAND_ROWS] = std::array::from_fn(|at| f16::from_bits(first + at as u16));
        for isa in Isa::available() {
            assert_eq!(bits(from_halves(isa, halves)), bits(halves.map(f16::to_f32)), "{isa:?}: {halves:?}");
        }
    }
}

#[test]
fn columns_are_those_of_the_rows() {
    let rows: [[u8; BAND_ROWS]; BAND_ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|at| (row * 31 + at * 7) as u8));
    let wide: [[u16; BAND_ROWS]; BAND_ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|at| (row * 8 + at) as u16 * 521));
    for isa in Isa::available() {
        let (turned, lanes) = (transposed(isa, rows), columns(isa, wide));
        let numbers = self::turned(isa, rows.map(|row| row.map(f32::from)));
        for row in 0..BAND_ROWS {
            for column in 0..BAND_ROWS {
                assert_eq!(turned[column][row], rows[row][column], "{isa:?}: [{row}, {column}]");
                let bits = u32::from(wide[row][column]) << 16;
                assert_eq!(lanes[column][row].to_bits(), bits, "{isa:?}: [{row}, {column}]");
                assert_eq!(numbers[column][row], f32::from(rows[row][column]), "{isa:?}: [{row}, {column}]");
            }
        }
    }
}

kernel! {
    fn squeezed<V: Vector, const BITS: usize>(codes: &[u8; BYTES]) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        V::squeeze::<BITS>(codes, &mut out);
        out
    }
}

#[test]
fn codes_are_squeezed_alike() {
    fn is_alike<const BITS: usize>() {
        for seed in 0..64 {
            let codes = std::array::from_fn(|at| ((at * 73 + seed * 37) as u8) >> (8 - BITS));
            let portable = squeezed::<BITS>(Isa::PORTABLE, &codes);
            for isa in Isa::available() {
                let found = squeezed::<BITS>(isa, &codes);
                assert_eq!(found[..BYTES / 8 * BITS], portable[..BYTES / 8 * BITS], "{BITS}, {isa:?}: {codes:?}");
            }
        }
    }
    is_alike::<2>();
    is_alike::<3>();
    is_alike::<4>();
    is_alike::<5>();
    is_alike::<6>();
    is_alike::<8>();
}

#[test]
#[cfg(target_arch = "aarch64")]
fn what_is_compared_is_neon() {
    assert_eq!(Isa::detect().name(), "neon");
}
