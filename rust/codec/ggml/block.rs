//! What a block type is to the code that all of them share.

use super::encode::EncodedBlocks;
use crate::codec::{Effort, PassedRows, RowError};
use crate::dtype::Dtype;
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// Weights of the largest block.
pub(super) const MAX_WEIGHTS: usize = 256;

/// Scales of a block, at most.
pub(super) const MAX_SCALES: usize = 16;

/// The numbers that a block stores. A weight decodes to `(d · scale) · value(code) − dmin · min`, with the scale and the
/// minimum of its group: each product and the difference is rounded to `f32`.
///
/// Types without groups have one scale and one minimum, which are 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BlockFields {
    pub d: f32,
    pub dmin: f32,
    pub scales: [i8; MAX_SCALES],
    pub mins: [u8; MAX_SCALES],
    pub codes: [u8; MAX_WEIGHTS],
}

impl BlockFields {
    pub(super) const EMPTY: Self =
        Self { d: 0.0, dmin: 0.0, scales: [1; MAX_SCALES], mins: [0; MAX_SCALES], codes: [0; MAX_WEIGHTS] };
}

/// Codes a band: the instruction set, the columns, their importance, the effort, and where the rows go.
pub(super) type BlockKernel = fn(Isa, &[Column], &[f32], Effort, Option<&mut EncodedBlocks>) -> [RowError; BAND_ROWS];

/// A block type.
pub(super) trait BlockType: Sync + 'static {
    /// The name of the scheme.
    const NAME: &'static str;

    /// Position in the registry [`CODECS`](crate::codec::CODECS).
    const POSITION: u8;

    const DTYPE: Dtype;

    /// Bits of a code.
    const CODE_BITS: u32;

    /// Weights that share a scale.
    const GROUP: usize;

    /// Weights of a block, and its bytes.
    const SIZE: (usize, usize) = {
        let (weights, bytes) = Self::DTYPE.block();
        (weights as usize, bytes as usize)
    };

    /// The encoder.
    const KERNEL: BlockKernel;

    /// Writes a block.
    fn pack(from: &BlockFields, out: &mut [u8]);

    /// Reads a block.
    fn unpack(block: &[u8], into: &mut BlockFields);

    /// Appends the blocks of rows that a release stores in the numbers of this type.
    fn repack(_rows: PassedRows<'_>, _out: &mut Vec<u8>) {
        unreachable!("no release stores {}", Self::NAME)
    }

    /// The number that a code stands for.
    fn value(code: u8) -> f32;

    /// The scale of the group at position `at`.
    fn scale(of: &BlockFields, at: usize) -> f32 {
        of.d * f32::from(of.scales[at])
    }
}
