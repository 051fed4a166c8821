//! Which tensor plays which part: the blocks of a decoder, found by role and layer.
//!
//! Nothing here knows an architecture by its name but [`Traits`], the few conventions that a configuration implies
//! and does not say. What does not fit the pattern is left out, and its matrices count all their inputs alike.

use std::collections::BTreeMap;

use super::gaussian::Activation;
use crate::checkpoint::{Checkpoint, Matrix, Tensor};
use crate::name::{Name, Role};

/// Conventions of a model that its configuration does not state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traits {
    /// A norm's gain is `1 + weight`.
    pub norm_adds_one: bool,
    /// Looked-up embeddings are multiplied by this.
    pub embedding_scale: f64,
    /// A block's output is multiplied by this before it is added.
    pub residual_scale: f64,
}

impl Traits {
    /// Those of `checkpoint`.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let model_type = checkpoint.model_type().unwrap_or_default();
        let gemma = ["gemma", "gemma2", "gemma3", "gemma3_text"].contains(&model_type);
        let number = |key: &str| checkpoint.config_value(key).and_then(serde_json::Value::as_f64);
        let width = checkpoint.config_size("hidden_size").unwrap_or(1) as f64;
        Self {
            norm_adds_one: gemma,
            embedding_scale: number("embedding_multiplier").or(number("scale_emb")).unwrap_or(if gemma {
                width.sqrt()
            } else {
                1.0
            }),
            residual_scale: number("residual_multiplier").unwrap_or(1.0),
        }
    }
}

/// A linear layer: its matrix, and its bias if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// Its shape.
    pub matrix: Matrix,
    /// The bias, one element per row.
    pub bias: Option<&'a Tensor>,
}

/// A norm: its gain, and its shift if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// The gain, or the gain less one.
    pub weight: &'a Tensor,
    /// The shift.
    pub bias: Option<&'a Tensor>,
}

/// One layer. A part that is not there, or not as expected, is `None`.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the parts are named as in the literature")]
pub struct Block<'a> {
    pub index: usize,
    pub attention_in: Option<Norm<'a>>,
    pub query: Option<Linear<'a>>,
    pub key: Option<Linear<'a>>,
    pub value: Option<Linear<'a>>,
    pub query_key_value: Option<Linear<'a>>,
    pub output: Option<Linear<'a>>,
    pub attention_out: Option<Norm<'a>>,
    pub mlp_in: Option<Norm<'a>>,
    pub gate: Option<Linear<'a>>,
    pub up: Option<Linear<'a>>,
    pub gate_up: Option<Linear<'a>>,
    pub down: Option<Linear<'a>>,
    pub mlp_out: Option<Norm<'a>>,
}

/// A decoder: embedding, blocks, final norm, head.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    /// The embedding.
    pub embedding: Linear<'a>,
    /// The layers, in order.
    pub blocks: Vec<Block<'a>>,
    /// The norm before the head.
    pub final_norm: Option<Norm<'a>>,
    /// The head, unless it is the embedding.
    pub head: Option<Linear<'a>>,
    /// Elements of one attention head.
    pub head_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Its conventions.
    pub traits: Traits,
}

/// The parts of one place (a layer, or none), by role and last word of the module.
type Place<'a> = BTreeMap<(Role, String), Vec<&'a Tensor>>;

/// The decoder in `checkpoint`, or what is missing to see one.
///
/// # Errors
/// A sentence that says what is missing.
pub fn decoder(checkpoint: &Checkpoint) -> Result<Decoder<'_>, String> {
    let mut places: BTreeMap<Option<usize>, Place<'_>> = BTreeMap::new();
    for tensor in &checkpoint.tensors {
        let name = Name::parse(&tensor.name);
        if name.is_weight && name.expert.is_none() && !matches!(name.role, Role::Tower | Role::MultiToken) {
            let last = name.module.rsplit('.').next().unwrap_or_default().to_owned();
            places.entry(name.layer).or_default().entry((name.role, last)).or_default().push(tensor);
        }
    }
    let size = |key: &str| checkpoint.config_size(key).and_then(|size| usize::try_from(size).ok());
    let heads = size("num_attention_heads").ok_or("config.json has no num_attention_heads")?;
    let outside = places.remove(&None).unwrap_or_default();
    let view = View { checkpoint };
    let embedding = view.linear(&outside, Role::Embedding).ok_or("no single embedding was found")?;
    let blocks: Vec<Block<'_>> =
        places.iter().filter_map(|(index, place)| Some(view.block((*index)?, place))).collect();
    if blocks.iter().enumerate().any(|(at, block)| block.index != at) {
        return Err("the layers are not numbered from 0 without gaps".to_owned());
    }
    let named = checkpoint.config_value("hidden_act").or(checkpoint.config_value("hidden_activation"));
    let named = named.and_then(serde_json::Value::as_str).unwrap_or("silu");
    let activation = Activation::parse(named).ok_or_else(|| format!("the activation `{named}` is not known"))?;
    let head_size = blocks
        .iter()
        .find_map(|block| usize::try_from(block.output?.matrix.cols).ok())
        .filter(|width| width.is_multiple_of(heads))
        .ok_or("no attention output of num_attention_heads heads was found")?
        / heads;
    Ok(Decoder {
        embedding,
        blocks,
        final_norm: view.norm(&outside, &["norm", "ln_f", "norm_f", "final_layernorm"]),
        // A copy of a tied embedding is not a matrix of its own.
        head: view.linear(&outside, Role::Head).filter(|_| checkpoint.is_tied() != Some(true)),
        head_size,
        heads,
        kv_heads: size("num_key_value_heads").unwrap_or(heads),
        activation,
        traits: Traits::of(checkpoint),
    })
}

#[derive(Clone, Copy)]
struct View<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> View<'a> {
    fn bias(self, weight: &Tensor) -> Option<&'a Tensor> {
        self.checkpoint.tensor(&format!("{}.bias", weight.name.strip_suffix(".weight")?))
    }

    /// The one linear layer of `role`, if there is exactly one.
    fn linear(self, place: &Place<'a>, role: Role) -> Option<Linear<'a>> {
        let mut found = place.iter().filter(|((here, _), _)| *here == role).flat_map(|(_, tensors)| tensors);
        let weight = *found.next()?;
        if found.next().is_some() {
            return None;
        }
        Some(Linear { weight, matrix: weight.matrix()?, bias: self.bias(weight) })
    }

    /// The one norm that goes by one of `names`.
    fn norm(self, place: &Place<'a>, names: &[&str]) -> Option<Norm<'a>> {
        let mut found = names.iter().filter_map(|name| place.get(&(Role::Norm, (*name).to_owned()))).flatten();
        let weight = *found.next()?;
        if found.next().is_some() || weight.shape.len() != 1 {
            return None;
        }
        Some(Norm { weight, bias: self.bias(weight) })
    }

    fn block(self, index: usize, place: &Place<'a>) -> Block<'a> {
        let attention_in = self.norm(place, &["input_layernorm", "ln_1", "attention_norm"]);
        let before_mlp = self.norm(place, &["pre_feedforward_layernorm", "ln_2", "ffn_norm"]);
        let after_attention = self.norm(place, &["post_attention_layernorm"]);
        let mlp_out = self.norm(place, &["post_feedforward_layernorm"]);
        // Llama calls the norm before the MLP "post attention"; where another norm has that place, or where blocks
        // have no norm in front at all, the name means what it says.
        let means_it = before_mlp.is_some() || (attention_in.is_none() && mlp_out.is_some());
        Block {
            index,
            attention_in,
            query: self.linear(place, Role::Query),
            key: self.linear(place, Role::Key),
            value: self.linear(place, Role::Value),
            query_key_value: self.linear(place, Role::QueryKeyValue),
            output: self.linear(place, Role::Output),
            attention_out: after_attention.filter(|_| means_it),
            mlp_in: if means_it { before_mlp } else { after_attention.or(before_mlp) },
            gate: self.linear(place, Role::Gate),
            up: self.linear(place, Role::Up),
            gate_up: self.linear(place, Role::GateUp),
            down: self.linear(place, Role::Down),
            mlp_out,
        }
    }
}
