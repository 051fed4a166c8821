//! Bands of awkward rows, and the checks that hold for every codec that measures what it stores.

use crate::band::Matrix;
use crate::codec::{Band, Effort, Encoder, Extent, Metric, RowError, Rows, Scheme, Scratch, errors_of};
use crate::dtype::Float;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};
use proptest::prelude::*;

use crate::tests::support::Numbers;

pub(super) const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

pub(super) fn scheme(name: &str) -> Scheme {
    name.parse().unwrap()
}

/// A band of `rows` rows with the importance of its columns.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub float: Float,
    pub rows: usize,
    pub band: Vec<Column>,
    pub k: Vec<f32>,
}

impl Case {
    pub(super) fn matrix(&self) -> Matrix {
        Matrix { rows: self.rows as u64, cols: self.band.len() as u64, float: self.float }
    }

    /// The parts and the errors, encoded with `isa`.
    pub(super) fn encode(&self, isa: Isa, effort: Effort, scheme: Scheme) -> (Vec<Vec<u8>>, [RowError; BAND_ROWS]) {
        let specs = scheme.parts(self.matrix());
        let mut parts = vec![Vec::new(); specs.len()];
        let band = Band { rows: self.rows, stored: &[], columns: &self.band };
        let of = (self.float, &mut Scratch::default());
        let errors = Encoder { isa, effort }.encode(scheme, of, band, &Metric::diagonal(&self.k), &mut parts);
        for (spec, part) in specs.iter().zip(&mut parts) {
            match spec.extent {
                Extent::PerRow(_) => assert_eq!(part.len() as u64, spec.bytes(self.rows as u64), "{scheme} {spec:?}"),
                Extent::Fixed(_) => {
                    assert!(part.is_empty(), "the encoder leaves `{}` unchanged", spec.kind);
                    *part = scheme.codec().unwrap().fixed(scheme, self.matrix(), spec.kind);
                }
            }
        }
        (parts, errors)
    }

    pub(super) fn errors(&self, isa: Isa, effort: Effort, scheme: Scheme) -> [RowError; BAND_ROWS] {
        let band = Band { rows: self.rows, stored: &[], columns: &self.band };
        let of = (self.float, &mut Scratch::default());
        Encoder { isa, effort }.errors(&[scheme], of, band, &Metric::diagonal(&self.k))[0]
    }

    pub(super) fn decode(&self, scheme: Scheme, parts: &[Vec<u8>]) -> Vec<f32> {
        let mut decoded = vec![0.0; self.rows * self.band.len()];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let rows = Rows { cols: self.band.len(), float: self.float };
        scheme.codec().unwrap().decode(scheme, rows, &parts, &mut decoded);
        decoded
    }
}

/// The distribution of a row of weights.
#[derive(Clone, Copy, Debug)]
enum RowKind {
    Normal,
    Constant,
    Zero,
    MinusZero,
    Subnormal,
    Outlier,
    Sparse,
    /// Multiples of a power of two: many lie halfway between two codes.
    Halves,
}

const ROW_KINDS: [RowKind; 8] = [
    RowKind::Normal,
    RowKind::Constant,
    RowKind::Zero,
    RowKind::MinusZero,
    RowKind::Subnormal,
    RowKind::Outlier,
    RowKind::Sparse,
    RowKind::Halves,
];

impl RowKind {
    /// Element `column` of a row of weights with magnitude `size`.
    fn element(self, column: usize, size: f64, numbers: &mut Numbers) -> f64 {
        match self {
            Self::Constant => -size,
            Self::Zero => 0.0,
            Self::MinusZero => -0.0,
            Self::Subnormal => f64::from(f32::from_bits(numbers.below(1 << 23) as u32)),
            Self::Outlier if column % 40 == 7 => 50.0 * size,
            Self::Sparse if numbers.unit() < 0.95 => 0.0,
            Self::Outlier | Self::Sparse | Self::Normal => size * numbers.normal(),
            Self::Halves => numbers.below(25) as f64 / 4.0 - 3.0,
        }
    }
}

/// Bands whose rows have a distribution and a magnitude each, of `lengths` columns.
pub(super) fn cases(lengths: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    let rows = prop::array::uniform8((prop::sample::select(ROW_KINDS.as_slice()), 0.0..1.0));
    let of = (prop::sample::select(FLOATS.as_slice()), 1..=BAND_ROWS, 0..3, any::<u64>());
    (lengths, rows, of).prop_map(|(cols, kinds, (float, rows, weighing, seed))| {
        let mut numbers = Numbers(seed);
        let mut band = vec![[0.0; BAND_ROWS]; cols];
        // Powers of ten. The squares of weights are finite, but those of the smallest are zero.
        let (least, most) = if float == Float::F16 { (-8.0, 3.0) } else { (-41.0, 16.0) };
        for (row, (kind, share)) in kinds.into_iter().enumerate().take(rows) {
            let size = crate::math::from_decibels(10.0 * (least + share * (most - least)));
            for (column, lanes) in band.iter_mut().enumerate() {
                lanes[row] = float.round(kind.element(column, size, &mut numbers) as f32);
            }
        }
        let importance = |numbers: &mut Numbers| match weighing {
            0 => 1.0,
            1 => numbers.unit() as f32,
            _ => (numbers.below(4) as f32 - 1.0).max(0.0),
        };
        let k = (0..cols).map(|_| importance(&mut numbers)).collect();
        Case { float, rows, band, k }
    })
}

pub(super) fn bits(errors: &[RowError; BAND_ROWS]) -> [[u64; 2]; BAND_ROWS] {
    errors.map(|error| [error.weighted.to_bits(), error.plain.to_bits()])
}

/// The checks that hold for every row and scheme.
pub(super) fn holds(case: &Case, name: &str) -> Result<(), TestCaseError> {
    let scheme = scheme(name);
    let block = scheme.codec().unwrap().block(scheme, case.band.len() as u64) as usize;
    for effort in [Effort::Fast, Effort::Normal] {
        let (parts, errors) = case.encode(Isa::PORTABLE, effort, scheme);
        prop_assert_eq!(bits(&case.errors(Isa::PORTABLE, effort, scheme)), bits(&errors));
        let decoded = case.decode(scheme, &parts);
        prop_assert!(decoded.iter().all(|weight| weight.is_finite()), "{:?}", decoded);
        let of_decoded = errors_of(Isa::PORTABLE, &case.band, &case.k, &decoded, block);
        prop_assert_eq!(bits(&of_decoded), bits(&errors), "{} {}", name, effort);
        for isa in Isa::available().skip(1) {
            let (same, same_errors) = case.encode(isa, effort, scheme);
            prop_assert_eq!(&same, &parts, "{} {} {}", name, effort, isa.name());
            prop_assert_eq!(bits(&same_errors), bits(&errors));
            prop_assert_eq!(bits(&case.errors(isa, effort, scheme)), bits(&errors));
        }
    }
    Ok(())
}

/// The weighted error of `normal` exceeds that of `fast` in no row.
pub(super) fn is_never_worse(case: &Case, name: &str) -> Result<(), TestCaseError> {
    let [fast, normal] = [Effort::Fast, Effort::Normal].map(|effort| case.errors(Isa::detect(), effort, scheme(name)));
    for (fast, normal) in fast.iter().zip(&normal) {
        prop_assert!(normal.weighted <= fast.weighted, "{}: {:?} {:?}", name, normal, fast);
    }
    Ok(())
}

/// Weights with the distribution of a layer.
pub(super) fn typical(float: Float, cols: usize, seed: u64) -> Case {
    let mut numbers = Numbers(seed);
    let mut band = vec![[0.0; BAND_ROWS]; cols];
    for lanes in &mut band {
        *lanes = std::array::from_fn(|_| float.round((0.03 * numbers.normal()) as f32));
    }
    let k = (0..cols).map(|_| numbers.unit() as f32).collect();
    Case { float, rows: BAND_ROWS, band, k }
}
