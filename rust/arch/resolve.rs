//! Finds the parts of a model by role, layer and place in the layer.
//!
//! The tensors of a checkpoint are grouped by layer; a part is the one tensor of its group whose name fits. If several
//! fit, the part counts as not found: no part is better than the wrong one.

use std::collections::BTreeMap;

use super::conventions::{ConfigReader, Conventions};
use super::{FoundAttention, FoundExperts, FoundLayer, FoundMlp, HeadShape, Linear, Model, Norm, ParameterVector};
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Matrix, Tensor};
use crate::dtype::Float;
use crate::name::{Name, NormPlace, Role};

/// The tensors of one layer, or those outside of all layers.
type Group<'a> = Vec<(Name, &'a Tensor)>;

/// The model in `checkpoint`, as far as its parts are found.
///
/// # Errors
/// A sentence that says what is missing.
pub(crate) fn model(checkpoint: &Checkpoint) -> Result<Model<'_>, String> {
    let mut groups: BTreeMap<Option<usize>, Group<'_>> = BTreeMap::new();
    for tensor in &checkpoint.tensors {
        let name = Name::parse(&tensor.name);
        if !matches!(name.role, Role::Tower | Role::MultiToken) {
            groups.entry(name.layer).or_default().push((name, tensor));
        }
    }
    let config = ConfigReader(checkpoint);
    let queries = config.size(&["num_attention_heads", "n_head"]).ok_or("config.json has no num_attention_heads")?;
    let outside = groups.remove(&None).unwrap_or_default();
    let conventions = Conventions::of(checkpoint)?;
    let resolver = Resolver { checkpoint, width: 0, conventions: &conventions };
    let embedding =
        resolver.linear(&outside, |name| name.role == Role::Embedding).ok_or("no single embedding was found")?;
    let resolver = Resolver { width: embedding.matrix.cols, ..resolver };
    // Layers beyond those that the configuration counts predict several tokens at once.
    let counted = Some(config.layers()).filter(|layers| *layers > 0).unwrap_or(usize::MAX);
    let numbered = groups.iter().filter_map(|(index, group)| Some(((*index)?, group)));
    let layers: Vec<FoundLayer<'_>> =
        numbered.filter(|(index, _)| *index < counted).map(|(index, group)| resolver.layer(index, group)).collect();
    if layers.iter().enumerate().any(|(at, layer)| layer.index != at) {
        return Err("the layers are not numbered from 0 without gaps".to_owned());
    }
    let size = layers
        .iter()
        .find_map(|layer| Some(layer.attention.output?.inputs()))
        .filter(|width| width.is_multiple_of(queries))
        .ok_or("no attention output of num_attention_heads heads was found")?
        / queries;
    Ok(Model {
        embedding,
        positions: resolver.linear(&outside, |name| name.module.ends_with("wpe")),
        layers,
        final_norm: resolver.norm(&outside, NormPlace::BeforeHead),
        // A stored copy of a tied embedding is not a matrix of its own.
        head: resolver.linear(&outside, |name| name.role == Role::Head).filter(|_| checkpoint.is_tied() != Some(true)),
        heads: HeadShape { queries, keys: config.size(&["num_key_value_heads"]).unwrap_or(queries), size },
        conventions,
    })
}

/// Whether `name` belongs to a routed expert, or to a stack of them.
fn is_expert(name: &Name) -> bool {
    name.module.split('.').any(|part| ["experts", "switch_mlp"].contains(&part))
}

/// Whether `name` belongs to the shared expert.
fn is_shared(name: &Name) -> bool {
    name.module.split('.').any(|part| part.starts_with("shared_expert") && part != "shared_expert_gate")
}

/// Fits a part of `role` that belongs to no expert.
fn dense(role: Role) -> impl Fn(&Name) -> bool {
    move |name| name.role == role && !is_expert(name) && !is_shared(name)
}

#[derive(Clone, Copy)]
struct Resolver<'a, 'c> {
    checkpoint: &'a Checkpoint,
    width: u64,
    conventions: &'c Conventions,
}

impl<'a> Resolver<'a, '_> {
    fn bias(self, weight: &Tensor) -> Option<&'a Tensor> {
        self.checkpoint.tensor(&format!("{}.bias", Name::parse(&weight.name).module))
    }

    /// Whether the matrix or stack `name` is stored with a row for each input, as its family says.
    fn is_input_major(self, name: &str) -> bool {
        self.checkpoint.is_release() && self.conventions.family.is_some_and(|family| family.is_input_major(name))
    }

    /// Whether the gain `name` is stored minus one: in the release as its family says, and for `mlx-lm` where that adds one.
    /// GGUF files hold whole gains.
    fn is_minus_one(self, name: &str) -> bool {
        let Some(family) = self.conventions.family else { return false };
        let adds_one = self.checkpoint.is_release() || (self.checkpoint.is_laid_out_for_mlx() && family.mlx.plus_one);
        family.is_minus_one(name) && adds_one
    }

    /// The one linear layer whose name `fits`, if there is exactly one.
    fn linear(self, group: &Group<'a>, fits: impl Fn(&Name) -> bool) -> Option<Linear<'a>> {
        let mut found = group.iter().filter(|(name, _)| name.is_weight && fits(name));
        let (_, weight) = *found.next()?;
        if found.next().is_some() {
            return None;
        }
        let bias = self.bias(weight).map(|tensor| ParameterVector { tensor, at: 0 });
        let (matrix, transposed) = (weight.matrix()?, self.is_input_major(&weight.name));
        Some(Linear { weight, at: 0, matrix, transposed, bias })
    }

    /// The one norm whose name has `place`.
    fn norm(self, group: &Group<'a>, place: NormPlace) -> Option<Norm<'a>> {
        let mut found = group.iter().filter(|(name, _)| name.is_weight && name.norm == Some(place));
        let (_, weight) = *found.next()?;
        if found.next().is_some() {
            return None;
        }
        Some(Norm { weight, bias: self.bias(weight), minus_one: self.is_minus_one(&weight.name) })
    }

    fn layer(self, index: usize, group: &Group<'a>) -> FoundLayer<'a> {
        let attention_in = self.norm(group, NormPlace::BeforeAttention);
        let before_mlp = self.norm(group, NormPlace::BeforeMlp);
        let post_attention = self.norm(group, NormPlace::PostAttention);
        let after_attention = self.norm(group, NormPlace::AfterAttention);
        let mlp_out = self.norm(group, NormPlace::AfterMlp);
        // Llama calls the norm before the MLP "post attention". Where another norm has that place, or where the layer has
        // no norms before its halves at all, such a norm is applied to the output of attention, as its name says.
        let is_literal = before_mlp.is_some() || (attention_in.is_none() && mlp_out.is_some());
        let experts = self.experts(group);
        FoundLayer {
            index,
            attention_in,
            attention: self.attention(group),
            attention_out: after_attention.or(post_attention.filter(|_| is_literal)),
            mlp_in: if is_literal { before_mlp } else { post_attention.or(before_mlp) },
            mlp: self.mlp(group, &dense),
            experts,
            mlp_out,
        }
    }

    fn attention(self, group: &Group<'a>) -> FoundAttention<'a> {
        let sinks =
            group.iter().find(|(name, _)| name.module.rsplit('.').next() == Some("sinks")).map(|(_, tensor)| *tensor);
        FoundAttention {
            query: self.linear(group, dense(Role::Query)),
            key: self.linear(group, dense(Role::Key)),
            value: self.linear(group, dense(Role::Value)),
            query_key_value: self.linear(group, dense(Role::QueryKeyValue)),
            query_norm: self.norm(group, NormPlace::Query),
            key_norm: self.norm(group, NormPlace::Key),
            sinks,
            output: self.linear(group, dense(Role::Output)),
        }
    }

    /// The feed-forward network of the tensors that fit `of` a role.
    fn mlp<F: Fn(&Name) -> bool>(self, group: &Group<'a>, of: &dyn Fn(Role) -> F) -> FoundMlp<'a> {
        FoundMlp {
            gate: self.linear(group, of(Role::Gate)),
            up: self.linear(group, of(Role::Up)),
            gate_up: self.linear(group, of(Role::GateUp)),
            down: self.linear(group, of(Role::Down)),
        }
    }

    /// The mixture in `group`, if there is one.
    fn experts(self, group: &Group<'a>) -> Option<FoundExperts<'a>> {
        let mut by_expert: BTreeMap<usize, Group<'a>> = BTreeMap::new();
        for (name, tensor) in group.iter().filter(|(name, _)| is_expert(name)) {
            if let Some(expert) = name.expert {
                by_expert.entry(expert).or_default().push((name.clone(), tensor));
            }
        }
        let any = |role: Role| move |name: &Name| name.role == role;
        let mut experts: Vec<FoundMlp<'a>> = by_expert.values().map(|group| self.mlp(group, &any)).collect();
        if experts.is_empty() {
            experts = self.stacked(group);
        }
        if experts.is_empty() {
            return None;
        }
        let shared = |role: Role| move |name: &Name| name.role == role && is_shared(name);
        let gate = |name: &Name| name.role == Role::Router && name.module.ends_with("shared_expert_gate");
        let router = |name: &Name| name.role == Role::Router && !name.module.ends_with("shared_expert_gate");
        let shared = self.mlp(group, &shared);
        Some(FoundExperts {
            router: self.linear(group, router),
            correction: group
                .iter()
                .find(|(name, _)| name.module.ends_with("e_score_correction_bias"))
                .map(|(_, tensor)| *tensor),
            experts,
            shared: shared.down.is_some().then_some(shared),
            shared_gate: self.linear(group, gate),
        })
    }

    /// Experts that are stored as stacks, in tensors of three dimensions.
    fn stacked(self, group: &Group<'a>) -> Vec<FoundMlp<'a>> {
        let of = |role: Role| {
            let fits = |(name, _): &&(Name, &Tensor)| name.role == role && is_expert(name);
            group.iter().filter(fits).map(|(_, tensor)| *tensor).find(|tensor| tensor.shape.len() == 3)
        };
        let stacks = [Role::Gate, Role::Up, Role::GateUp, Role::Down].map(of);
        let count = stacks.iter().flatten().map(|tensor| tensor.shape[0]).max().unwrap_or(0);
        let expert = |at: u64| {
            let [gate, up, gate_up, down] = stacks.map(|stack| self.slice(stack?, at));
            FoundMlp { gate, up, gate_up, down }
        };
        (0..count).map(expert).collect()
    }

    /// Matrix `at` of the stack `weight`.
    fn slice(self, weight: &'a Tensor, at: u64) -> Option<Linear<'a>> {
        let &[count, rows, cols] = weight.shape.as_slice() else { return None };
        let float = Float::of(weight.dtype).filter(|_| at < count && rows > 0 && cols > 0)?;
        // Releases store stacks in either orientation. The width of the residual stream tells which, where it differs from the
        // inner width. The codes of a packed stack run along inputs.
        let Name { role, module, .. } = Name::parse(&weight.name);
        let is_transposed =
            if role == Role::Down { rows != self.width } else { cols != self.width && rows == self.width };
        let is_release = weight.packing == Packing::Plain && self.checkpoint.is_release();
        let transposed = is_release && (self.is_input_major(&weight.name) || is_transposed);
        let named = |end: &str| self.checkpoint.tensor(&format!("{module}{end}"));
        let bias = named("_bias").or_else(|| named(".bias"));
        let bias = bias.map(|tensor| ParameterVector { tensor, at });
        Some(Linear { weight, at, matrix: Matrix { rows, cols, float }, transposed, bias })
    }
}
