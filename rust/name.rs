//! What a tensor's name says about it: its role, its layer, its expert, the place of a norm.
//!
//! A new architecture needs at most a line in `ROLES` or `NORMS`.

use std::fmt;

/// What a tensor does in a transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Rows looked up by token.
    Embedding,
    /// From the last hidden state to the vocabulary.
    Head,
    /// Attention: queries.
    Query,
    /// Attention: keys.
    Key,
    /// Attention: values.
    Value,
    /// Attention: queries, keys and values in one matrix, in this order.
    QueryKeyValue,
    /// Attention: heads back to the residual stream.
    Output,
    /// MLP: the activated gate.
    Gate,
    /// MLP: the factor of the activated gate, or the only first matrix.
    Up,
    /// MLP: gate and up in one matrix.
    GateUp,
    /// MLP: back to the residual stream.
    Down,
    /// Which expert a token goes to, or how much of one.
    Router,
    /// Gain of a normalisation.
    Norm,
    /// Convolution over time.
    Convolution,
    /// Positions: tables and frequencies.
    Position,
    /// Parameters of a recurrence, attention sinks, and other small vectors that are added or exponentiated.
    Parameter,
    /// A part outside the language model: vision, audio, projectors.
    Tower,
    /// A head that predicts tokens further ahead.
    MultiToken,
    /// None of these.
    Other,
}

impl Role {
    /// Its name in files and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::QueryKeyValue => "query-key-value",
            Self::Output => "output",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::GateUp => "gate-up",
            Self::Down => "down",
            Self::Router => "router",
            Self::Norm => "norm",
            Self::Convolution => "convolution",
            Self::Position => "position",
            Self::Parameter => "parameter",
            Self::Tower => "tower",
            Self::MultiToken => "multi-token",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// Where in a model a norm is applied, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// To the input of attention.
    BeforeAttention,
    /// To the output of attention.
    AfterAttention,
    /// Called "post attention": to the input of the MLP in most families, to the output of attention in others.
    PostAttention,
    /// To the input of the MLP.
    BeforeMlp,
    /// To the output of the MLP.
    AfterMlp,
    /// To the input of the head.
    BeforeHead,
    /// To queries.
    Query,
    /// To keys.
    Key,
}

/// Last part of a norm's module, and the norm's place.
const NORMS: [(&str, NormPlace); 17] = [
    ("input_layernorm", NormPlace::BeforeAttention),
    ("ln_1", NormPlace::BeforeAttention),
    ("attention_norm", NormPlace::BeforeAttention),
    ("post_self_attn_layernorm", NormPlace::AfterAttention),
    ("post_attention_layernorm", NormPlace::PostAttention),
    ("pre_feedforward_layernorm", NormPlace::BeforeMlp),
    ("ln_2", NormPlace::BeforeMlp),
    ("ffn_norm", NormPlace::BeforeMlp),
    ("post_feedforward_layernorm", NormPlace::AfterMlp),
    ("post_mlp_layernorm", NormPlace::AfterMlp),
    ("norm", NormPlace::BeforeHead),
    ("ln_f", NormPlace::BeforeHead),
    ("norm_f", NormPlace::BeforeHead),
    ("final_layernorm", NormPlace::BeforeHead),
    ("final_layer_norm", NormPlace::BeforeHead),
    ("q_norm", NormPlace::Query),
    ("k_norm", NormPlace::Key),
];

/// Parts of a path that put a tensor outside the language model.
const PARTS: [(&str, Role); 12] = [
    ("visual", Role::Tower),
    ("vision_tower", Role::Tower),
    ("vision_model", Role::Tower),
    ("vision_encoder", Role::Tower),
    ("vision_embed_tokens", Role::Tower),
    ("multi_modal_projector", Role::Tower),
    ("mm_projector", Role::Tower),
    ("audio_tower", Role::Tower),
    ("embed_vision", Role::Tower),
    ("embed_audio", Role::Tower),
    ("img_processor", Role::Tower),
    ("mtp", Role::MultiToken),
];

/// Ending of a module's path, and its role. The first match counts.
const ROLES: [(&str, Role); 76] = [
    // Routers that are a layer within a module.
    ("router.gate", Role::Router),
    ("router.layer", Role::Router),
    ("router.proj", Role::Router),
    ("router.classifier", Role::Router),
    ("gate.gate_proj", Role::Router),
    ("gate.gate", Role::Router),
    ("gate.proj", Role::Router),
    ("gate.wg", Role::Router),
    // Names that attention and MLP share are told apart by their parent module.
    ("attn.c_proj", Role::Output),
    ("attn.c_attn", Role::QueryKeyValue),
    ("attention.dense", Role::Output),
    ("self_attn.dense", Role::Output),
    ("attention.output.dense", Role::Output),
    ("attention.self.query", Role::Query),
    ("attention.self.key", Role::Key),
    ("attention.self.value", Role::Value),
    ("intermediate.dense", Role::Up),
    ("output.dense", Role::Down),
    ("mlp.c_fc", Role::Up),
    ("mlp.c_proj", Role::Down),
    ("mixer.in_proj", Role::Up),
    ("mixer.out_proj", Role::Down),
    ("embed_tokens", Role::Embedding),
    ("wte", Role::Embedding),
    ("tok_embeddings", Role::Embedding),
    ("word_embeddings", Role::Embedding),
    ("embed_in", Role::Embedding),
    ("backbone.embeddings", Role::Embedding),
    ("lm_head", Role::Head),
    ("embed_out", Role::Head),
    ("q_proj", Role::Query),
    ("wq", Role::Query),
    ("q_a_proj", Role::Query),
    ("q_b_proj", Role::Query),
    ("k_proj", Role::Key),
    ("wk", Role::Key),
    ("embed_q", Role::Key),
    ("v_proj", Role::Value),
    ("wv", Role::Value),
    ("unembed_out", Role::Value),
    ("qkv_proj", Role::QueryKeyValue),
    ("kv_a_proj_with_mqa", Role::QueryKeyValue),
    ("kv_b_proj", Role::QueryKeyValue),
    ("in_proj_qkv", Role::QueryKeyValue),
    ("in_proj_qkvz", Role::QueryKeyValue),
    ("in_proj_z", Role::Gate),
    ("query_key_value", Role::QueryKeyValue),
    ("Wqkv", Role::QueryKeyValue),
    ("o_proj", Role::Output),
    ("wo", Role::Output),
    ("out_proj", Role::Output),
    ("gate_up_proj", Role::GateUp),
    ("gate_proj", Role::Gate),
    ("up_proj", Role::Up),
    ("down_proj", Role::Down),
    ("w1", Role::Gate),
    ("w3", Role::Up),
    ("w2", Role::Down),
    ("fc1", Role::Up),
    ("fc2", Role::Down),
    ("input_linear", Role::GateUp),
    ("output_linear", Role::Down),
    ("dense_h_to_4h", Role::Up),
    ("dense_4h_to_h", Role::Down),
    ("gate", Role::Router),
    ("router", Role::Router),
    ("shared_expert_gate", Role::Router),
    ("e_score_correction_bias", Role::Parameter),
    ("conv1d", Role::Convolution),
    ("wpe", Role::Position),
    ("position_embeddings", Role::Position),
    ("token_type_embeddings", Role::Position),
    ("pos_embed", Role::Position),
    ("inv_freq", Role::Position),
    ("rotary_emb", Role::Position),
    ("sinks", Role::Parameter),
];

/// Names that llama.cpp gives to modules, the same in all families. Those of layer `N` begin with `blk.N.`; those of stacked
/// experts end in `_exps`, and of the shared expert in `_shexp`.
const LLAMA_CPP: [(Role, &str); 16] = [
    (Role::Embedding, "token_embd"),
    (Role::Head, "output"),
    (Role::Query, "attn_q"),
    (Role::Key, "attn_k"),
    (Role::Value, "attn_v"),
    (Role::QueryKeyValue, "attn_qkv"),
    (Role::Output, "attn_output"),
    (Role::Gate, "ffn_gate"),
    (Role::Up, "ffn_up"),
    (Role::GateUp, "ffn_gate_up"),
    (Role::Down, "ffn_down"),
    (Role::Router, "ffn_gate_inp"),
    (Role::Parameter, "attn_sinks"),
    (Role::Position, "rope_freqs"),
    (Role::Position, "rope_factors_short"),
    (Role::Position, "rope_factors_long"),
];

/// The name that llama.cpp gives to a matrix of `role`.
#[must_use]
pub(crate) fn llama_cpp_name(role: Role) -> Option<&'static str> {
    LLAMA_CPP.iter().find(|(known, _)| *known == role).map(|(_, name)| *name)
}

/// The role of `module` by llama.cpp's name of it.
fn llama_cpp_role(module: &str) -> Option<Role> {
    let last = last_part(module);
    let name = ["_exps", "_shexp"].iter().find_map(|end| last.strip_suffix(end)).unwrap_or(last);
    let (role, _) = LLAMA_CPP.iter().find(|(_, known)| *known == name)?;
    // Elsewhere `output` is a part of other names.
    (*role != Role::Head || module == name).then_some(*role)
}

/// Parameters that are not modules, and the projections that compute parameters of a recurrence for each token.
const PARAMETERS: [&str; 8] =
    ["A_log", "D", "dt_bias", "sinks", "e_score_correction_bias", "in_proj_a", "in_proj_b", "in_proj_ba"];

/// The part of `path` that lies outside of the language model, if one does.
#[must_use]
pub(crate) fn outside_part(path: &str) -> Option<&'static str> {
    let named = |part: &str| PARTS.iter().find(|(known, _)| *known == part).map(|(known, _)| *known);
    path.split('.').find_map(named)
}

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// The module: the name without its last part, if that is `weight` or `bias`.
    pub module: String,
    /// Whether it is the module's weight.
    pub is_weight: bool,
    /// Its role.
    pub role: Role,
    /// Its place, if it is a norm that has one of those that are known.
    pub norm: Option<NormPlace>,
    /// Index of its layer.
    pub layer: Option<usize>,
    /// Index of its expert.
    pub expert: Option<usize>,
}

impl Name {
    /// Reads `name`, as a checkpoint spells it.
    #[must_use]
    pub(crate) fn parse(name: &str) -> Self {
        // Packed codes have the role of the weight.
        let name = name.strip_suffix("_blocks").unwrap_or(name);
        let (module, is_weight) = match name.rsplit_once('.') {
            Some((module, "weight" | "weight_packed")) => (module, true),
            Some((module, "bias")) => (module, false),
            _ => (name, false),
        };
        let number_after = |words: &[&str]| {
            let mut parts = module.split('.');
            parts.by_ref().find(|part| words.contains(part))?;
            parts.next()?.parse().ok()
        };
        let role = role(module);
        let norm = NORMS.iter().find(|(last, _)| role == Role::Norm && last_part(module) == *last);
        Self {
            role,
            norm: norm.map(|(_, place)| *place),
            layer: number_after(&["layers", "h", "blocks", "layer", "block", "blk"]),
            expert: number_after(&["experts"]),
            module: module.to_owned(),
            is_weight,
        }
    }
}

fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn role(module: &str) -> Role {
    if let Some(&(_, role)) = PARTS.iter().find(|(part, _)| module.split('.').any(|here| here == *part)) {
        return role;
    }
    let last = last_part(module);
    if PARAMETERS.contains(&last) {
        return Role::Parameter;
    }
    let lower = last.to_ascii_lowercase();
    if lower.contains("norm") || lower.starts_with("ln") {
        return Role::Norm;
    }
    let ends = |end: &str| module.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    let known = ROLES.iter().find(|(end, _)| ends(end)).map(|&(_, role)| role);
    known.or_else(|| llama_cpp_role(module)).unwrap_or(Role::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real names, and what they are.
    const SEEN: [(&str, Role, Option<usize>, Option<usize>); 45] = [
        ("model.embed_tokens.weight", Role::Embedding, None, None),
        ("lm_head.weight", Role::Head, None, None),
        ("model.norm.weight", Role::Norm, None, None),
        ("model.layers.0.input_layernorm.weight", Role::Norm, Some(0), None),
        ("model.layers.17.self_attn.q_proj.weight", Role::Query, Some(17), None),
        ("model.layers.3.self_attn.q_proj.bias", Role::Query, Some(3), None),
        ("model.layers.3.self_attn.q_norm.weight", Role::Norm, Some(3), None),
        ("model.layers.3.self_attn.o_proj.weight", Role::Output, Some(3), None),
        ("model.layers.3.self_attn.qkv_proj.weight", Role::QueryKeyValue, Some(3), None),
        ("model.layers.3.self_attn.sinks", Role::Parameter, Some(3), None),
        ("model.layers.3.self_attn.rotary_emb.inv_freq", Role::Position, Some(3), None),
        ("model.layers.3.mlp.gate_proj.weight", Role::Gate, Some(3), None),
        ("model.layers.3.mlp.gate_up_proj.weight", Role::GateUp, Some(3), None),
        ("model.layers.3.mlp.gate.weight", Role::Router, Some(3), None),
        ("model.layers.3.mlp.gate.e_score_correction_bias", Role::Parameter, Some(3), None),
        ("model.layers.3.mlp.experts.12.down_proj.weight", Role::Down, Some(3), Some(12)),
        ("model.layers.3.mlp.shared_expert_gate.weight", Role::Router, Some(3), None),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", Role::Up, Some(3), None),
        ("model.layers.3.block_sparse_moe.gate.weight", Role::Router, Some(3), None),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", Role::Down, Some(3), Some(7)),
        ("model.layers.3.linear_attn.conv1d.weight", Role::Convolution, Some(3), None),
        ("model.layers.3.linear_attn.A_log", Role::Parameter, Some(3), None),
        ("model.layers.3.linear_attn.in_proj_ba.weight", Role::Parameter, Some(3), None),
        ("model.layers.3.mlp.experts.gate_up_proj_blocks", Role::GateUp, Some(3), None),
        ("model.layers.3.mlp.experts.7.down_proj.weight_packed", Role::Down, Some(3), Some(7)),
        ("model.layers.3.feed_forward.router.weight", Role::Router, Some(3), None),
        ("model.layers.3.block_sparse_moe.router.layer.weight", Role::Router, Some(3), None),
        ("model.layers.3.mlp.gate.gate_proj.weight", Role::Router, Some(3), None),
        ("model.layers.3.mlp.gate.wg.weight", Role::Router, Some(3), None),
        ("backbone.layers.3.mixer.switch_mlp.fc1.weight", Role::Up, Some(3), None),
        ("backbone.layers.3.mixer.switch_mlp.fc2.weight", Role::Down, Some(3), None),
        ("language_model.model.layers.3.mlp.switch_mlp.up_proj.weight", Role::Up, Some(3), None),
        ("model.layers.3.self_attn.embed_q.weight", Role::Key, Some(3), None),
        ("backbone.layers.4.mixer.D", Role::Parameter, Some(4), None),
        ("backbone.embeddings.weight", Role::Embedding, None, None),
        ("h.11.attn.c_attn.weight", Role::QueryKeyValue, Some(11), None),
        ("h.11.attn.c_proj.weight", Role::Output, Some(11), None),
        ("h.11.mlp.c_proj.weight", Role::Down, Some(11), None),
        ("h.11.ln_1.weight", Role::Norm, Some(11), None),
        ("wpe.weight", Role::Position, None, None),
        ("model.visual.blocks.3.attn.qkv.weight", Role::Tower, Some(3), None),
        ("mtp.layers.0.mlp.up_proj.weight", Role::MultiToken, Some(0), None),
        ("encoder.layer.2.attention.output.dense.weight", Role::Output, Some(2), None),
        ("encoder.layer.2.output.dense.weight", Role::Down, Some(2), None),
        ("pooler.dense.weight", Role::Other, None, None),
    ];

    #[test]
    fn real_names_are_understood() {
        for (name, role, layer, expert) in SEEN {
            let read = Name::parse(name);
            assert_eq!((read.role, read.layer, read.expert), (role, layer, expert), "{name}");
        }
    }

    #[test]
    fn every_norm_with_a_place_is_a_norm() {
        for (last, place) in NORMS {
            let name = Name::parse(&format!("model.layers.3.{last}.weight"));
            assert_eq!((name.role, name.norm), (Role::Norm, Some(place)), "{last}");
        }
        assert_eq!(Name::parse("model.visual.norm.weight").norm, None);
        assert_eq!(Name::parse("model.layers.3.mixer.group_norm.weight").norm, None);
    }

    #[test]
    fn the_module_is_the_name_without_its_weight() {
        assert_eq!(Name::parse("a.b.weight").module, "a.b");
        assert!(Name::parse("a.b.weight").is_weight);
        assert_eq!(Name::parse("a.b.bias").module, "a.b");
        assert!(!Name::parse("a.b.bias").is_weight);
        assert_eq!(Name::parse("a.sinks").module, "a.sinks");
    }
}
