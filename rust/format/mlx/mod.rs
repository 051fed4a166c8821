//! MLX: what `mlx_lm.load` reads.
//!
//! A quantized module `P` is three tensors: `P.weight`, U32 `[rows, cols · bits / 32]`, each row one bit stream (see
//! [`crate::codec::affine::pack`]); `P.scales` and `P.biases`, `[rows, cols / group_size]` in the source weight's type. A weight decodes
//! to `code · scale + bias`. A stack of matrices has one more dimension in front. Everything else keeps its bytes, and
//! where its table of models does not say otherwise its name. `config.json` says which module has which scheme.
//!
//! What a release packs as MLX does is taken over as it is: MXFP4 (`P.weight` and U8 `P.scales`, mode `mxfp4`), and 4-bit
//! integers, whose biases are −8 scales.

mod arrange;
mod config;

use super::{Arrangement, Format, Module, Rows};
use crate::band::append;
use crate::checkpoint::{Checkpoint, Config, Matrix, Tensor};
use crate::codec::affine::pack;
use crate::codec::encoder::Encoded;
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::scheme::{Affine, Packed, Scheme};
use crate::simd::Isa;
use crate::simd::vector::BAND_ROWS;
use crate::writer::layout::Stored;

/// The format.
#[derive(Debug)]
pub struct Mlx;

/// A tensor of module `rows`, its rows `width` elements long.
fn part(rows: Rows<'_>, suffix: &str, dtype: Dtype, width: u64) -> Stored {
    let module = rows.name.strip_suffix(".weight").unwrap_or(rows.name);
    let shape: Vec<u64> = rows.above.iter().copied().chain([width]).collect();
    let bytes = shape.iter().product::<u64>() * dtype.bits() / 8;
    Stored { name: format!("{module}.{suffix}"), dtype, shape, bytes }
}

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
        arrange::arrange(checkpoint, generic)
    }

    fn parts(&self, rows: Rows<'_>, scheme: Affine) -> Vec<Stored> {
        vec![
            part(rows, "weight", Dtype::U32, scheme.code_bytes(rows.cols) / 4),
            part(rows, "scales", rows.float.dtype(), scheme.groups(rows.cols)),
            part(rows, "biases", rows.float.dtype(), scheme.groups(rows.cols)),
        ]
    }

    fn append(
        &self,
        isa: Isa,
        (scheme, store): (Affine, Float),
        encoded: &Encoded,
        rows: usize,
        parts: &mut [Vec<u8>],
    ) {
        let [codes, scales, biases] = parts else { unreachable!("a module has three parts") };
        let share = |all: usize| all / BAND_ROWS * rows;
        pack::pack(isa, scheme.bits(), &encoded.codes[..share(encoded.codes.len())], codes);
        append(isa, store, &encoded.scales[..share(encoded.scales.len())], scales);
        append(isa, store, &encoded.biases[..share(encoded.biases.len())], biases);
    }

    fn extract(&self, scheme: Affine, store: Float, parts: &[&[u8]], rows: usize, encoded: &mut Encoded) {
        let [packed, scales, biases] = parts else { unreachable!("a module has three parts") };
        encoded.codes.clear();
        pack::unpack(scheme.bits(), packed, &mut encoded.codes);
        encoded.codes.resize(encoded.codes.len() / rows * BAND_ROWS, 0);
        let groups = scales.len() / rows / store.bytes();
        for (stored, values) in [(scales, &mut encoded.scales), (biases, &mut encoded.biases)] {
            values.clear();
            values.resize(BAND_ROWS * groups, 0.0);
            store.widen(stored, &mut values[..rows * groups]);
        }
    }

    fn stored<'a>(&self, output: &'a Checkpoint, target: &str, scheme: Affine) -> Option<(Matrix, Vec<&'a Tensor>)> {
        let module = target.strip_suffix(".weight").unwrap_or(target);
        let float = Float::of(output.tensor(&format!("{module}.scales"))?.dtype)?;
        let (words, above) = output.tensor(&format!("{module}.weight"))?.shape.split_last()?;
        let cols = words.checked_mul(32)? / u64::from(scheme.bits());
        let rows = Rows { name: target, above, cols, float };
        let is_there = |part: &Stored| {
            output.tensor(&part.name).filter(|found| (found.dtype, &found.shape) == (part.dtype, &part.shape))
        };
        let parts = self.parts(rows, scheme).iter().map(is_there).collect::<Option<Vec<_>>>()?;
        let matrix = Matrix { rows: above.iter().product(), cols, float };
        (scheme.fits(cols) && matrix.rows > 0).then_some((matrix, parts))
    }

    fn packed_parts(&self, rows: Rows<'_>, packed: Packed) -> Vec<Stored> {
        match packed {
            Packed::Mxfp4 => {
                vec![part(rows, "weight", Dtype::U32, rows.cols / 8), part(rows, "scales", Dtype::U8, rows.cols / 32)]
            }
            Packed::Int4(affine) => self.parts(rows, affine),
        }
    }

    fn append_packed(&self, packed: Packed, store: Float, codes: &[u8], scales: &[u8], parts: &mut [Vec<u8>]) {
        parts[0].extend_from_slice(codes);
        if packed == Packed::Mxfp4 {
            parts[1].extend_from_slice(scales);
            return;
        }
        let mut values = vec![0.0; scales.len() / store.bytes()];
        store.widen(scales, &mut values);
        parts[1].extend_from_slice(scales);
        // The codes are stored 8 up.
        for scale in &mut values {
            *scale *= -8.0;
        }
        store.append(&values, &mut parts[2]);
    }

    fn described(&self, config: &Config) -> Vec<(String, Scheme)> {
        config::described(config)
    }

    fn config(&self, source: &Config, modules: &[Module], generic: bool) -> String {
        config::text(source, modules, generic)
    }
}
