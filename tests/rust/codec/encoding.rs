//! The encoder: writes the bytes of `mx.quantize`, the same bits with every ISA, and no larger errors with more effort.

use std::collections::BTreeSet;

use crate::band;
use crate::codec::Effort;
use crate::codec::affine::encoder::{Encoded, GridEncoder};
use crate::codec::affine::pack;
use crate::codec::affine::{Affine, BITS, GROUP_SIZES};
use crate::codec::{Channels, RowError};
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};
use proptest::prelude::*;

use crate::tests::support::{self, Numbers, data};

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

fn encoder(effort: Effort) -> GridEncoder {
    GridEncoder { isa: Isa::detect(), effort }
}

/// The rows of a band as stored, one after the other.
fn rows(store: Float, band: &[Column]) -> Vec<u8> {
    let mut stored = Vec::new();
    for row in 0..BAND_ROWS {
        store.append(&band.iter().map(|lanes| lanes[row]).collect::<Vec<_>>(), &mut stored);
    }
    stored
}

fn encode(encoder: GridEncoder, scheme: Affine, store: Float, band: &[Column], k: &[f32]) -> Encoded {
    let mut encoded = Encoded::default();
    encoder.encode(scheme, store, (&rows(store, band), band), k, &mut encoded);
    encoded
}

/// Packed codes, scales and biases of a matrix, as stored.
fn stored(source: &[u8], cols: usize, store: Float, scheme: Affine) -> [Vec<u8>; 3] {
    // The bytes of the file may be unaligned.
    let mut aligned = vec![0_u64; source.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut aligned)[..source.len()].copy_from_slice(source);
    let source = &bytemuck::cast_slice::<u64, u8>(&aligned)[..source.len()];

    let mut parts = [const { Vec::new() }; 3];
    let row_bytes = cols * store.bytes();
    for rows in source.chunks(BAND_ROWS * row_bytes) {
        let (mut encoded, count) = (Encoded::default(), rows.len() / row_bytes);
        encoder(Effort::Fast).encode(scheme, store, (rows, &[]), &vec![1.0; cols], &mut encoded);
        let groups = cols / scheme.group_size();
        pack::pack(Isa::detect(), scheme.bits(), &encoded.codes[..count * cols], &mut parts[0]);
        store.append(&encoded.scales[..count * groups], &mut parts[1]);
        store.append(&encoded.biases[..count * groups], &mut parts[2]);
    }
    parts
}

/// Compares the results `prefix` of the golden file `name` with the results for its tensor `input`.
fn is_golden(name: &str, input: &str, prefix: &str, scheme: Affine) {
    let bytes = std::fs::read(data(name)).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let input = golden.tensor(input).unwrap();
    let store = Float::of(Dtype::parse(&input.dtype().to_string()).unwrap()).unwrap();
    let ours = stored(input.data(), *input.shape().last().unwrap(), store, scheme);
    for (part, ours) in ["weight", "scales", "biases"].iter().zip(ours) {
        assert_eq!(golden.tensor(&format!("{prefix}.{part}")).unwrap().data(), ours, "{prefix}.{part}");
    }
}

#[test]
fn fast_gives_the_bytes_of_mx_quantize() {
    let bytes = std::fs::read(data("mx_quantize.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = BTreeSet::new();
    for name in golden.names() {
        let Some(prefix) = name.strip_suffix(".biases") else { continue };
        let [dtype, bits, group_size] = prefix.split('.').collect::<Vec<_>>().try_into().unwrap();
        let scheme = Affine::new(bits[1..].parse().unwrap(), group_size[1..].parse().unwrap()).unwrap();
        is_golden("mx_quantize.safetensors", &format!("in.{dtype}"), prefix, scheme);
        seen.insert((dtype, scheme));
    }
    assert_eq!(seen.len(), FLOATS.len() * BITS.len() * GROUP_SIZES.len());
}

#[test]
fn fast_gives_the_bytes_of_mx_quantize_on_a_stack_of_matrices() {
    for scheme in ["b3.g32", "b4.g64", "b6.g128"] {
        let (bits, group_size) = scheme.split_once(".g").unwrap();
        let affine = Affine::new(bits[1..].parse().unwrap(), group_size.parse().unwrap()).unwrap();
        is_golden("mx_quantize_3d.safetensors", "in.bf16", scheme, affine);
    }
}

/// The distribution of a row of weights.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Normal,
    Uniform,
    Positive,
    Negative,
    Constant,
    Zero,
    Denormal,
    Outlier,
    Alternating,
    Sparse,
    Steps,
}

const KINDS: [Kind; 11] = [
    Kind::Normal,
    Kind::Uniform,
    Kind::Positive,
    Kind::Negative,
    Kind::Constant,
    Kind::Zero,
    Kind::Denormal,
    Kind::Outlier,
    Kind::Alternating,
    Kind::Sparse,
    Kind::Steps,
];

impl Kind {
    /// Element `column` of a row of weights with magnitude `size`.
    fn element(self, column: usize, size: f64, numbers: &mut Numbers) -> f64 {
        match self {
            Self::Uniform => size * (2.0 * numbers.unit() - 1.0),
            Self::Positive => size * (1.0 + numbers.unit()),
            Self::Negative => -size * (1.0 + numbers.unit()),
            Self::Constant => size,
            Self::Zero => 0.0,
            Self::Denormal => f64::from(f32::from_bits(numbers.below(1 << 23) as u32)),
            Self::Outlier if column % 32 == 7 => 50.0 * size * if numbers.unit() < 0.5 { -1.0 } else { 1.0 },
            Self::Outlier => 0.1 * size * numbers.normal(),
            Self::Alternating => size * if column.is_multiple_of(2) { -1.0 } else { 1.0 },
            Self::Sparse if numbers.unit() < 0.9 => 0.0,
            Self::Sparse | Self::Normal => size * numbers.normal(),
            Self::Steps => size * numbers.below(16) as f64,
        }
    }
}

/// A band with its element type and the importance of its columns.
#[derive(Clone, Debug)]
struct Case {
    float: Float,
    scheme: Affine,
    band: Vec<Column>,
    k: Vec<f32>,
}

/// Bands of one to three groups. Each row has its own distribution and a magnitude that its element type allows. In
/// half of the bands every row is typical: neither constant nor tiny. (Kernels have a separate path for other rows.)
fn cases() -> impl Strategy<Value = Case> {
    let schemes: Vec<_> = Affine::all().collect();
    let rows = prop::array::uniform8((prop::sample::select(KINDS.as_slice()), 0.0..1.0));
    let which = (any::<bool>(), 0..5, 1..4_usize, any::<u64>());
    (prop::sample::select(FLOATS.as_slice()), prop::sample::select(schemes), rows, which).prop_map(
        |(float, scheme, rows, (is_tame, weighing, groups, seed))| {
            let (mut numbers, cols) = (Numbers(seed), groups * scheme.group_size());
            let mut band = vec![[0.0; BAND_ROWS]; cols];
            // The powers of ten between which the squares of weights of this type are finite and nonzero.
            let (least, most) = match float {
                _ if is_tame => (-3.0, 3.0),
                Float::F16 => (-7.0, 3.0),
                _ => (-25.0, 15.0),
            };
            for (row, (kind, share)) in rows.into_iter().enumerate() {
                let is_odd = matches!(kind, Kind::Constant | Kind::Zero | Kind::Denormal | Kind::Sparse);
                let kind = if is_tame && is_odd { Kind::Normal } else { kind };
                for (column, lanes) in band.iter_mut().enumerate() {
                    let size = crate::math::from_decibels(10.0 * (least + share * (most - least)));
                    let weight = kind.element(column, size, &mut numbers);
                    lanes[row] = float.round(weight as f32);
                }
            }
            let k = (0..cols).map(|column| match weighing {
                0 => 1.0,
                1 => numbers.unit() as f32,
                2 => {
                    if numbers.unit() < 0.5 {
                        0.0
                    } else {
                        numbers.unit() as f32
                    }
                }
                3 => {
                    if column < scheme.group_size() {
                        0.0
                    } else {
                        1.0
                    }
                }
                _ => crate::math::from_decibels(60.0 * numbers.normal()) as f32,
            });
            let k = k.collect();
            Case { float, scheme, band, k }
        },
    )
}

/// All schemes with the group size of `scheme`.
fn alike(scheme: Affine) -> Vec<Affine> {
    Affine::all().filter(|of| of.group_size() == scheme.group_size()).collect()
}

/// Bit patterns of a band's codes, scales and biases.
fn bits(encoded: &Encoded) -> (Vec<u8>, Vec<u32>) {
    (encoded.codes.clone(), encoded.scales.iter().chain(&encoded.biases).map(|value| value.to_bits()).collect())
}

/// The values of row `row`, of values stored in row order.
fn row_of<T>(values: &[T], row: usize) -> &[T] {
    &values[row * values.len() / BAND_ROWS..(row + 1) * values.len() / BAND_ROWS]
}

/// The weights of row `row`, decoded in `f32` as by the runtime.
fn decoded(encoded: &Encoded, scheme: Affine, row: usize) -> impl Iterator<Item = f32> {
    row_of(&encoded.codes, row).iter().enumerate().map(move |(column, &code)| {
        let group = column / scheme.group_size();
        f32::from(code) * row_of(&encoded.scales, row)[group] + row_of(&encoded.biases, row)[group]
    })
}

/// The minimum and maximum error of each row of `stored`, if a weight halfway between two codes, by the scale that it
/// was encoded with, may have either code.
fn with_either_code(case: &Case, scheme: Affine, unrounded: &Encoded, stored: &Encoded) -> [[RowError; BAND_ROWS]; 2] {
    let mut found = [[RowError::default(); BAND_ROWS]; 2];
    for (column, (lanes, &k)) in case.band.iter().zip(&case.k).enumerate() {
        let group = column / scheme.group_size();
        for row in 0..BAND_ROWS {
            let w = f64::from(lanes[row]);
            let grid = |of: &Encoded| [&of.scales, &of.biases].map(|of| row_of(of, row)[group]);
            let ([scale, bias], stored_grid) = (grid(unrounded).map(f64::from), grid(stored));
            let square = |code: f64| {
                let off = f64::from(code as f32 * stored_grid[0] + stored_grid[1]) - w;
                off * off
            };
            let steps = (w - bias) / scale;
            let mut squares = [square(f64::from(row_of(&stored.codes, row)[column])); 2];
            if (steps.fract() - 0.5).abs() < 1e-6 * steps.max(1.0) && steps < f64::from(scheme.max_code()) {
                let [one, other] = [square(steps.floor()), square(steps.ceil())];
                squares = [one.min(other), one.max(other)];
            }
            for (found, square) in found.iter_mut().zip(squares) {
                found[row].weighted += f64::from(k) * square;
                found[row].plain += square;
            }
        }
    }
    found
}

/// Whether errors lie between two others, with tolerance for rounding: of sums, relative to them; of decoded weights,
/// relative to the largest weight; of squares, if they are subnormal in `f32`.
fn are_between(
    found: &[RowError; BAND_ROWS],
    [least, most]: &[[RowError; BAND_ROWS]; 2],
    band: &[Column],
    k: &[f32],
) -> bool {
    let (columns, k_sum): (f64, f64) = (band.len() as f64, k.iter().map(|&k| f64::from(k)).sum());
    (0..BAND_ROWS).all(|row| {
        let greatest = band.iter().map(|lanes| f64::from(lanes[row].abs())).fold(0.0, f64::max);
        let between = |found: f64, least: f64, most: f64, weight: f64| {
            let rounded = 1e-5 * found.sqrt()
                + 0.5 * f64::from(f32::EPSILON) * greatest * weight.sqrt()
                + (1.5e-45 * (columns + weight)).sqrt();
            found == least || (least.sqrt() - rounded <= found.sqrt() && found.sqrt() <= most.sqrt() + rounded)
        };
        between(found[row].weighted, least[row].weighted, most[row].weighted, k_sum)
            && between(found[row].plain, least[row].plain, most[row].plain, columns)
    })
}

proptest! {
    #![proptest_config(support::config(400))]

    #[test]
    fn every_isa_gives_the_same_bits(case in cases()) {
        let Case { float, scheme, band, k } = case;
        let (schemes, channels) = (alike(scheme), Channels::new(&k));
        for effort in [Effort::Fast, Effort::Normal] {
            let plain = GridEncoder { isa: Isa::PORTABLE, effort };
            let by_plain = encode(plain, scheme, float, &band, &k);
            let of_plain = plain.error(scheme, &band, &k, &by_plain);
            let errors = plain.errors(&schemes, float, &band, &channels);
            for isa in Isa::available().skip(1) {
                let best = GridEncoder { isa, effort };
                let by_best = encode(best, scheme, float, &band, &k);
                prop_assert_eq!(bits(&by_best), bits(&by_plain), "{:?}", best);
                for (a, b) in best.error(scheme, &band, &k, &by_best).iter().zip(of_plain) {
                    prop_assert_eq!(a.weighted.to_bits(), b.weighted.to_bits());
                    prop_assert_eq!(a.plain.to_bits(), b.plain.to_bits());
                }
                prop_assert_eq!(&best.errors(&schemes, float, &band, &channels), &errors);
            }
        }
        let (best, plain) = (band::energy(Isa::detect(), &band, &k), band::energy(Isa::PORTABLE, &band, &k));
        for (a, b) in best.iter().zip(plain) {
            prop_assert_eq!(a.weighted.to_bits(), b.weighted.to_bits());
            prop_assert_eq!(a.plain.to_bits(), b.plain.to_bits());
        }
    }

    #[test]
    fn errors_of_all_schemes_equal_those_of_encoding_with_each(case in cases()) {
        let Case { float, scheme, ref band, ref k } = case;
        let (schemes, channels) = (alike(scheme), Channels::new(k));
        for effort in [Effort::Fast, Effort::Normal] {
            let encoder = encoder(effort);
            let all = encoder.errors(&schemes, float, band, &channels);
            prop_assert_eq!(encoder.errors(&schemes[2..3], float, band, &channels)[0], all[2]);
            for (&scheme, found) in schemes.iter().zip(all) {
                let encoded = encode(encoder, scheme, float, band, k);
                if effort == Effort::Normal {
                    prop_assert_eq!(found, encoder.error(scheme, band, k, &encoded), "{}", scheme);
                } else {
                    let unrounded = encode(encoder, scheme, Float::F32, band, k);
                    let limits = with_either_code(&case, scheme, &unrounded, &encoded);
                    prop_assert!(are_between(&found, &limits, band, k), "{}: {:?} {:?}", scheme, found, limits);
                }
            }
        }
    }

    #[test]
    fn normal_is_never_worse_than_fast_in_any_group_as_stored(case in cases()) {
        let Case { float, scheme, band, k } = case;
        for (at, band) in band.chunks(scheme.group_size()).enumerate() {
            let k = &k[at * scheme.group_size()..][..scheme.group_size()];
            let [fast, normal] = [Effort::Fast, Effort::Normal].map(|effort| {
                let encoder = encoder(effort);
                encoder.error(scheme, band, k, &encode(encoder, scheme, float, band, k))
            });
            for row in 0..BAND_ROWS {
                prop_assert!(normal[row].weighted <= fast[row].weighted, "{:?} {:?}", normal[row], fast[row]);
            }
        }
    }

    #[test]
    fn errors_equal_the_sums_over_the_stored_values(case in cases()) {
        let Case { float, scheme, band, k } = case;
        for effort in [Effort::Fast, Effort::Normal] {
            let encoded = encode(encoder(effort), scheme, float, &band, &k);
            let found = encoder(effort).error(scheme, &band, &k, &encoded);
            for row in 0..BAND_ROWS {
                let (mut weighted, mut plain) = (0.0, 0.0);
                for ((lanes, &k), decoded) in band.iter().zip(&k).zip(decoded(&encoded, scheme, row)) {
                    let off = f64::from(decoded) - f64::from(lanes[row]);
                    weighted += f64::from(k) * off * off;
                    plain += off * off;
                }
                // Subnormal squares in `f32` lose bits; all are summed group by group in `f32`.
                let lost = 1.5e-45 * band.len() as f64 * (1.0 + f64::from(k.iter().fold(0.0_f32, |most, &k| most.max(k))));
                let close = |found: f64, naive: f64| naive > 1e37 || (found - naive).abs() <= 2e-5 * naive + lost;
                prop_assert!(close(found[row].weighted, weighted), "{} {weighted}", found[row].weighted);
                prop_assert!(close(found[row].plain, plain), "{} {plain}", found[row].plain);
            }
        }
    }

    #[test]
    fn stored_values_are_exact_in_the_type_and_decode_to_finite_weights(case in cases()) {
        let Case { float, scheme, band, k } = case;
        for effort in [Effort::Fast, Effort::Normal] {
            let encoded = encode(encoder(effort), scheme, float, &band, &k);
            prop_assert!(encoded.codes.iter().all(|&code| code <= scheme.max_code()));
            for stored in encoded.scales.iter().chain(&encoded.biases) {
                prop_assert_eq!(float.round(*stored).to_bits(), stored.to_bits());
            }
            for row in 0..BAND_ROWS {
                prop_assert!(decoded(&encoded, scheme, row).all(f32::is_finite));
            }
        }
    }

    #[test]
    fn a_group_is_encoded_independently_of_its_neighbours(case in cases(), lane in 0..BAND_ROWS) {
        let Case { float, scheme, band, k } = case;
        let size = scheme.group_size();
        for effort in [Effort::Fast, Effort::Normal] {
            let whole = encode(encoder(effort), scheme, float, &band, &k);
            let last = band.len() - size;
            // The row's last group alone, in another lane of an otherwise empty band.
            let alone: Vec<Column> = band[last..].iter().map(|lanes| {
                let mut alone = [0.0; BAND_ROWS];
                alone[(lane + 3) % BAND_ROWS] = lanes[lane];
                alone
            }).collect();
            let alone = encode(encoder(effort), scheme, float, &alone, &k[last..]);
            let other = (lane + 3) % BAND_ROWS;
            prop_assert_eq!(&row_of(&whole.codes, lane)[last..], row_of(&alone.codes, other));
            prop_assert_eq!(row_of(&whole.scales, lane)[last / size], alone.scales[other]);
            prop_assert_eq!(row_of(&whole.biases, lane)[last / size], alone.biases[other]);
        }
    }
}

/// Weighted error of `normal` relative to `fast`, over many groups of normal weights.
fn remaining_error(bits: u8, group_size: u16) -> f64 {
    let (mut numbers, scheme) = (Numbers(1), Affine::new(bits, group_size).unwrap());
    let band: Vec<Column> = (0..64 * scheme.group_size())
        .map(|_| std::array::from_fn(|_| Float::BF16.round((0.05 * numbers.normal()) as f32)))
        .collect();
    let k: Vec<f32> = band.iter().map(|_| numbers.unit() as f32).collect();
    let [fast, normal] = [Effort::Fast, Effort::Normal].map(|effort| {
        let encoded = encode(encoder(effort), scheme, Float::BF16, &band, &k);
        encoder(effort).error(scheme, &band, &k, &encoded).iter().map(|row| row.weighted).sum::<f64>()
    });
    normal / fast
}

#[test]
fn the_search_reduces_the_error() {
    for (bits, at_most) in [(2, 0.66), (3, 0.74), (4, 0.79), (5, 0.81), (6, 0.80), (8, 0.58)] {
        let share = remaining_error(bits, 64);
        assert!(share < at_most, "{bits} bits: {share:.3} of the error is left");
    }
}

#[test]
fn weights_that_lie_on_a_grid_are_kept_exactly() {
    for scheme in Affine::all() {
        let max_code = usize::from(scheme.max_code());
        // All codes occur if the group is large enough; the smallest and the largest occur always.
        let band: Vec<Column> = (0..scheme.group_size())
            .map(|column| {
                let code = if column == 1 { max_code } else { column * 37 % (max_code + 1) };
                std::array::from_fn(|row| (code as f32 - row as f32) * 0.125)
            })
            .collect();
        let k = vec![1.0; band.len()];
        let encoded = encode(encoder(Effort::Normal), scheme, Float::F32, &band, &k);
        for (row, error) in encoder(Effort::Normal).error(scheme, &band, &k, &encoded).iter().enumerate() {
            assert!(error.plain < 1e-9, "{scheme}, row {row}: {}", error.plain);
        }
    }
}
