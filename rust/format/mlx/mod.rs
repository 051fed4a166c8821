//! MLX: the format that `mlx_lm.load` reads.
//!
//! A quantized module `P` is stored as `P.weight` (codes), `P.scales` and `P.biases` ([`crate::codec::affine`]). A
//! stack of matrices has one more leading dimension. All other tensors keep their bytes, and keep their names unless
//! the model family's table renames them. `config.json` contains the scheme of each module.
//!
//! Two prequantized forms are passed through, because MLX reads them: MXFP4 (`P.weight` and U8 `P.scales`, mode
//! `mxfp4`), and 4-bit integers, whose biases are −8 times the scales.

mod arrange;
mod config;
mod keys;

use std::sync::Arc;

use super::{
    Arrangement, CardFacts, Described, Format, Module, OutputModel, PackedSource, ReadKeys, Refusal, Runtime,
    SchemeUse, SideFile,
};
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config};
use crate::codec::affine::{Affine, AffineCodec};
use crate::codec::float::mxfp4::MXFP4_SCHEME;
use crate::codec::{Codec, Scheme};
use crate::container::{Container, Metadata, Safetensors};
use crate::error::Result;

#[derive(Debug)]
pub(crate) struct Mlx;

/// Opens the format.
///
/// # Errors
/// As [`Runtime::the_only_one_of`].
pub(super) fn open(runtime: &Runtime) -> Result<Arc<dyn Format>> {
    runtime.the_only_one_of(Mlx)
}

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn container(&self) -> &'static dyn Container {
        &Safetensors
    }

    fn metadata(&self, _uses: &[SchemeUse]) -> Metadata<'_> {
        Metadata::Texts(&[("format", "mlx")])
    }

    fn default_group(&self) -> u16 {
        64
    }

    fn schemes(&self) -> &[Scheme] {
        AffineCodec.schemes()
    }

    fn passes(&self, source: &PackedSource<'_>) -> Option<Scheme> {
        match source.packing {
            Packing::Mxfp4 { .. } => Some(MXFP4_SCHEME),
            // The scales are passed through, so they need the output's type.
            Packing::Int4 { group_size, .. } if source.scales == source.matrix.float.dtype() => {
                Affine::new(4, (*group_size).try_into().ok()?).map(Affine::scheme)
            }
            Packing::Plain | Packing::Fp8 { .. } | Packing::Int4 { .. } | Packing::Encoded(_) => None,
        }
    }

    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
        arrange::arrange(checkpoint, generic)
    }

    fn part_name(&self, _scheme: Scheme, tensor: &str, kind: &str) -> String {
        let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
        format!("{module}.{}", if kind == "codes" { "weight" } else { kind })
    }

    fn refusals(&self, modules: &[Module]) -> Vec<Refusal> {
        config::refusals(modules)
    }

    fn side_files(&self, output: &OutputModel<'_>) -> Vec<SideFile> {
        let text = |source| config::text(source, output.modules, output.generic);
        let config = |source| SideFile { name: "config.json", text: text(source) };
        output.source.map(config).into_iter().collect()
    }

    fn complete_config(&self, config: &mut Config, read: &ReadKeys) {
        keys::complete(config, read);
    }

    fn described<'c>(&self, config: &'c Config) -> Described<'c> {
        let described = config::described(config);
        Box::new(move |path| described.get(path).or(described.get("")).copied())
    }

    fn card(&self) -> CardFacts {
        CardFacts {
            library: "mlx",
            tags: &["mlx"],
            schemes: "`4g64` is 4-bit codes in groups of 64, each with a scale and a bias.",
            usage: "```sh\npip install mlx-lm\nmlx_lm.generate --model PATH_TO_THIS_DIRECTORY --prompt \"Hello\"\n```",
            generic: "The tensors have the names of the source and MLX's affine format.",
        }
    }
}
