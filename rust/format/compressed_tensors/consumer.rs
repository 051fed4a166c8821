//! The runtimes that read compressed-tensors, and what each demands of a checkpoint.
//!
//! The rules hold for vLLM 0.23 and later, SGLang 0.5.12 and later, and transformers 5 with compressed-tensors 0.17 and later.
//! `docs/compressed-tensors.md` says which of them were tried, and which were read in the source of the runtime.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::band::Matrix;
use crate::checkpoint::Checkpoint;
use crate::codec::float::{fp8::FP8_SCHEME, mxfp4::MXFP4_SCHEME, nvfp4::NVFP4_SCHEME};
use crate::codec::symmetric::{Symmetric, SymmetricCodec};
use crate::codec::{Bits, Codec, Scheme};
use crate::error::{Error, Result};
use crate::format::{Module, Refusal};
use crate::name::{Name, Role};
use crate::option::OptionName;

/// A runtime, or all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Consumer {
    #[default]
    Vllm,
    Sglang,
    Transformers,
    All,
}

/// Modules that vLLM and SGLang fuse into one layer, by the last parts of their paths. They share a scheme.
const FUSED: [(&str, &[&str]); 7] = [
    ("qkv", &["q_proj", "k_proj", "v_proj"]),
    ("qkv", &["wq", "wk", "wv"]),
    ("gate_up", &["gate_proj", "up_proj"]),
    ("gate_up", &["w1", "w3"]),
    ("qkv_a", &["q_a_proj", "kv_a_proj_with_mqa"]),
    ("qkvz", &["in_proj_qkv", "in_proj_z"]),
    ("ba", &["in_proj_b", "in_proj_a"]),
];

/// Rows and columns of the tiles of SGLang's kernel. What a device holds of a matrix must be multiples of one of these pairs.
/// (vLLM pads them.)
const MARLIN_TILES: [(u64, u64); 2] = [(64, 128), (128, 64)];

/// Sizes in a configuration that every device must hold an equal share of.
const DIVIDED_SIZES: [&str; 6] = [
    "num_attention_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "linear_num_key_heads",
    "linear_num_value_heads",
];

/// Model types that some runtimes do not read in this format, those runtimes, and why.
const UNREAD: [(&[&str], &[Consumer], &str); 6] = {
    use Consumer::{All, Sglang, Transformers, Vllm};
    const ANY: &[Consumer] = &[Vllm, Sglang, Transformers, All];
    [
        (&["gpt2"], ANY, "its layers are of another class than those that the format replaces"),
        (&["gpt_oss", "llama4"], ANY, "it holds its experts in one tensor, in a form that no runtime was seen to read"),
        (&["qwen3_5_text", "qwen3_5_moe_text"], ANY, "no runtime was seen to read this type on its own"),
        (&["mamba2"], ANY, "transformers uses its projections as plain weights"),
        (&["stablelm"], &[Vllm, Sglang, All], "vLLM does not say which of its layers are fused"),
        (&["kimi_k2", "kimi_k25"], &[Transformers, All], "transformers has no causal language model of this type"),
    ]
};

/// Whether all runtimes read codes of this width.
fn is_common_width(scheme: Scheme) -> bool {
    scheme.code_bits().is_some_and(|bits| [4, 8].map(Bits::whole).contains(&bits))
}

fn is_integer(scheme: Scheme) -> bool {
    Symmetric::of(scheme).is_some()
}

impl Consumer {
    /// The names on the command line, the default first.
    pub(super) const NAMES: [&'static str; 4] = ["vllm", "sglang", "transformers", "all"];

    pub(super) fn named(name: &str) -> Option<Self> {
        let all = [Self::Vllm, Self::Sglang, Self::Transformers, Self::All];
        all.into_iter().find(|consumer| consumer.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The subject of messages.
    fn title(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::Transformers => "transformers",
            Self::All => "one of vLLM, SGLang and transformers",
        }
    }

    fn has_sglang(self) -> bool {
        matches!(self, Self::Sglang | Self::All)
    }

    fn has_transformers(self) -> bool {
        matches!(self, Self::Transformers | Self::All)
    }

    /// The schemes that the runtime reads, by increasing bytes.
    pub(super) fn schemes(self) -> Vec<Scheme> {
        let reads = |scheme: &Scheme| !self.has_sglang() || is_common_width(*scheme);
        let mut schemes: Vec<Scheme> = SymmetricCodec.schemes().iter().copied().filter(reads).collect();
        match self {
            Self::Vllm => schemes.extend([MXFP4_SCHEME, NVFP4_SCHEME, FP8_SCHEME]),
            // Models in float32 cannot compute with the other two.
            Self::Transformers => schemes.push(FP8_SCHEME),
            Self::Sglang | Self::All => {}
        }
        schemes.sort_by_key(|scheme| scheme.nominal_bytes());
        schemes
    }

    /// The reason why the runtime does not read a tensor in `scheme` if it divides layers among `devices`.
    pub(super) fn refusal(self, name: &Name, matrix: Matrix, scheme: Scheme, devices: u64) -> Option<String> {
        let title = self.title();
        match name.role {
            Role::Embedding => return Some(format!("{title} reads embeddings unquantized only")),
            Role::Router => return Some(format!("{title} reads routers unquantized only")),
            // transformers 5 renames other heads to `lm_head`, and leaves their codes unread without an error.
            Role::Head if !name.module.ends_with("lm_head") => {
                return Some(format!("{title} reads a head of this name unquantized only"));
            }
            Role::Head if !is_common_width(scheme) || !is_integer(scheme) => {
                return Some(format!("{title} reads a head in integers of 4 or 8 bits only, and not in {scheme}"));
            }
            _ if name.expert.is_some() && !is_integer(scheme) => {
                return Some(format!("{title} reads experts in integers only, and not in {scheme}"));
            }
            _ => {}
        }
        // Layers that end a block are divided by columns, the others by rows.
        let is_last = matches!(name.role, Role::Output | Role::Down);
        let cols = if is_last { matrix.cols / devices } else { matrix.cols };
        if is_last && cols * devices != matrix.cols {
            return Some(format!("its {} columns do not divide among {devices} devices", matrix.cols));
        }
        if !scheme.fits(cols) {
            return Some(format!("the {cols} columns of it on a device do not divide into whole groups of {scheme}"));
        }
        // A matrix with too few rows for all devices is held by several of them.
        let rows = if is_last || !matrix.rows.is_multiple_of(devices) { matrix.rows } else { matrix.rows / devices };
        let fills = |&(of_rows, of_cols): &(u64, u64)| rows.is_multiple_of(of_rows) && cols.is_multiple_of(of_cols);
        if self.has_sglang() && !MARLIN_TILES.iter().any(fills) {
            return Some(format!(
                "SGLang's kernel has tiles of 64 × 128 and 128 × 64, and a device holds {rows} × {cols}"
            ));
        }
        None
    }

    /// Whether the runtime reads the tensor only quantized if anything is.
    pub(super) fn demands_quantized(self, name: &Name) -> bool {
        // transformers converts the experts of all layers in one way, which is that of packed codes.
        self.has_transformers() && name.expert.is_some()
    }

    /// The fusion group of a tensor.
    pub(super) fn fusion_group(self, name: &Name) -> Cow<'_, str> {
        if let (true, Some((before, _))) = (name.expert.is_some(), name.module.split_once(".experts.")) {
            // transformers takes one scheme for the experts of all layers, and would load others without an error.
            let group = if self.has_transformers() { "experts".to_owned() } else { format!("{before}.experts") };
            return Cow::Owned(group);
        }
        let (before, last) = name.module.rsplit_once('.').unwrap_or(("", &name.module));
        match FUSED.iter().find(|(_, parts)| parts.contains(&last)) {
            Some((fused, _)) if self != Self::Transformers => Cow::Owned(format!("{before}.{fused}")),
            _ => Cow::Owned(name.module.clone()),
        }
    }

    /// The modules that the runtime refuses in their schemes.
    pub(super) fn refusals(self, modules: &[Module]) -> Vec<Refusal> {
        let names: Vec<Name> = modules.iter().map(|module| Name::parse(&format!("{}.weight", module.path))).collect();
        let mut refusals = Vec::new();
        let mut groups: BTreeMap<Cow<'_, str>, &Module> = BTreeMap::new();
        for (module, name) in modules.iter().zip(&names) {
            let first = *groups.entry(self.fusion_group(name)).or_insert(module);
            if first.stored_in() != module.stored_in() {
                let text = |module: &Module| module.stored_in().map_or("kept".to_owned(), |scheme| scheme.to_string());
                refusals.push(Refusal {
                    tensor: format!("{}.weight", module.path),
                    reason: format!(
                        "{} takes one scheme for it and `{}.weight`, and they have {} and {}: give both the same",
                        self.title(),
                        first.path,
                        text(module),
                        text(first)
                    ),
                });
            }
        }
        let any = modules.iter().any(|module| module.stored_in().is_some());
        let kept = modules
            .iter()
            .zip(&names)
            .find(|(module, name)| any && module.stored_in().is_none() && self.demands_quantized(name));
        refusals.extend(kept.map(|(module, _)| {
            Refusal {
                tensor: format!("{}.weight", module.path),
                reason:
                    "transformers reads experts only quantized if anything is: quantize them, or give another ⟨target⟩"
                        .to_owned(),
            }
        }));
        refusals
    }

    /// Checks that the runtime reads the model in this format.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub(super) fn check_model(self, checkpoint: &Checkpoint) -> Result<()> {
        let model_type = checkpoint.model_type().unwrap_or_default();
        let unread = |(types, by, _): &&(&[&str], &[Self], &str)| types.contains(&model_type) && by.contains(&self);
        match UNREAD.iter().find(unread) {
            Some(&(.., reason)) => {
                let (model_type, format) = (model_type.to_owned(), "compressed-tensors");
                Err(Error::UnknownModel { model_type, format, reason: Some(reason) })
            }
            None => Ok(()),
        }
    }

    /// The library that a model card names.
    pub(super) fn library(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Transformers | Self::All => "transformers",
        }
    }

    /// How to run an output.
    pub(super) fn usage(self) -> &'static str {
        match self {
            Self::Vllm => {
                "```sh\npip install vllm\nvllm serve PATH_TO_THIS_DIRECTORY\n```\n\nWritten for vLLM 0.23 and later, and \
                 checked with 0.32 on a CPU. Integers of 4 bits run on most devices, those of 8 bits on most GPUs. The others, \
                 `fp8`, `mxfp4` and `nvfp4` need an NVIDIA device of compute capability 7.5 or more."
            }
            Self::Sglang => {
                "```sh\npip install sglang\npython -m sglang.launch_server --model-path PATH_TO_THIS_DIRECTORY\n```\n\n\
                 Written by the rules of SGLang 0.5.12 to 0.5.23, as their source states them."
            }
            Self::Transformers => {
                "```python\n# pip install transformers compressed-tensors accelerate\nfrom transformers import AutoModelForCausalLM\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"PATH_TO_THIS_DIRECTORY\")\n```\n\n\
                 Written for transformers 5 with compressed-tensors 0.17 or later, and checked with 5.23 and 0.20."
            }
            Self::All => {
                "```sh\nvllm serve PATH_TO_THIS_DIRECTORY\npython -m sglang.launch_server --model-path PATH_TO_THIS_DIRECTORY\n```\n\n\
                 `transformers` loads it with `AutoModelForCausalLM.from_pretrained`, if `compressed-tensors` is installed."
            }
        }
    }
}

/// Checks that the model's sizes divide among `devices`.
///
/// # Errors
/// [`Error::Option`] for the first size that does not.
pub(super) fn check_sizes(checkpoint: &Checkpoint, devices: u64) -> Result<()> {
    let wrong = |reason: String| Err(Error::option(OptionName::TensorParallel, devices, reason));
    for key in DIVIDED_SIZES {
        if let Some(size) = checkpoint.config_size(key).filter(|size| !size.is_multiple_of(devices)) {
            return wrong(format!("the model's {key} of {size} does not divide by it"));
        }
    }
    // Fewer heads than devices are held by several devices each.
    match checkpoint.config_size("num_key_value_heads") {
        Some(heads) if heads > 0 && !heads.is_multiple_of(devices) && !devices.is_multiple_of(heads) => {
            wrong(format!("the model's num_key_value_heads of {heads} neither divides by it, nor it by them"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;

    const EVERY: [Consumer; 4] = [Consumer::Vllm, Consumer::Sglang, Consumer::Transformers, Consumer::All];

    fn name(module: &str) -> Name {
        Name::parse(&format!("{module}.weight"))
    }

    fn module(path: &str, scheme: &str) -> Module {
        Module { path: path.to_owned(), scheme: scheme.parse().unwrap(), packed: None }
    }

    /// The consumers that refuse `module` of this shape in `scheme`.
    fn refused(module: &str, (rows, cols): (u64, u64), scheme: &str, devices: u64) -> Vec<&'static str> {
        let (name, matrix) = (name(module), Matrix { rows, cols, float: Float::BF16 });
        let scheme: Scheme = scheme.parse().unwrap();
        let refuses = |consumer: &&Consumer| {
            let reads = consumer.schemes().contains(&scheme) && scheme.fits(cols);
            !reads || consumer.refusal(&name, matrix, scheme, devices).is_some()
        };
        EVERY.iter().filter(refuses).map(|consumer| consumer.name()).collect()
    }

    #[test]
    fn widths_and_kinds_are_those_that_each_runtime_reads() {
        let down = |scheme| refused("model.layers.0.mlp.down_proj", (512, 512), scheme, 1);
        for scheme in ["int4g32", "int4g128", "int4channel", "int8g64"] {
            assert!(down(scheme).is_empty(), "{scheme}");
        }
        assert_eq!(down("int3g64"), ["sglang", "all"]);
        assert_eq!(down("fp8"), ["sglang", "all"]);
        assert_eq!(down("nvfp4"), ["sglang", "transformers", "all"]);
        assert_eq!(down("mxfp4"), ["sglang", "transformers", "all"]);
    }

    #[test]
    fn embeddings_routers_and_some_heads_are_read_unquantized_only() {
        let all = ["vllm", "sglang", "transformers", "all"];
        assert_eq!(refused("model.embed_tokens", (512, 512), "int8g64", 1), all);
        assert_eq!(refused("model.layers.0.mlp.gate", (128, 512), "int8g64", 1), all);
        assert_eq!(refused("embed_out", (512, 512), "int8g64", 1), all);
        assert!(refused("lm_head", (512, 512), "int8g64", 1).is_empty());
        assert_eq!(refused("lm_head", (512, 512), "int6g64", 1), all);
        assert_eq!(refused("model.layers.0.mlp.experts.1.up_proj", (512, 512), "nvfp4", 1), all);
    }

    #[test]
    fn tiles_are_asked_for_where_the_runtime_does_not_pad() {
        assert_eq!(refused("model.layers.0.mlp.up_proj", (192, 576), "int4g64", 1), ["sglang", "all"]);
        assert!(refused("model.layers.0.mlp.up_proj", (256, 576), "int4g64", 1).is_empty());
    }

    #[test]
    fn groups_lie_within_the_columns_of_a_device() {
        // 384 columns on 2 devices are 192: three groups of 64, but not one and a half of 128.
        assert!(refused("model.layers.0.mlp.down_proj", (512, 384), "int4g64", 2).is_empty());
        let all = ["vllm", "sglang", "transformers", "all"];
        assert_eq!(refused("model.layers.0.mlp.down_proj", (512, 384), "int4g128", 2), all);
        assert_eq!(refused("model.layers.0.mlp.down_proj", (512, 385), "int4g32", 2), all);
        // The columns of other layers are not divided.
        assert!(refused("model.layers.0.mlp.up_proj", (512, 384), "int4g128", 2).is_empty());
    }

    #[test]
    fn fused_modules_share_a_scheme() {
        let group = |consumer: Consumer, module: &str| consumer.fusion_group(&name(module)).into_owned();
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("model.layers.3.self_attn.{part}"));
        for consumer in [Consumer::Vllm, Consumer::Sglang, Consumer::All] {
            assert!(parts.iter().all(|part| group(consumer, part) == "model.layers.3.self_attn.qkv"));
            let of_mlp = group(consumer, "model.layers.3.mlp.gate_proj");
            assert_eq!(of_mlp, group(consumer, "model.layers.3.mlp.up_proj"));
            assert_ne!(of_mlp, group(consumer, "model.layers.4.mlp.up_proj"));
            assert_ne!(of_mlp, group(consumer, "model.layers.3.mlp.down_proj"));
        }
        assert!(parts.iter().all(|part| group(Consumer::Transformers, part) == *part));
        let experts = ["model.layers.3.mlp.experts.0.down_proj", "model.layers.3.mlp.experts.7.up_proj"];
        for consumer in EVERY {
            assert_eq!(group(consumer, experts[0]), group(consumer, experts[1]));
            // transformers takes one scheme for the experts of all layers.
            let other = group(consumer, "model.layers.4.mlp.experts.0.down_proj");
            assert_eq!(other == group(consumer, experts[0]), consumer.has_transformers());
        }
    }

    #[test]
    fn plans_that_a_runtime_refuses_are_refused_with_both_tensors() {
        let q_and_k =
            [module("model.layers.0.self_attn.q_proj", "int4g64"), module("model.layers.0.self_attn.k_proj", "kept")];
        let refusal = &Consumer::Vllm.refusals(&q_and_k)[0];
        assert!(refusal.tensor.contains("k_proj") && refusal.reason.contains("q_proj"), "{refusal:?}");
        assert!(Consumer::Transformers.refusals(&q_and_k).is_empty());
        let experts = [module("model.layers.0.mlp.experts.0.up_proj", "kept"), module("lm_head", "int4g64")];
        assert!(Consumer::Vllm.refusals(&experts).is_empty());
        assert_eq!(Consumer::Transformers.refusals(&experts).len(), 1);
        assert!(Consumer::Transformers.refusals(&experts[..1]).is_empty(), "nothing is quantized");
    }
}
