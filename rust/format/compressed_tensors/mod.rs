//! compressed-tensors: the format that vLLM, SGLang and transformers read.
//!
//! Tensors keep the names of the release, one tensor for each expert. A quantized module `P` is stored as
//! `P.weight_packed`, `P.weight_scale` and `P.weight_shape` ([`crate::codec::symmetric`]). `config.json` assigns schemes to
//! modules by patterns of their names. What a runtime demands of a checkpoint is in [`consumer`].

mod arrange;
mod config;
mod consumer;
mod patterns;

use std::borrow::Cow;
use std::sync::Arc;

use super::{Arrangement, CardFacts, Format, Module, OutputModel, Refusal, Runtime, SideFile};
use crate::band::Matrix;
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config};
use crate::codec::Scheme;
use crate::codec::symmetric::Symmetric;
use crate::container::{Container, Safetensors};
use crate::dtype::Dtype;
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
    let tensor_parallel = runtime.tensor_parallel.max(1);
    Ok(Arc::new(CompressedTensors { consumer, tensor_parallel, schemes: consumer.schemes() }))
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

    fn metadata(&self) -> &'static [(&'static str, &'static str)] {
        &[("format", "pt")]
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

    fn passes(&self, packing: &Packing, scales: Dtype, dtype: Dtype) -> Option<Scheme> {
        match packing {
            // The scales are passed through, so they need the output's type.
            Packing::Int4 { group_size, .. } if dtype == scales => Symmetric::int4(*group_size),
            Packing::Plain | Packing::Fp8 { .. } | Packing::Int4 { .. } | Packing::Mxfp4 { .. } => None,
        }
    }

    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
        if !generic {
            consumer::check_sizes(checkpoint, self.tensor_parallel)?;
        }
        arrange::arrange(checkpoint, generic)
    }

    fn fusion_group<'n>(&self, name: &'n Name) -> Cow<'n, str> {
        self.consumer.fusion_group(name)
    }

    fn part_name(&self, _scheme: Scheme, tensor: &str, kind: &str) -> String {
        config::part_name(tensor, kind)
    }

    fn refusals(&self, modules: &[Module]) -> Vec<Refusal> {
        self.consumer.refusals(modules)
    }

    fn side_files(&self, output: &OutputModel<'_>) -> Vec<SideFile> {
        let config = |source| SideFile { name: "config.json", text: config::text(source, output) };
        output.source.map(config).into_iter().collect()
    }

    fn described<'c>(&self, config: &'c Config) -> Box<dyn Fn(&str) -> Option<Scheme> + 'c> {
        config::described(config)
    }

    fn card(&self) -> CardFacts {
        CardFacts {
            library: self.consumer.library(),
            tags: &["compressed-tensors"],
            schemes: "`int4g64` is 4-bit integers in groups of 64, each with a scale; `int4channel` has a scale for each \
                      output channel.",
            usage: self.consumer.usage(),
            generic: "The tensors have the names of the source and the form of compressed-tensors.",
        }
    }
}
