//! `IQ4_NL`: 32 codes of 4 bits with a scale. `w = value(code) · d`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | `d`, binary16 |
//! | 2 | 16 bytes: byte `i` holds code `i` in its lower half, code `i + 16` in its upper half |
//!
//! The values are [`NON_LINEAR`].

use super::bits::{f16_of, halves_of, put_f16, put_halves};
use super::block::{BlockFields, BlockKernel, BlockType};
use super::encode::{self, EncodedBlocks};
use super::levels::{NON_LINEAR, NonLinear};
use super::linear::{LinearBlock, Starts};
use crate::codec::{Effort, RowError};
use crate::dtype::Dtype;
use crate::simd::kernel;
use crate::simd::vector::{BAND_ROWS, Column};

#[derive(Debug)]
pub(in crate::codec) struct Iq4Nl;

/// Starts of the search, see [`Starts::Shares`].
const SHARES: [u16; 5] = [1000, 1060, 940, 880, 820];

kernel! {
    fn encode_iq4_nl<V: Simd in W: Batch>(
        band: &[Column], k: &[f32], effort: Effort, out: Option<&mut EncodedBlocks>,
    ) -> [RowError; BAND_ROWS] {
        encode::encode::<V, W, Iq4Nl, false>(band, k, effort, out)
    }
}

impl BlockType for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const POSITION: u8 = 10;
    const DTYPE: Dtype = Dtype::IQ4_NL;
    const CODE_BITS: u32 = 4;
    const GROUP: usize = 32;
    const KERNEL: BlockKernel = encode_iq4_nl;

    fn pack(from: &BlockFields, out: &mut [u8]) {
        put_f16(from.d, out);
        put_halves(&from.codes[..32], &mut out[2..]);
    }

    fn unpack(block: &[u8], into: &mut BlockFields) {
        into.d = f16_of(block);
        halves_of(&block[2..], &mut into.codes[..32]);
    }

    fn value(code: u8) -> f32 {
        NON_LINEAR[usize::from(code)]
    }
}

impl LinearBlock for Iq4Nl {
    type Levels = NonLinear;

    const MINIMA: bool = false;
    const SCALES: [f32; 2] = [1.0, 1.0];
    const MAX_MIN: f32 = 1.0;
    const STARTS: Starts = Starts::Shares(&SHARES);
    const DIVISORS: &'static [[f32; 2]] = &[[1.0, 1.0]];
}
