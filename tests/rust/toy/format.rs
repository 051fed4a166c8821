//! A format that keeps tensor names, adds a suffix to codes and scales, and describes schemes in `config.json`.

use serde_json::{Value, json};

use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config};
use crate::codec::{Codec, Scheme};
use crate::container::{Container, Safetensors};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::format::{Arrangement, CardFacts, Format, Module, Refusal, SideFile};
use crate::tests::toy::codec::ToyCodec;

pub(crate) struct ToyFormat;

impl Format for ToyFormat {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn container(&self) -> &'static dyn Container {
        &Safetensors
    }

    fn metadata(&self) -> &'static [(&'static str, &'static str)] {
        &[("format", "toy")]
    }

    fn schemes(&self) -> &'static [Scheme] {
        ToyCodec.schemes()
    }

    fn passes(&self, _packing: &Packing, _scales: Dtype, _dtype: Dtype) -> Option<Scheme> {
        None
    }

    fn arrange(&self, checkpoint: &Checkpoint, _generic: bool) -> Result<Arrangement> {
        Ok(Arrangement::untouched(checkpoint))
    }

    fn part_name(&self, tensor: &str, kind: &str) -> String {
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

    fn side_files(&self, source: Option<&Config>, modules: &[Module], _generic: bool) -> Vec<SideFile> {
        let mut config = source.cloned().unwrap_or_default();
        let schemes = modules.iter().map(|module| (module.path.clone(), json!(module.scheme)));
        config.insert("toys".to_owned(), Value::Object(schemes.collect()));
        vec![SideFile { name: "config.json", text: Value::Object(config).to_string() }]
    }

    fn described(&self, config: &Config) -> Vec<(String, Scheme)> {
        let toys = config.get("toys").and_then(Value::as_object).into_iter().flatten();
        toys.filter_map(|(path, scheme)| Some((path.clone(), scheme.as_str()?.parse().ok()?))).collect()
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
