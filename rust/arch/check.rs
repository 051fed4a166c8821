//! Checks that a model can be run: every part found and of the right shape, and no tensor left over.
//!
//! A forward pass that is almost right is worse than none. So a model with any unknown part is refused, with a reason.

use std::collections::BTreeSet;

use super::families::ModelFamily;
use super::runnable::{Attention, Expansion, Experts, Ffn, Layer, Mixer, Mlp, Projection, Runnable, SharedExpert};
use super::{FoundAttention, FoundExperts, FoundLayer, FoundMlp, Linear, Model, Norm, ParameterVector};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Float;
use crate::name::{Name, Role};

impl<'a> Model<'a> {
    /// Checks that all parts of a forward pass are present and no tensor is left over.
    ///
    /// # Errors
    /// A sentence that says what is missing, or which tensor has no place.
    pub(crate) fn runnable(&self, checkpoint: &Checkpoint) -> Result<Runnable<'a>, String> {
        let Self { embedding, positions, head, heads, conventions, .. } = self;
        let family = conventions.family.ok_or("its forward pass is not one of those that are known")?;
        let epsilon = conventions.epsilon.ok_or("config.json has no epsilon for its norms")?;
        let counted = checkpoint.config_size("num_hidden_layers").or(checkpoint.config_size("n_layer"));
        if counted != Some(self.layers.len() as u64) {
            return Err(format!(
                "{} layers were found, and config.json counts {}",
                self.layers.len(),
                counted.unwrap_or(0)
            ));
        }
        let width = self.width();
        let mut check = Check { model: self, family, used: BTreeSet::new() };
        check.linear(embedding, width, self.vocabulary())?;
        if let Some(positions) = positions {
            check.linear(positions, width, positions.outputs())?;
        }
        conventions.rope.of_layer(0, heads.size)?;
        let final_norm = self.final_norm.ok_or("the norm in front of the head is missing")?;
        check.norm(&final_norm, &[width])?;
        if let Some(head) = head {
            check.linear(head, width, self.vocabulary())?;
        }
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            layers.push(check.layer(layer).map_err(|reason| format!("layer {}: {reason}", layer.index))?);
        }
        if let Some(tensor) = checkpoint.tensors.iter().find(|tensor| !check.has_place(tensor)) {
            return Err(format!("`{}` has no place in its forward pass", tensor.name));
        }
        let (embedding, positions, own_head) = (*embedding, *positions, *head);
        let conventions = conventions.clone();
        Ok(Runnable { embedding, positions, layers, final_norm, own_head, epsilon, conventions })
    }
}

/// The state of a check: the model, and the names of the tensors that have a place in it.
struct Check<'m, 'a> {
    model: &'m Model<'a>,
    family: &'static ModelFamily,
    used: BTreeSet<&'a str>,
}

impl<'a> Check<'_, 'a> {
    /// Whether `tensor` is used, or is known to have no use.
    fn has_place(&self, tensor: &Tensor) -> bool {
        let name = Name::parse(&tensor.name);
        let ignored = matches!(name.role, Role::Tower | Role::MultiToken)
            || tensor.unneeded.is_some()
            || name.layer.is_some_and(|layer| layer >= self.model.layers.len())
            || self.family.is_buffer(&tensor.name)
            || (name.role == Role::Head && self.model.head.is_none());
        ignored || self.used.contains(tensor.name.as_str())
    }

    fn layer(&mut self, found: &FoundLayer<'a>) -> Result<Layer<'a>, String> {
        let FoundLayer { index, attention_in, attention_out, mlp_in, mlp_out, .. } = *found;
        let width = self.model.width();
        for norm in [attention_in, attention_out, mlp_in, mlp_out].iter().flatten() {
            self.norm(norm, &[width])?;
        }
        let parallel = self.model.conventions.parallel;
        if (attention_in.is_none() && attention_out.is_none()) || (mlp_in.is_none() && mlp_out.is_none() && !parallel) {
            return Err("a norm is missing".to_owned());
        }
        let mixer = Mixer::Attention(self.attention(index, &found.attention)?);
        let ffn = match &found.experts {
            None => Ffn::Dense(self.mlp(&found.mlp)?),
            Some(experts) => Ffn::Mixture(self.experts(experts)?),
        };
        Ok(Layer {
            index,
            mixer_in: attention_in,
            mixer,
            mixer_out: attention_out,
            ffn_in: mlp_in,
            ffn,
            ffn_out: mlp_out,
        })
    }

    fn attention(&mut self, layer: usize, found: &FoundAttention<'a>) -> Result<Attention<'a>, String> {
        let (width, heads) = (self.model.width(), self.model.heads);
        if heads.keys == 0 || !heads.queries.is_multiple_of(heads.keys) {
            return Err(format!("{} heads do not share {} key heads", heads.queries, heads.keys));
        }
        let (queries, keys) = (heads.queries * heads.size, heads.keys * heads.size);
        let FoundAttention { query, key, value, query_key_value, query_norm, key_norm, sinks, output } = *found;
        let projection = match (query, key, value, query_key_value) {
            (Some(query), Some(key), Some(value), None) => {
                self.linear(&query, width, queries)?;
                self.linear(&key, width, keys)?;
                self.linear(&value, width, keys)?;
                Projection::Split { query, key, value }
            }
            (None, None, None, Some(fused)) => {
                self.linear(&fused, width, queries + 2 * keys)?;
                Projection::Fused(fused)
            }
            _ => return Err("queries, keys and values were not found".to_owned()),
        };
        let output = output.ok_or("the output of attention was not found")?;
        self.linear(&output, queries, width)?;
        if let Some(norm) = &query_norm {
            self.norm(norm, &[heads.size, queries])?;
        }
        if let Some(norm) = &key_norm {
            self.norm(norm, &[heads.size, keys])?;
        }
        if let Some(sinks) = sinks {
            self.floats(sinks, heads.queries as u64)?;
        }
        let rope = match self.model.positions {
            Some(_) => None,
            None => self.model.conventions.rope.of_layer(layer, heads.size)?,
        };
        Ok(Attention { projection, query_norm, key_norm, sinks, output, heads, rope })
    }

    fn mlp(&mut self, found: &FoundMlp<'a>) -> Result<Mlp<'a>, String> {
        let width = self.model.width();
        let down = found.down.ok_or("the last matrix of the MLP was not found")?;
        let inner = down.inputs();
        self.linear(&down, inner, width)?;
        let expansion = match (found.gate, found.up, found.gate_up) {
            (Some(gate), Some(up), None) => {
                self.linear(&up, width, inner)?;
                self.linear(&gate, width, inner)?;
                Expansion::Gated { gate, up }
            }
            (None, Some(up), None) if self.model.conventions.clamped_gate.is_none() => {
                self.linear(&up, width, inner)?;
                Expansion::Plain(up)
            }
            (None, None, Some(fused)) => {
                self.linear(&fused, width, 2 * inner)?;
                Expansion::FusedGated(fused)
            }
            _ => return Err("the first matrices of the MLP were not found".to_owned()),
        };
        Ok(Mlp { expansion, down })
    }

    fn experts(&mut self, found: &FoundExperts<'a>) -> Result<Experts<'a>, String> {
        let (width, count) = (self.model.width(), found.experts.len());
        let routing = self.model.conventions.routing.ok_or("config.json does not say how experts are chosen")?;
        if routing.chosen == 0 || routing.chosen > count {
            return Err(format!("{} of {count} experts cannot be chosen", routing.chosen));
        }
        if let Some((groups, kept)) = routing.groups
            && !(count.is_multiple_of(groups) && kept <= groups && kept * (count / groups) >= routing.chosen)
        {
            return Err(format!("{count} experts are not {groups} groups of which {kept} are kept"));
        }
        let router = found.router.ok_or("the router was not found")?;
        self.linear(&router, width, count)?;
        if let Some(correction) = found.correction {
            self.floats(correction, count as u64)?;
        }
        let routed: Vec<Mlp<'a>> = found.experts.iter().map(|mlp| self.mlp(mlp)).collect::<Result<_, _>>()?;
        let form = |mlp: &Mlp<'a>| std::mem::discriminant(&mlp.expansion);
        if routed.windows(2).any(|pair| form(&pair[0]) != form(&pair[1])) {
            return Err("its experts do not have the same matrices".to_owned());
        }
        let shared = match &found.shared {
            None => None,
            Some(mlp) => {
                let (mlp, gate) = (self.mlp(mlp)?, found.shared_gate);
                if let Some(gate) = &gate {
                    self.linear(gate, width, 1)?;
                }
                Some(SharedExpert { mlp, gate })
            }
        };
        Ok(Experts { router, correction: found.correction, routing, routed, shared })
    }

    /// Records a linear layer as used, and checks its numbers of inputs and outputs.
    fn linear(&mut self, found: &Linear<'a>, inputs: usize, outputs: usize) -> Result<(), String> {
        if (found.inputs(), found.outputs()) != (inputs, outputs) {
            let name = &found.weight.name;
            return Err(format!("`{name}` is {:?}, and should take {inputs} and give {outputs}", found.weight.shape));
        }
        self.used.insert(&found.weight.name);
        if let Some(ParameterVector { tensor, .. }) = found.bias {
            let stacked = if found.weight.shape.len() == 3 { found.weight.shape[0] } else { 1 };
            self.floats(tensor, stacked * outputs as u64)?;
        }
        Ok(())
    }

    /// Records a norm as used, and checks that it is over one of `spans`.
    fn norm(&mut self, found: &Norm<'a>, spans: &[usize]) -> Result<(), String> {
        let span = found.weight.shape.last().map_or(0, |length| *length as usize);
        let length = found.weight.elements();
        if !spans.contains(&span) || spans.iter().all(|&span| length != span as u64) {
            return Err(format!("`{}` is {:?}, and should be over {spans:?}", found.weight.name, found.weight.shape));
        }
        self.floats(found.weight, length)?;
        found.bias.map_or(Ok(()), |bias| self.floats(bias, length))
    }

    /// Records a tensor as used, and checks that it holds `count` floats.
    fn floats(&mut self, tensor: &'a Tensor, count: u64) -> Result<(), String> {
        if tensor.elements() != count || Float::of(tensor.dtype).is_none() {
            return Err(format!(
                "`{}` is {} {:?}, and should be {count} floats",
                tensor.name, tensor.dtype, tensor.shape
            ));
        }
        self.used.insert(&tensor.name);
        Ok(())
    }
}
