//! The names and forms that llama.cpp gives to the tensors of a model.
//!
//! Names are those of the used tensors of the [family table](super): experts of a layer are one stack. In layer `N` a module
//! `model.layers.N.self_attn.q_proj` is `blk.N.attn_q`. Apart from names, a GGUF file differs from a release in three
//! things: queries and keys of some models have the two halves of each head interleaved, norms that are stored minus one have
//! one added, and vectors, norms and routers are F32.

/// Modules of one kind: the name within a layer of a release, and that in a GGUF file.
type Modules = &'static [(&'static str, &'static str)];

/// A kind of model in llama.cpp.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GgufModel {
    /// `general.architecture`
    pub architecture: &'static str,
    /// The `model_type`s of releases that become this architecture. The first one is that of a file with no more to say.
    pub types: &'static [&'static str],
    /// Whether it has a mixture of experts, of architectures that also stand for models without.
    pub has_experts: bool,
    /// Whether the halves of the heads of queries and keys alternate: the runtime rotates adjacent channels.
    pub has_adjacent_pairs: bool,
    /// Whether rows of the embedding beyond the tokens that the tokenizer knows are left out.
    pub cuts_embedding: bool,
    /// The modules of a layer.
    modules: &'static [Modules],
}

/// Modules outside of all layers.
const OUTSIDE: Modules = &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

const ATTENTION: Modules = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];
const SINKS: Modules = &[("self_attn.sinks", "attn_sinks")];
const MLP: Modules = &[("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")];
const FUSED_MLP: Modules = &[("mlp.gate_up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")];
const PLAIN_MLP: Modules = &[("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")];
const GATE: Modules = &[("mlp.gate", "ffn_gate_inp")];
const EXPERTS: Modules = &[
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.experts.gate_up_proj", "ffn_gate_up_exps"),
];
const SHARED_EXPERT: Modules = &[
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
];
const SPARSE_BLOCK: Modules = &[
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.experts.gate_proj", "ffn_gate_exps"),
    ("block_sparse_moe.experts.up_proj", "ffn_up_exps"),
    ("block_sparse_moe.experts.down_proj", "ffn_down_exps"),
    ("block_sparse_moe.experts.gate_up_proj", "ffn_gate_up_exps"),
];
const ROUTER: Modules = &[("mlp.router", "ffn_gate_inp")];

/// Llama's names of norms: the one called "post attention" comes before the MLP.
const NORMS: Modules = &[("post_attention_layernorm", "ffn_norm")];
const NORMS_ON_BOTH_SIDES: Modules = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const NORMS_OF_GLM4: Modules = &[
    ("post_attention_layernorm", "ffn_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
];
const NORM_OF_GPT_OSS: Modules = &[("post_attention_layernorm", "post_attention_norm")];

/// A model of which everything is as in Llama, except for what is said otherwise.
const LLAMA: GgufModel = GgufModel {
    architecture: "llama",
    types: &["llama", "mistral"],
    has_experts: false,
    has_adjacent_pairs: true,
    cuts_embedding: false,
    modules: &[ATTENTION, MLP, NORMS],
};

/// The same with the channels of a head in the order of the release.
const IN_ORDER: GgufModel = GgufModel { has_adjacent_pairs: false, ..LLAMA };

const MODELS: &[GgufModel] = &[
    LLAMA,
    GgufModel { types: &["mixtral"], has_experts: true, modules: &[ATTENTION, SPARSE_BLOCK, NORMS], ..LLAMA },
    GgufModel { architecture: "granite", types: &["granite"], ..LLAMA },
    GgufModel { architecture: "smollm3", types: &["smollm3"], ..LLAMA },
    GgufModel { architecture: "qwen2", types: &["qwen2"], ..IN_ORDER },
    GgufModel { architecture: "qwen3", types: &["qwen3"], ..IN_ORDER },
    GgufModel {
        architecture: "qwen2moe",
        types: &["qwen2_moe"],
        has_experts: true,
        modules: &[ATTENTION, GATE, EXPERTS, SHARED_EXPERT, NORMS],
        ..IN_ORDER
    },
    GgufModel {
        architecture: "qwen3moe",
        types: &["qwen3_moe"],
        has_experts: true,
        modules: &[ATTENTION, GATE, EXPERTS, NORMS],
        ..IN_ORDER
    },
    GgufModel {
        architecture: "olmoe",
        types: &["olmoe"],
        has_experts: true,
        modules: &[ATTENTION, GATE, EXPERTS, NORMS],
        ..IN_ORDER
    },
    GgufModel { architecture: "olmo2", types: &["olmo2"], modules: &[ATTENTION, MLP, NORMS_ON_BOTH_SIDES], ..IN_ORDER },
    GgufModel { architecture: "gemma", types: &["gemma"], ..IN_ORDER },
    GgufModel {
        architecture: "gemma2",
        types: &["gemma2"],
        modules: &[ATTENTION, MLP, NORMS_ON_BOTH_SIDES],
        ..IN_ORDER
    },
    GgufModel {
        architecture: "gemma3",
        types: &["gemma3_text"],
        cuts_embedding: true,
        modules: &[ATTENTION, MLP, NORMS_ON_BOTH_SIDES],
        ..IN_ORDER
    },
    GgufModel { architecture: "phi3", types: &["phi3"], modules: &[ATTENTION, FUSED_MLP, NORMS], ..IN_ORDER },
    GgufModel { architecture: "glm4", types: &["glm4"], modules: &[ATTENTION, FUSED_MLP, NORMS_OF_GLM4], ..IN_ORDER },
    GgufModel {
        architecture: "starcoder2",
        types: &["starcoder2"],
        modules: &[ATTENTION, PLAIN_MLP, NORMS],
        ..IN_ORDER
    },
    GgufModel {
        architecture: "gpt-oss",
        types: &["gpt_oss"],
        has_experts: true,
        modules: &[ATTENTION, SINKS, ROUTER, EXPERTS, NORM_OF_GPT_OSS],
        ..IN_ORDER
    },
];

/// The model in llama.cpp of releases of `model_type`.
#[must_use]
pub(crate) fn of_type(model_type: &str) -> Option<&'static GgufModel> {
    MODELS.iter().find(|model| model.types.contains(&model_type))
}

/// The model of a file with this `general.architecture`.
#[must_use]
pub(crate) fn of_architecture(architecture: &str, has_experts: bool) -> Option<&'static GgufModel> {
    let fits = |model: &&GgufModel| model.architecture == architecture;
    let exact = MODELS.iter().find(|model| fits(model) && model.has_experts == has_experts);
    exact.or_else(|| MODELS.iter().find(fits))
}

/// The module of `name`, and the rest of the name.
fn module_of(name: &str) -> (&str, &str) {
    for end in [".weight", ".bias"] {
        if let Some(module) = name.strip_suffix(end) {
            return (module, end);
        }
    }
    (name, "")
}

/// The number of the layer of `path` after `prefix`, and the path within it.
fn within_layer<'n>(path: &'n str, prefix: &str) -> Option<(u32, &'n str)> {
    let (number, within) = path.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, within))
}

impl GgufModel {
    /// The name in a GGUF file of the tensor that is used as `name`; `None` if it has none that is known.
    #[must_use]
    pub(crate) fn name(&self, name: &str) -> Option<String> {
        let (module, end) = module_of(name);
        // Sinks are a parameter in a release, and the weight of a module in llama.cpp.
        let end = if end.is_empty() { ".weight" } else { end };
        if let Some((_, outside)) = OUTSIDE.iter().find(|(release, _)| *release == module) {
            return Some(format!("{outside}{end}"));
        }
        let (layer, within) = within_layer(module, "model.layers.")?;
        let (_, known) = self.modules.iter().copied().flatten().find(|(release, _)| *release == within)?;
        Some(format!("blk.{layer}.{known}{end}"))
    }

    /// The inverse of [`name`](Self::name).
    #[must_use]
    pub(crate) fn used_name(&self, name: &str) -> Option<String> {
        let (module, end) = module_of(name);
        if let Some((release, _)) = OUTSIDE.iter().find(|(_, outside)| *outside == module) {
            return Some(format!("{release}{end}"));
        }
        let (layer, within) = within_layer(module, "blk.")?;
        let (release, _) = self.modules.iter().copied().flatten().find(|(_, known)| *known == within)?;
        let end = if *release == "self_attn.sinks" { "" } else { end };
        Some(format!("model.layers.{layer}.{release}{end}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Name, Role, llama_cpp_name};

    #[test]
    fn names_are_mapped_both_ways_without_a_clash() {
        for model in MODELS {
            let mut seen = std::collections::BTreeSet::new();
            for (release, known) in model.modules.iter().copied().flatten() {
                let end = if *release == "self_attn.sinks" { "" } else { ".weight" };
                let used = format!("model.layers.12.{release}{end}");
                let name = model.name(&used).unwrap();
                assert_eq!(name, format!("blk.12.{known}.weight"), "{}", model.architecture);
                assert_eq!(model.used_name(&name).unwrap(), used, "{}", model.architecture);
                assert!(seen.insert(name), "{}: {known} stands for two modules", model.architecture);
            }
        }
    }

    #[test]
    fn names_are_those_that_roles_have() {
        for model in MODELS {
            for (release, known) in model.modules.iter().copied().flatten() {
                let [own, other] = [("model.layers.0.", release), ("blk.0.", known)]
                    .map(|(before, name)| Name::parse(&format!("{before}{name}.weight")));
                // A dense network with a fused gate is `ffn_up`.
                let expected = if *release == "mlp.gate_up_proj" { Role::Up } else { own.role };
                assert_eq!(other.role, expected, "{known}");
                let named = llama_cpp_name(expected).filter(|_| expected != Role::Norm);
                assert!(named.is_none_or(|named| known.starts_with(named)), "{known}");
            }
        }
        assert_eq!(Name::parse("output.weight").role, Role::Head);
        assert_eq!(Name::parse("blk.0.output.weight").role, Role::Other);
    }

    #[test]
    fn names_outside_of_layers_and_biases_are_mapped() {
        let llama = of_type("mistral").unwrap();
        assert_eq!(llama.name("lm_head.weight").as_deref(), Some("output.weight"));
        assert_eq!(llama.used_name("output_norm.weight").as_deref(), Some("model.norm.weight"));
        assert_eq!(llama.name("model.layers.3.self_attn.q_proj.bias").as_deref(), Some("blk.3.attn_q.bias"));
        assert_eq!(llama.name("model.layers.3.mlp.experts.gate_proj.weight"), None);
        assert_eq!(llama.used_name("rope_freqs.weight"), None);
    }

    #[test]
    fn an_architecture_with_experts_is_another_model() {
        assert_eq!(of_architecture("llama", false).unwrap().types[0], "llama");
        assert_eq!(of_architecture("llama", true).unwrap().types[0], "mixtral");
        assert_eq!(of_architecture("qwen3moe", true).unwrap().types[0], "qwen3_moe");
        assert!(of_architecture("unheard-of", false).is_none());
    }
}
