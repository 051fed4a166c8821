//! The spelling of names: wrappers of training code around a model, and the prefixes of the same model in other releases.
//!
//! `torch.compile`, FSDP and data-parallel training put their own module in front of every name, and a multimodal release
//! puts the language model into a larger one. A name that differs from its family's usual spelling only in these modules is
//! read under the usual spelling, so that every rule of the family applies.

/// Modules that wrap others anywhere in a path: `torch.compile`, FSDP, activation checkpointing, Lightning.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// Modules in front of a whole model: data-parallel training, PEFT, TRL.
const OUTER: [&str; 3] = ["module", "base_model", "pretrained_model"];

/// Names of a model's body, or of the language model within a larger one.
const BODIES: [&str; 8] =
    ["model", "language_model", "text_model", "llm", "transformer", "gpt_neox", "backbone", "base_model"];

/// Children of a model's body.
const CHILDREN: [&str; 14] = [
    "embed_tokens",
    "embed_in",
    "embeddings",
    "wte",
    "wpe",
    "layers",
    "h",
    "norm",
    "norm_f",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "rotary_emb",
    "emb_dropout",
];

/// Heads, which lie next to a model's body.
const HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// The usual prefixes of a model type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// Of the children of the body: the usual one, then others that are accepted.
    pub body: &'static [&'static str],
    /// Of the head.
    pub head: &'static str,
}

/// The prefixes of `model_type`, a type of the family table.
pub(crate) fn prefixes(model_type: &str) -> Prefixes {
    match model_type {
        "gpt2" => Prefixes { body: &["transformer.", ""], head: "" },
        "gpt_neox" => Prefixes { body: &["gpt_neox."], head: "" },
        "mamba2" => Prefixes { body: &["backbone."], head: "" },
        "qwen3_5" | "qwen3_5_moe" => Prefixes { body: &["model.language_model."], head: "" },
        "llama4" | "kimi_k25" => Prefixes { body: &["language_model.model."], head: "language_model." },
        _ => Prefixes { body: &["model."], head: "" },
    }
}

/// The usual spelling of `name`, if it differs. Without `prefixes`, only the wrappers of training code are taken off.
pub(crate) fn usual(name: &str, prefixes: Option<Prefixes>) -> Option<String> {
    let mut parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    while parts.first().is_some_and(|first| OUTER.contains(first)) {
        // PEFT calls the wrapped model `base_model.model`.
        let is_peft = parts.remove(0) == "base_model";
        if is_peft && parts.first() == Some(&"model") {
            parts.remove(0);
        }
    }
    let unwrapped = parts.join(".");
    let spelled = prefixes.and_then(|prefixes| {
        if prefixes.body.iter().any(|body| unwrapped.strip_prefix(body).is_some_and(|rest| is_child(first_of(rest)))) {
            return None;
        }
        let from = parts.iter().position(|part| !BODIES.contains(part))?;
        let rest = parts[from..].join(".");
        match first_of(&rest) {
            first if is_child(first) => Some(format!("{}{rest}", prefixes.body[0])),
            first if HEADS.contains(&first) => Some(format!("{}{rest}", prefixes.head)),
            _ => None,
        }
    });
    Some(spelled.unwrap_or(unwrapped)).filter(|spelled| spelled != name)
}

fn first_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn is_child(part: &str) -> bool {
    CHILDREN.contains(&part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(name: &str, model_type: &str) -> String {
        usual(name, Some(prefixes(model_type))).unwrap_or_else(|| name.to_owned())
    }

    #[test]
    fn wrappers_are_taken_off_at_any_place_and_all_at_once() {
        for name in [
            "model.layers.0.mlp.up_proj.weight",
            "_orig_mod.model.layers.0.mlp.up_proj.weight",
            "model._orig_mod.layers.0._orig_mod.mlp.up_proj.weight",
            "module._orig_mod.model.layers.0.mlp.up_proj.weight",
            "base_model.model.model.layers.0.mlp.up_proj.weight",
            "module.base_model.model.model.layers.0.mlp.up_proj.weight",
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
            "model.language_model.layers.0.mlp.up_proj.weight",
            "model.model.layers.0.mlp.up_proj.weight",
            "layers.0.mlp.up_proj.weight",
        ] {
            assert_eq!(spelled(name, "llama"), "model.layers.0.mlp.up_proj.weight", "{name}");
        }
        for name in ["lm_head.weight", "model.lm_head.weight", "language_model.lm_head.weight", "module.lm_head.weight"]
        {
            assert_eq!(spelled(name, "llama"), "lm_head.weight", "{name}");
        }
    }

    #[test]
    fn each_type_has_its_own_usual_spelling() {
        let same = [
            ("gpt2", "h.0.ln_1.weight"),
            ("gpt2", "transformer.h.0.ln_1.weight"),
            ("gpt_neox", "gpt_neox.layers.0.input_layernorm.weight"),
            ("gpt_neox", "embed_out.weight"),
            ("mamba2", "backbone.norm_f.weight"),
            ("qwen3_5", "model.language_model.norm.weight"),
            ("qwen3_5", "lm_head.weight"),
            ("qwen3_5", "mtp.layers.0.mlp.up_proj.weight"),
            ("qwen3_5", "model.visual.blocks.0.norm1.weight"),
            ("llama4", "language_model.model.norm.weight"),
            ("llama4", "vision_model.model.layers.0.mlp.fc1.weight"),
            ("kimi_k25", "language_model.lm_head.weight"),
            ("llama", "v_head.summary.weight"),
            ("llama", "score.weight"),
        ];
        for (model_type, name) in same {
            assert_eq!(spelled(name, model_type), name);
        }
        assert_eq!(spelled("language_model.model.norm.weight", "qwen3_5"), "model.language_model.norm.weight");
        assert_eq!(spelled("language_model.lm_head.weight", "qwen3_5"), "lm_head.weight");
        assert_eq!(spelled("lm_head.weight", "llama4"), "language_model.lm_head.weight");
        assert_eq!(spelled("layers.1.attention.bias", "gpt_neox"), "gpt_neox.layers.1.attention.bias");
        assert_eq!(spelled("module.model.visual.merger.norm.weight", "qwen3_5"), "model.visual.merger.norm.weight");
    }

    #[test]
    fn without_a_known_type_only_wrappers_are_taken_off() {
        let usual = |name: &str| usual(name, None);
        assert_eq!(usual("_orig_mod.encoder.layer.0.weight").as_deref(), Some("encoder.layer.0.weight"));
        assert_eq!(usual("module.language_model.norm.weight").as_deref(), Some("language_model.norm.weight"));
        assert_eq!(usual("language_model.model.norm.weight"), None);
    }
}
