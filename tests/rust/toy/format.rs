//! A format that keeps tensor names, adds a suffix to codes and scales, and describes schemes in `config.json`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Config};
use crate::codec::{Codec, Scheme};
use crate::container::{Container, Metadata, Safetensors};
use crate::error::Result;
use crate::format::{
    Arrangement, CardFacts, Described, Format, Module, OutputModel, PackedSource, Refusal, Runtime, SchemeUse, SideFile,
};
use crate::tests::toy::codec::ToyCodec;

pub(crate) struct ToyFormat;

/// Opens the format, which has one runtime.
pub(crate) fn open(runtime: &Runtime) -> Result<Arc<dyn Format>> {
    runtime.the_only_one_of(ToyFormat)
}

impl Format for ToyFormat {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn container(&self) -> &'static dyn Container {
        &Safetensors
    }

    fn metadata(&self, _uses: &[SchemeUse]) -> Metadata<'_> {
        Metadata::Texts(&[("format", "toy")])
    }

    fn default_group(&self) -> u16 {
        64
    }

    fn schemes(&self) -> &[Scheme] {
        ToyCodec.schemes()
    }

    fn passes(&self, _source: &PackedSource<'_>) -> Option<Scheme> {
        None
    }

    fn arrange(&self, checkpoint: &Checkpoint, _generic: bool) -> Result<Arrangement> {
        Ok(Arrangement::untouched(checkpoint))
    }

    fn part_name(&self, _scheme: Scheme, tensor: &str, kind: &str) -> String {
        format!("{tensor}.{kind}")
    }

    fn refusals(&self, modules: &[Module]) -> Vec<Refusal> {
        let refused = modules.iter().filter(|module| module.path == "refused" && !module.scheme.is_kept());
        let refusal = |module: &Module| Refusal {
            tensor: format!("{}.weight", module.path),
            reason: format!("toys do not run it in {}", module.scheme),
        };
        refused.map(refusal).collect()
    }

    fn side_files(&self, output: &OutputModel<'_>) -> Vec<SideFile> {
        let mut config = output.source.cloned().unwrap_or_default();
        let schemes = output.modules.iter().map(|module| (module.path.clone(), json!(module.scheme)));
        config.insert("toys".to_owned(), Value::Object(schemes.collect()));
        vec![SideFile { name: "config.json", text: Value::Object(config).to_string() }]
    }

    fn described<'c>(&self, config: &'c Config) -> Described<'c> {
        let toys = config.get("toys").and_then(Value::as_object);
        Box::new(move |path| toys?.get(path)?.as_str()?.parse().ok())
    }

    fn card(&self) -> CardFacts {
        CardFacts {
            library: "toys",
            tags: &["toy"],
            schemes: "`toy8` is 8-bit codes with a scale for each row.",
            usage: "Play with it.",
            generic: "The tensors have the names of the source.",
        }
    }
}
