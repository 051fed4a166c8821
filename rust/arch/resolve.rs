//! Finding the parts of a decoder by role, layer and the last word of the module.
//!
//! A place (one layer, or what is in none) is the list of its tensors with what their names say; a part is the one
//! tensor there that fits. What fits twice is no part: better none than the wrong one.

use std::collections::BTreeMap;

use super::traits::{Config, Conventions};
use super::{Attention, Block, Decoder, Experts, Linear, Mlp, Norm, Vector};
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Matrix, Tensor};
use crate::dtype::Float;
use crate::name::{Name, Role};

/// Names of the norm in front of attention.
const ATTENTION_IN: [&str; 3] = ["input_layernorm", "ln_1", "attention_norm"];
/// Behind it.
const ATTENTION_OUT: [&str; 1] = ["post_self_attn_layernorm"];
/// In front of the MLP, where no other name has that place; behind attention, where one has.
const BETWEEN: [&str; 1] = ["post_attention_layernorm"];
/// In front of the MLP.
const MLP_IN: [&str; 3] = ["pre_feedforward_layernorm", "ln_2", "ffn_norm"];
/// Behind it.
const MLP_OUT: [&str; 2] = ["post_feedforward_layernorm", "post_mlp_layernorm"];
/// In front of the head.
const FINAL: [&str; 5] = ["norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm"];

/// The tensors of one layer, or of none.
type Place<'a> = Vec<(Name, &'a Tensor)>;

/// The decoder in `checkpoint`, or what is missing to see one.
///
/// # Errors
/// A sentence that says what is missing.
pub fn decoder(checkpoint: &Checkpoint) -> Result<Decoder<'_>, String> {
    let mut places: BTreeMap<Option<usize>, Place<'_>> = BTreeMap::new();
    for tensor in &checkpoint.tensors {
        let name = Name::parse(&tensor.name);
        if !matches!(name.role, Role::Tower | Role::MultiToken) {
            places.entry(name.layer).or_default().push((name, tensor));
        }
    }
    let config = Config(checkpoint);
    let heads = config.size(&["num_attention_heads", "n_head"]).ok_or("config.json has no num_attention_heads")?;
    let outside = places.remove(&None).unwrap_or_default();
    let conventions = Conventions::of(checkpoint)?;
    let view = View { checkpoint, width: 0, conventions: &conventions };
    let embedding =
        view.linear(&outside, |name| name.role == Role::Embedding).ok_or("no single embedding was found")?;
    let view = View { width: embedding.matrix.cols, ..view };
    // A layer beyond those that the configuration counts predicts tokens further ahead.
    let layers = Some(config.layers()).filter(|layers| *layers > 0).unwrap_or(usize::MAX);
    let counted = places.iter().filter_map(|(index, place)| Some(((*index)?, place)));
    let blocks: Vec<Block<'_>> =
        counted.filter(|(index, _)| *index < layers).map(|(index, place)| view.block(index, place)).collect();
    if blocks.iter().enumerate().any(|(at, block)| block.index != at) {
        return Err("the layers are not numbered from 0 without gaps".to_owned());
    }
    let head_size = blocks
        .iter()
        .find_map(|block| Some(block.attention.output?.inputs()))
        .filter(|width| width.is_multiple_of(heads))
        .ok_or("no attention output of num_attention_heads heads was found")?
        / heads;
    Ok(Decoder {
        embedding,
        positions: view.linear(&outside, |name| name.module.ends_with("wpe")),
        blocks,
        final_norm: view.norm(&outside, &FINAL),
        // A copy of a tied embedding is not a matrix of its own.
        head: view.linear(&outside, |name| name.role == Role::Head).filter(|_| checkpoint.is_tied() != Some(true)),
        head_size,
        heads,
        kv_heads: config.size(&["num_key_value_heads"]).unwrap_or(heads),
        conventions,
    })
}

/// Whether `name` is of one expert, or of a stack of them.
fn is_expert(name: &Name) -> bool {
    name.module.split('.').any(|part| part == "experts")
}

/// Whether `name` is of the expert that every token goes to.
fn is_shared(name: &Name) -> bool {
    name.module.split('.').any(|part| part.starts_with("shared_expert") && part != "shared_expert_gate")
}

/// A dense part of `role`.
fn dense(role: Role) -> impl Fn(&Name) -> bool {
    move |name| name.role == role && !is_expert(name) && !is_shared(name)
}

#[derive(Clone, Copy)]
struct View<'a, 'c> {
    checkpoint: &'a Checkpoint,
    /// Length of the residual stream.
    width: u64,
    conventions: &'c Conventions,
}

impl<'a> View<'a, '_> {
    fn bias(self, weight: &Tensor) -> Option<&'a Tensor> {
        self.checkpoint.tensor(&format!("{}.bias", Name::parse(&weight.name).module))
    }

    /// The one linear layer whose name `fits`, if there is exactly one.
    fn linear(self, place: &Place<'a>, fits: impl Fn(&Name) -> bool) -> Option<Linear<'a>> {
        let mut found = place.iter().filter(|(name, _)| name.is_weight && fits(name));
        let (_, weight) = *found.next()?;
        if found.next().is_some() {
            return None;
        }
        let bias = self.bias(weight).map(|tensor| Vector { tensor, at: 0 });
        let (matrix, transposed) = (weight.matrix()?, self.conventions.transposed(&weight.name));
        Some(Linear { weight, at: 0, matrix, transposed, bias })
    }

    /// The one norm that goes by one of `names`.
    fn norm(self, place: &Place<'a>, names: &[&str]) -> Option<Norm<'a>> {
        let last = |name: &Name| name.module.rsplit('.').next().is_some_and(|last| names.contains(&last));
        let mut found = place.iter().filter(|(name, _)| name.is_weight && name.role == Role::Norm && last(name));
        let (_, weight) = *found.next()?;
        if found.next().is_some() {
            return None;
        }
        Some(Norm { weight, bias: self.bias(weight) })
    }

    fn block(self, index: usize, place: &Place<'a>) -> Block<'a> {
        let attention_in = self.norm(place, &ATTENTION_IN);
        let before_mlp = self.norm(place, &MLP_IN);
        let between = self.norm(place, &BETWEEN);
        let after_attention = self.norm(place, &ATTENTION_OUT);
        let mlp_out = self.norm(place, &MLP_OUT);
        // Llama calls the norm before the MLP "post attention"; where another norm has that place, or where blocks
        // have no norm in front at all, the name means what it says.
        let means_it = before_mlp.is_some() || (attention_in.is_none() && mlp_out.is_some());
        let experts = self.experts(place);
        Block {
            index,
            attention_in,
            attention: self.attention(place),
            attention_out: after_attention.or(between.filter(|_| means_it)),
            mlp_in: if means_it { before_mlp } else { between.or(before_mlp) },
            mlp: self.mlp(place, &dense),
            experts,
            mlp_out,
        }
    }

    fn attention(self, place: &Place<'a>) -> Attention<'a> {
        let sinks =
            place.iter().find(|(name, _)| name.module.rsplit('.').next() == Some("sinks")).map(|(_, tensor)| *tensor);
        Attention {
            query: self.linear(place, dense(Role::Query)),
            key: self.linear(place, dense(Role::Key)),
            value: self.linear(place, dense(Role::Value)),
            query_key_value: self.linear(place, dense(Role::QueryKeyValue)),
            query_norm: self.norm(place, &["q_norm"]),
            key_norm: self.norm(place, &["k_norm"]),
            sinks,
            output: self.linear(place, dense(Role::Output)),
        }
    }

    /// The feed-forward network of the parts that `of` a role lets through.
    fn mlp<F: Fn(&Name) -> bool>(self, place: &Place<'a>, of: &dyn Fn(Role) -> F) -> Mlp<'a> {
        Mlp {
            gate: self.linear(place, of(Role::Gate)),
            up: self.linear(place, of(Role::Up)),
            gate_up: self.linear(place, of(Role::GateUp)),
            down: self.linear(place, of(Role::Down)),
        }
    }

    /// The mixture in `place`, if there is one.
    fn experts(self, place: &Place<'a>) -> Option<Experts<'a>> {
        let mut by_expert: BTreeMap<usize, Place<'a>> = BTreeMap::new();
        for (name, tensor) in place.iter().filter(|(name, _)| is_expert(name)) {
            if let Some(expert) = name.expert {
                by_expert.entry(expert).or_default().push((name.clone(), tensor));
            }
        }
        let any = |role: Role| move |name: &Name| name.role == role;
        let mut experts: Vec<Mlp<'a>> = by_expert.values().map(|place| self.mlp(place, &any)).collect();
        if experts.is_empty() {
            experts = self.stacked(place);
        }
        if experts.is_empty() {
            return None;
        }
        let shared = |role: Role| move |name: &Name| name.role == role && is_shared(name);
        let gate = |name: &Name| name.role == Role::Router && name.module.ends_with("shared_expert_gate");
        let router = |name: &Name| name.role == Role::Router && !name.module.ends_with("shared_expert_gate");
        let shared = self.mlp(place, &shared);
        Some(Experts {
            router: self.linear(place, router),
            correction: place
                .iter()
                .find(|(name, _)| name.module.ends_with("e_score_correction_bias"))
                .map(|(_, tensor)| *tensor),
            experts,
            shared: shared.down.is_some().then_some(shared),
            shared_gate: self.linear(place, gate),
        })
    }

    /// Experts that are stacked in tensors of three dimensions.
    fn stacked(self, place: &Place<'a>) -> Vec<Mlp<'a>> {
        let of = |role: Role| {
            let fits = |(name, _): &&(Name, &Tensor)| name.role == role && is_expert(name);
            place.iter().filter(fits).map(|(_, tensor)| *tensor).find(|tensor| tensor.shape.len() == 3)
        };
        let stacks = [Role::Gate, Role::Up, Role::GateUp, Role::Down].map(of);
        let count = stacks.iter().flatten().map(|tensor| tensor.shape[0]).max().unwrap_or(0);
        let expert = |at: u64| {
            let [gate, up, gate_up, down] = stacks.map(|stack| self.slice(stack?, at));
            Mlp { gate, up, gate_up, down }
        };
        (0..count).map(expert).collect()
    }

    /// Matrix `at` of the stack `weight`.
    fn slice(self, weight: &'a Tensor, at: u64) -> Option<Linear<'a>> {
        let &[count, rows, cols] = weight.shape.as_slice() else { return None };
        let float = Float::of(weight.dtype).filter(|_| at < count && rows > 0 && cols > 0)?;
        // A stack is stored either way; only one of them takes (or gives) the residual stream. Codes run along inputs.
        let Name { role, module, .. } = Name::parse(&weight.name);
        let is_transposed =
            if role == Role::Down { rows != self.width } else { cols != self.width && rows == self.width };
        let transposed = weight.packing == Packing::Plain && (self.conventions.stacks_transposed() || is_transposed);
        let bias = self.checkpoint.tensor(&format!("{module}_bias"));
        let bias = bias.map(|tensor| Vector { tensor, at });
        Some(Linear { weight, at, matrix: Matrix { rows, cols, float }, transposed, bias })
    }
}
