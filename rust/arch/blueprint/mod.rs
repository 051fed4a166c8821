//! The tensors that a model of each type must have: names and shapes, from its configuration.
//!
//! Names are those that the [family table](super::families) maps a release to, with one tensor for all experts of a layer.
//! [`layouts`] has an entry for each model type; [`parts`] has the tensors of the parts that entries consist of. A size that
//! the configuration does not state is not checked.

mod layouts;
mod parts;

use std::collections::BTreeMap;
use std::ops::{Add, Mul};

use super::families::{Becomes, ModelFamily, Transform};
use super::spelling::{Prefixes, prefixes};
use crate::checkpoint::Checkpoint;
use layouts::{TypeLayout, layout};

/// A dimension of a tensor; `None` if the configuration does not state it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dimension(pub Option<u64>);

impl Dimension {
    const ONE: Self = Self(Some(1));

    /// Whether a dimension of `length` is this one, as far as it is known.
    pub(crate) fn is(self, length: u64) -> bool {
        self.0.is_none_or(|size| size == length)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }

    fn divided_by(self, other: Self) -> Self {
        Self(self.0.zip(other.0).and_then(|(one, other)| one.checked_div(other)))
    }
}

impl Add for Dimension {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.zip(other.0).and_then(|(one, other)| one.checked_add(other)))
    }
}

impl Mul for Dimension {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self(self.0.zip(other.0).and_then(|(one, other)| one.checked_mul(other)))
    }
}

impl Mul<Dimension> for u64 {
    type Output = Dimension;

    fn mul(self, size: Dimension) -> Dimension {
        Dimension(Some(self)) * size
    }
}

/// Whether the head of a model type is the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadTie {
    /// Runtimes read a head of its own, whatever the configuration says.
    Never,
    /// Runtimes read `tie_word_embeddings`, which is this by default.
    Stated(bool),
    /// Runtimes use the embedding, whatever the configuration says.
    Always,
}

impl HeadTie {
    /// Whether the head of the model in `checkpoint` is the embedding.
    pub(crate) fn holds(self, checkpoint: &Checkpoint) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Stated(by_default) => checkpoint.is_tied().unwrap_or(by_default),
        }
    }
}

/// The tensors of a model.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    /// The dimensions of each tensor, by its name. The head is not one of them.
    pub tensors: BTreeMap<String, Vec<Dimension>>,
    /// The name of the embedding.
    pub embedding: String,
    /// Name and dimensions of the head's weight, and of its bias if it has one.
    pub head: Vec<(String, Vec<Dimension>)>,
    pub tie: HeadTie,
    /// The number of layers.
    pub layers: u64,
    /// The beginning of the names of layers, up to their number.
    pub layer_prefix: String,
}

/// The tensors of the model in `checkpoint`; `None` if the type has no blueprint.
pub(crate) fn blueprint(checkpoint: &Checkpoint) -> Option<Blueprint> {
    let layout = layout(checkpoint.model_type()?)?;
    let config = Sizes(checkpoint);
    let layers = config.size(&["num_hidden_layers", "n_layer"]).0.unwrap_or(0);
    let Prefixes { body, head } = prefixes(checkpoint.model_type()?);
    let has_layers = |body: &&&str| {
        let prefix = format!("{body}{}.", layout.layers);
        checkpoint.tensors.iter().any(|tensor| tensor.name.starts_with(&prefix))
    };
    let body = body.iter().find(has_layers).unwrap_or(&body[0]);
    let vocabulary = config.size(&["vocab_size"]);
    let mut drawing = Drawing { config, layout, body, tensors: BTreeMap::new() };
    let embedding = drawing.outside(vocabulary);
    for layer in 0..layers.min(MAX_LAYERS) {
        drawing.layer(layer);
    }
    let head_name = format!("{head}{}", layout.head);
    let mut head = vec![(format!("{head_name}.weight"), vec![vocabulary, config.hidden()])];
    if layout.head_bias {
        head.push((format!("{head_name}.bias"), vec![vocabulary]));
    }
    let layer_prefix = format!("{body}{}.", layout.layers);
    Some(Blueprint { tensors: drawing.tensors, embedding, head, tie: layout.tie, layers, layer_prefix })
}

/// Modules of a layer that a GGUF file may hold as one, and what it is then called. Their outputs follow each other.
const FUSIONS: [(&str, &[&str]); 2] = [
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("experts.gate_up_proj", &["experts.gate_proj", "experts.up_proj"]),
];

/// No model has more layers: those beyond are not listed.
const MAX_LAYERS: u64 = 4096;

impl Blueprint {
    /// The layer that the tensor `name` belongs to.
    pub(crate) fn layer_of(&self, name: &str) -> Option<u64> {
        name.strip_prefix(self.layer_prefix.as_str())?.split('.').next()?.parse().ok()
    }

    /// The same model with modules fused that `checkpoint` holds fused: llama.cpp's converter does so if it is told to.
    pub(crate) fn with_fusions(mut self, checkpoint: &Checkpoint) -> Self {
        for name in checkpoint.tensors.iter().map(|tensor| &tensor.name) {
            if !self.tensors.contains_key(name) {
                let _ = self.fuse(name);
            }
        }
        self
    }

    /// Fuses the tensors that `name` stands for; `None` if it stands for none.
    fn fuse(&mut self, name: &str) -> Option<()> {
        let (module, part) = name.rsplit_once('.')?;
        let find = |(fused, parts): &(&str, &'static [&str])| {
            let within = module.strip_suffix(fused).filter(|within| within.ends_with('.'))?;
            Some(parts.iter().map(|own| format!("{within}{own}.{part}")).collect::<Vec<_>>())
        };
        let parts = FUSIONS.iter().find_map(find)?;
        let mut shape = self.tensors.get(parts.first()?)?.clone();
        let outputs = shape.len().checked_sub(if part == "bias" { 1 } else { 2 })?;
        let sizes: Option<Vec<Dimension>> =
            parts.iter().map(|part| self.tensors.get(part)?.get(outputs).copied()).collect();
        shape[outputs] = sizes?.into_iter().reduce(Dimension::add)?;
        self.tensors.retain(|own, _| !parts.contains(own));
        self.tensors.insert(name.to_owned(), shape);
        Some(())
    }

    /// The same model as `mlx-lm` has it.
    pub(crate) fn for_mlx(&self, family: &ModelFamily, checkpoint: &Checkpoint) -> Self {
        let config = Sizes(checkpoint);
        let mut tensors = BTreeMap::new();
        for (name, shape) in &self.tensors {
            let Some((Becomes::Used(parts), found)) = family.stored_for_mlx(name) else {
                tensors.insert(family.mlx_name(name), shape.clone());
                continue;
            };
            for (pattern, transform) in parts {
                let shape = match (transform, shape.as_slice()) {
                    (Transform::SwappedAxes, &[channels, inputs, taps]) => vec![channels, taps, inputs],
                    (Transform::LatentKeys, &[_, rank]) => {
                        vec![config.heads(), rank, config.size(&["qk_nope_head_dim"])]
                    }
                    (Transform::LatentValues, &[_, rank]) => vec![config.heads(), config.size(&["v_head_dim"]), rank],
                    (_, shape) => shape.to_vec(),
                };
                tensors.insert(family.mlx_name(&pattern.replacen('*', found.beginning, 1)), shape);
            }
        }
        let head = self.head.iter().map(|(name, shape)| (family.mlx_name(name), shape.clone())).collect();
        let (embedding, layer_prefix) = (family.mlx_name(&self.embedding), family.mlx_name(&self.layer_prefix));
        Self { tensors, embedding, head, layer_prefix, ..*self }
    }
}

/// The sizes and switches of a configuration.
#[derive(Clone, Copy)]
struct Sizes<'c>(&'c Checkpoint);

impl Sizes<'_> {
    fn size(self, keys: &[&str]) -> Dimension {
        Dimension(keys.iter().find_map(|key| self.0.config_size(key)))
    }

    fn flag(self, key: &str) -> bool {
        self.0.config_value(key).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }

    fn hidden(self) -> Dimension {
        self.size(&["hidden_size", "n_embd"])
    }

    fn heads(self) -> Dimension {
        self.size(&["num_attention_heads", "n_head"])
    }

    fn key_heads(self) -> Dimension {
        self.size(&["num_key_value_heads"]).or(self.heads())
    }

    fn head_size(self) -> Dimension {
        self.size(&["head_dim"]).or(self.hidden().divided_by(self.heads()))
    }

    fn inner(self) -> Dimension {
        self.size(&["intermediate_size"])
    }

    fn experts(self) -> Dimension {
        self.size(&["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
    }

    /// Whether the list `key` contains `layer`.
    fn lists(self, key: &str, layer: u64) -> Option<bool> {
        let layers = self.0.config_value(key)?.as_array()?;
        Some(layers.iter().any(|listed| listed.as_u64() == Some(layer)))
    }

    /// Whether `layer_types` gives `layer` full attention; `None` if it does not say.
    fn has_full_attention(self, layer: u64) -> Option<bool> {
        let kinds = self.0.config_value("layer_types")?.as_array()?;
        match kinds.get(usize::try_from(layer).ok()?)?.as_str()? {
            "full_attention" => Some(true),
            "linear_attention" | "sliding_attention" => Some(false),
            _ => None,
        }
    }
}

/// A blueprint under construction.
struct Drawing<'c> {
    config: Sizes<'c>,
    layout: &'static TypeLayout,
    /// The beginning of the names of the body's children.
    body: &'static str,
    tensors: BTreeMap<String, Vec<Dimension>>,
}

impl Drawing<'_> {
    fn tensor(&mut self, name: String, shape: &[Dimension]) {
        self.tensors.insert(name, shape.to_vec());
    }

    fn linear(&mut self, module: &str, outputs: Dimension, inputs: Dimension, has_bias: bool) {
        self.tensor(format!("{module}.weight"), &[outputs, inputs]);
        if has_bias {
            self.tensor(format!("{module}.bias"), &[outputs]);
        }
    }

    fn norm(&mut self, module: &str, size: Dimension, has_bias: bool) {
        self.tensor(format!("{module}.weight"), &[size]);
        if has_bias {
            self.tensor(format!("{module}.bias"), &[size]);
        }
    }
}
