//! Whether a decoder is one that can be run: everything found, everything that was found in its place, and nothing over.
//!
//! A forward pass that is almost right is worse than none: what is not understood is said, and the model is not run.

use std::collections::BTreeSet;

use super::{Attention, Block, Decoder, Experts, Linear, Mlp, Norm, Vector};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Float;
use crate::name::{Name, Role};

/// Ends of names of what older releases store, and nothing reads.
const BUFFERS: [&str; 4] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.masked_bias"];

/// Tensors that have a place, by name.
type Used<'d> = BTreeSet<&'d str>;

impl<'a> Decoder<'a> {
    /// Whether everything is there to run it, and everything that is there is of use.
    ///
    /// # Errors
    /// A sentence that says what is missing, or what has no place.
    pub fn complete(&self, checkpoint: &Checkpoint) -> Result<(), String> {
        if self.conventions.family.is_none() {
            return Err("its forward pass is not one of those that are known".to_owned());
        }
        if self.conventions.epsilon.is_none() {
            return Err("config.json has no epsilon for its norms".to_owned());
        }
        let counted = checkpoint.config_size("num_hidden_layers").or(checkpoint.config_size("n_layer"));
        if counted != Some(self.blocks.len() as u64) {
            return Err(format!("{} layers were found, and config.json counts {counted:?}", self.blocks.len()));
        }
        let width = self.width();
        let mut used = Used::new();
        linear(&mut used, &self.embedding, width, self.vocabulary())?;
        if let Some(positions) = &self.positions {
            linear(&mut used, positions, width, positions.outputs())?;
        }
        self.conventions.rotary.turns(0, self.head_size, 1)?;
        norm(&mut used, self.final_norm.as_ref().ok_or("the norm in front of the head is missing")?, &[width])?;
        if let Some(head) = &self.head {
            linear(&mut used, head, width, self.vocabulary())?;
        }
        for block in &self.blocks {
            self.block(&mut used, block).map_err(|reason| format!("layer {}: {reason}", block.index))?;
        }
        match checkpoint.tensors.iter().find(|tensor| !self.has_place(&used, tensor)) {
            None => Ok(()),
            Some(tensor) => Err(format!("`{}` has no place in its forward pass", tensor.name)),
        }
    }

    /// Whether `tensor` is of use, or of none on purpose.
    fn has_place(&self, used: &Used<'_>, tensor: &Tensor) -> bool {
        let name = Name::parse(&tensor.name);
        let aside = matches!(name.role, Role::Tower | Role::MultiToken)
            || name.layer.is_some_and(|layer| layer >= self.blocks.len())
            || BUFFERS.iter().any(|end| tensor.name.ends_with(end))
            // The causal mask of GPT-NeoX, which is no bias of anything.
            || (tensor.name.ends_with(".attention.bias") && Float::of(tensor.dtype).is_none())
            || (name.role == Role::Head && self.head.is_none());
        aside || used.contains(tensor.name.as_str())
    }

    fn block<'d>(&self, used: &mut Used<'d>, block: &'d Block<'a>) -> Result<(), String> {
        let width = self.width();
        for found in [&block.attention_in, &block.attention_out, &block.mlp_in, &block.mlp_out].into_iter().flatten() {
            norm(used, found, &[width])?;
        }
        let parallel = self.conventions.parallel;
        if (block.attention_in.is_none() && block.attention_out.is_none())
            || (block.mlp_in.is_none() && block.mlp_out.is_none() && !parallel)
        {
            return Err("a norm is missing".to_owned());
        }
        self.attention(used, &block.attention)?;
        match &block.experts {
            None => self.mlp(used, &block.mlp),
            Some(experts) => self.experts(used, experts),
        }
    }

    fn attention<'d>(&self, used: &mut Used<'d>, attention: &'d Attention<'a>) -> Result<(), String> {
        let (width, size) = (self.width(), self.head_size);
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads do not share {} key heads", self.heads, self.kv_heads));
        }
        let (queries, keys) = (self.heads * size, self.kv_heads * size);
        match (&attention.query, &attention.key, &attention.value, &attention.query_key_value) {
            (Some(query), Some(key), Some(value), None) => {
                linear(used, query, width, queries)?;
                linear(used, key, width, keys)?;
                linear(used, value, width, keys)?;
            }
            (None, None, None, Some(fused)) => linear(used, fused, width, queries + 2 * keys)?,
            _ => return Err("queries, keys and values were not found".to_owned()),
        }
        linear(used, attention.output.as_ref().ok_or("the output of attention was not found")?, queries, width)?;
        if let Some(found) = &attention.query_norm {
            norm(used, found, &[size, queries])?;
        }
        if let Some(found) = &attention.key_norm {
            norm(used, found, &[size, keys])?;
        }
        if let Some(sinks) = attention.sinks {
            floats(used, sinks, self.heads as u64)?;
        }
        Ok(())
    }

    fn mlp<'d>(&self, used: &mut Used<'d>, mlp: &'d Mlp<'a>) -> Result<(), String> {
        let width = self.width();
        let down = mlp.down.as_ref().ok_or("the last matrix of the MLP was not found")?;
        let inner = down.inputs();
        linear(used, down, inner, width)?;
        match (&mlp.gate, &mlp.up, &mlp.gate_up) {
            (gate, Some(up), None) => {
                linear(used, up, width, inner)?;
                gate.as_ref().map_or(Ok(()), |gate| linear(used, gate, width, inner))
            }
            (None, None, Some(fused)) => linear(used, fused, width, 2 * inner),
            _ => Err("the first matrices of the MLP were not found".to_owned()),
        }
    }

    fn experts<'d>(&self, used: &mut Used<'d>, experts: &'d Experts<'a>) -> Result<(), String> {
        let (width, count) = (self.width(), experts.experts.len());
        let routing = self.conventions.routing.as_ref().ok_or("config.json does not say how experts are chosen")?;
        if routing.chosen == 0 || routing.chosen > count {
            return Err(format!("{} of {count} experts cannot be chosen", routing.chosen));
        }
        if let Some((groups, kept)) = routing.groups
            && !(count.is_multiple_of(groups) && kept <= groups && kept * (count / groups) >= routing.chosen)
        {
            return Err(format!("{count} experts are not {groups} groups of which {kept} are kept"));
        }
        linear(used, experts.router.as_ref().ok_or("the router was not found")?, width, count)?;
        if let Some(correction) = experts.correction {
            floats(used, correction, count as u64)?;
        }
        for mlp in &experts.experts {
            self.mlp(used, mlp)?;
        }
        if let Some(shared) = &experts.shared {
            self.mlp(used, shared)?;
        }
        experts.shared_gate.as_ref().map_or(Ok(()), |gate| linear(used, gate, width, 1))
    }
}

/// Takes down a linear layer, which must take and give so many.
fn linear<'d>(used: &mut Used<'d>, found: &'d Linear<'_>, inputs: usize, outputs: usize) -> Result<(), String> {
    if (found.inputs(), found.outputs()) != (inputs, outputs) {
        let name = &found.weight.name;
        return Err(format!("`{name}` is {:?}, and should take {inputs} and give {outputs}", found.weight.shape));
    }
    used.insert(&found.weight.name);
    if let Some(Vector { tensor, .. }) = &found.bias {
        let stacked = if found.weight.shape.len() == 3 { found.weight.shape[0] } else { 1 };
        floats(used, tensor, stacked * outputs as u64)?;
    }
    Ok(())
}

/// Takes down a norm, whose gains must be over one of `spans`.
fn norm<'d>(used: &mut Used<'d>, found: &'d Norm<'_>, spans: &[usize]) -> Result<(), String> {
    let span = found.weight.shape.last().map_or(0, |length| *length as usize);
    let length = found.weight.elements();
    if !spans.contains(&span) || spans.iter().all(|&span| length != span as u64) {
        return Err(format!("`{}` is {:?}, and should be over {spans:?}", found.weight.name, found.weight.shape));
    }
    floats(used, found.weight, length)?;
    found.bias.map_or(Ok(()), |bias| floats(used, bias, length))
}

/// Takes down a tensor, which must be so many floats.
fn floats<'d>(used: &mut Used<'d>, tensor: &'d Tensor, count: u64) -> Result<(), String> {
    if tensor.elements() != count || Float::of(tensor.dtype).is_none() {
        return Err(format!("`{}` is {} {:?}, and should be {count} floats", tensor.name, tensor.dtype, tensor.shape));
    }
    used.insert(&tensor.name);
    Ok(())
}
