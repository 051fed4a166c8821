//! compressed-tensors: the format that vLLM, SGLang and transformers read.
//!
//! Tensors keep the names of the release, one tensor for each expert. A quantized module `P` is stored as
//! `P.weight_packed`, `P.weight_scale` and `P.weight_shape` ([`crate::codec::symmetric`]), or in the forms of
//! [`crate::codec::float`]. `config.json` assigns schemes to modules by patterns of their names. What a runtime demands of a
//! checkpoint is in [`consumer`].

mod arrange;
mod config;
mod consumer;
mod patterns;

use std::borrow::Cow;
use std::sync::Arc;

use super::{
    Arrangement, CardFacts, Described, Format, Module, OutputModel, PackedSource, Refusal, Runtime, SchemeUse, SideFile,
};
use crate::band::Matrix;
use crate::checkpoint::prequantized::{Blocks, Packing};
use crate::checkpoint::{Checkpoint, Config};
use crate::codec::float::fp8::FP8_SCHEME;
use crate::codec::symmetric::Symmetric;
use crate::codec::{PartSpec, Scheme};
use crate::container::{Container, Metadata, Safetensors};
use crate::dtype::Float8;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::option::OptionName;
use consumer::Consumer;

/// The format for one runtime.
#[derive(Debug)]
pub(crate) struct CompressedTensors {
    consumer: Consumer,
    tensor_parallel: u64,
    schemes: Vec<Scheme>,
}

/// Opens the format for `runtime`.
///
/// # Errors
/// [`Error::Option`] for an unknown runtime.
pub(super) fn open(runtime: &Runtime) -> Result<Arc<dyn Format>> {
    let consumer = match &runtime.target {
        None => Consumer::default(),
        Some(name) => Consumer::named(name).ok_or_else(|| {
            Error::option(OptionName::Target, name, format!("not one of: {}", Consumer::NAMES.join(", ")))
        })?,
    };
    let tensor_parallel = runtime.tensor_parallel;
    let format = CompressedTensors { consumer, tensor_parallel, schemes: consumer.schemes() };
    runtime.has_no_header(&format)?;
    Ok(Arc::new(format))
}

impl Format for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn targets(&self) -> &'static [&'static str] {
        &Consumer::NAMES
    }

    fn target(&self) -> Option<&'static str> {
        Some(self.consumer.name())
    }

    fn tensor_parallel(&self) -> u64 {
        self.tensor_parallel
    }

    fn default_group(&self) -> u16 {
        128
    }

    fn container(&self) -> &'static dyn Container {
        &Safetensors
    }

    fn metadata(&self, _uses: &[SchemeUse]) -> Metadata<'_> {
        Metadata::Texts(&[("format", "pt")])
    }

    fn schemes(&self) -> &[Scheme] {
        &self.schemes
    }

    fn candidates(&self, name: &Name, matrix: Matrix) -> Vec<Scheme> {
        let admits = |scheme: &Scheme| {
            scheme.fits(matrix.cols) && self.consumer.refusal(name, matrix, *scheme, self.tensor_parallel).is_none()
        };
        self.schemes.iter().copied().filter(admits).collect()
    }

    fn no_candidates(&self, name: &Name, matrix: Matrix) -> Option<String> {
        let scheme = self.schemes.iter().find(|scheme| scheme.fits(matrix.cols))?;
        self.consumer.refusal(name, matrix, *scheme, self.tensor_parallel)
    }

    fn may_keep(&self, name: &Name) -> bool {
        !self.consumer.demands_quantized(name)
    }

    fn passes(&self, source: &PackedSource<'_>) -> Option<Scheme> {
        let &PackedSource { name, packing, scales, matrix } = source;
        let scheme = match packing {
            Packing::Int4 { group_size, .. } => Symmetric::int4(*group_size)?,
            // One scale for each row, or for all of them.
            Packing::Fp8 { codes: Float8::E4M3, blocks: Blocks { rows, cols, .. }, .. }
                if *cols == matrix.cols && (*rows == 1 || *rows == matrix.rows) =>
            {
                FP8_SCHEME
            }
            Packing::Plain | Packing::Fp8 { .. } | Packing::Mxfp4 { .. } | Packing::Encoded(_) => return None,
        };
        // The scales are passed through, so they need the output's type.
        let is_read = scales == matrix.float.dtype() && self.candidates(name, matrix).contains(&scheme);
        is_read.then_some(scheme)
    }

    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
        if !generic {
            self.consumer.check_model(checkpoint)?;
            consumer::check_sizes(checkpoint, self.tensor_parallel)?;
        }
        arrange::arrange(checkpoint, generic)
    }

    fn fusion_group<'n>(&self, name: &'n Name) -> Cow<'n, str> {
        self.consumer.fusion_group(name)
    }

    fn part_name(&self, scheme: Scheme, tensor: &str, kind: &str) -> String {
        config::part_name(scheme, tensor, kind)
    }

    fn stored_as(&self, scheme: Scheme, part: PartSpec) -> PartSpec {
        config::stored_as(scheme, part)
    }

    fn refusals(&self, modules: &[Module]) -> Vec<Refusal> {
        self.consumer.refusals(modules)
    }

    fn side_files(&self, output: &OutputModel<'_>) -> Vec<SideFile> {
        let config = |source| SideFile { name: "config.json", text: config::text(source, output) };
        output.source.map(config).into_iter().collect()
    }

    fn described<'c>(&self, config: &'c Config) -> Described<'c> {
        config::described(config, &self.schemes)
    }

    fn card(&self) -> CardFacts {
        CardFacts {
            library: self.consumer.library(),
            tags: &["compressed-tensors"],
            schemes: "`int4g64` is 4-bit integers in groups of 64, each with a scale; `int4channel` has a scale for each \
                      output channel. `fp8` is E4M3 with a scale for each output channel; `mxfp4` and `nvfp4` are E2M1 in \
                      groups of 32 and 16.",
            usage: self.consumer.usage(),
            generic: "The tensors have the names of the source and the form of compressed-tensors.",
        }
    }
}
