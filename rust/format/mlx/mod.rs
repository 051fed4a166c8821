//! MLX: what `mlx_lm.load` reads.
//!
//! A quantized module `P` is three tensors: `P.weight`, U32 `[rows, cols · bits / 32]`, each row one bit stream (see
//! [`crate::pack`]); `P.scales` and `P.biases`, `[rows, cols / group_size]` in the source weight's type. A weight decodes
//! to `code · scale + bias`. Everything else keeps its name and bytes. `config.json` says which module has which scheme.

mod config;
mod models;

use super::{Format, Module, Treatment};
use crate::checkpoint::{Checkpoint, Config, Matrix};
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::kernel::affine::Grid;
use crate::kernel::vector::ROWS;
use crate::pack;
use crate::quant::Encoded;
use crate::scheme::{Affine, Scheme};
use crate::writer::layout::Stored;

/// The format.
#[derive(Debug)]
pub struct Mlx;

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn treatments(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Vec<Treatment>> {
        models::treatments(checkpoint, generic)
    }

    fn parts(&self, name: &str, matrix: Matrix, scheme: Affine) -> Vec<Stored> {
        let Matrix { rows, cols, float } = matrix;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let part = |suffix: &str, dtype: Dtype, width: u64| Stored {
            name: format!("{module}.{suffix}"),
            dtype,
            shape: vec![rows, width],
            bytes: rows * width * dtype.bits() / 8,
        };
        vec![
            part("weight", Dtype::U32, scheme.code_bytes(cols) / 4),
            part("scales", float.dtype(), scheme.groups(cols)),
            part("biases", float.dtype(), scheme.groups(cols)),
        ]
    }

    fn append(&self, scheme: Affine, store: Float, encoded: &Encoded, rows: usize, parts: &mut [Vec<u8>]) {
        let [codes, scales, biases] = parts else { unreachable!("a module has three parts") };
        for row in 0..rows {
            pack::row(scheme.bits(), &encoded.codes, row, codes);
            let grids = encoded.grids.iter().map(|grid| grid[row]);
            store.append(&grids.clone().map(|grid| grid.scale).collect::<Vec<_>>(), scales);
            store.append(&grids.map(|grid| grid.bias).collect::<Vec<_>>(), biases);
        }
    }

    fn extract(&self, scheme: Affine, store: Float, parts: &[&[u8]], rows: usize, encoded: &mut Encoded) {
        let [packed, scales, biases] = parts else { unreachable!("a module has three parts") };
        let mut codes = Vec::new();
        pack::unpack(scheme.bits(), packed, &mut codes);
        let (cols, groups) = (codes.len() / rows, scales.len() / rows / store.bytes());
        let [mut scale, mut bias] = [vec![0.0; rows * groups], vec![0.0; rows * groups]];
        store.widen(scales, &mut scale);
        store.widen(biases, &mut bias);
        encoded.codes = (0..cols)
            .map(|column| std::array::from_fn(|row| if row < rows { codes[row * cols + column] } else { 0 }))
            .collect();
        let grid = |at: usize| Grid { scale: scale[at], bias: bias[at] };
        encoded.grids = (0..groups)
            .map(|group| {
                std::array::from_fn::<_, ROWS, _>(
                    |row| if row < rows { grid(row * groups + group) } else { Grid::default() },
                )
            })
            .collect();
    }

    fn described(&self, config: &Config) -> Vec<(String, Scheme)> {
        config::described(config)
    }

    fn config(&self, source: &Config, modules: &[Module], generic: bool) -> String {
        config::text(source, modules, generic)
    }
}
