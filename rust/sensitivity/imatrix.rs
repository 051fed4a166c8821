//! Importance matrices for `llama-quantize --imatrix`, from the mean squares of inputs that the probe has measured.
//!
//! A GGUF file (version 3): `general.type` = `imatrix`, `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`,
//! and for each tensor `T` of the GGUF model `T.in_sum2` F32 `[inputs, matrices]`, sums of squared inputs, and `T.counts`
//! F32 `[1, matrices]`, the number of tokens. Dimensions are innermost first. Experts are always stacked. Names are those of
//! llama.cpp's converter.

use std::borrow::Cow;

use crate::arch::{Expansion, Experts, Ffn, Linear, Mixer, Mlp, Projection, Runnable};
use crate::container::gguf::value::Value;
use crate::container::{Container, Gguf, KeyValues, Metadata, Share, StoredTensor};
use crate::dtype::{Dtype, Float};
use crate::name::{Role, llama_cpp_name};
use crate::probe::tokens::WINDOW;
use crate::probe::{Moments, Probe};

/// The sums of one tensor, matrix by matrix.
struct ImatrixEntry {
    name: String,
    sums: Vec<f32>,
    counts: Vec<f32>,
}

#[must_use]
pub(crate) fn bytes(model: &Runnable<'_>, probe: &Probe) -> Vec<u8> {
    let entries = entries(model, probe);
    let windows = (probe.tokens.len() / WINDOW) as u32;
    let text = format!("ramrs probe, {} tokens of the model's own vocabulary", probe.tokens.len());
    let mut key_values = KeyValues::default();
    key_values.set("general.type", &Value::Text("imatrix".to_owned()));
    key_values.set("imatrix.datasets", &Value::Texts(vec![text]));
    key_values.set("imatrix.chunk_count", &Value::U32(windows));
    key_values.set("imatrix.chunk_size", &Value::U32(WINDOW as u32));
    let mut tensors = Vec::with_capacity(2 * entries.len());
    for ImatrixEntry { name, sums, counts } in &entries {
        let matrices = counts.len();
        for (ending, width, values) in [("in_sum2", sums.len() / matrices.max(1), sums), ("counts", 1, counts)] {
            let (name, shape) = (format!("{name}.{ending}"), vec![matrices as u64, width as u64]);
            let bytes = size_of_val(values.as_slice()) as u64;
            tensors.push((StoredTensor { name, dtype: Dtype::F32, shape, bytes, grows: false }, values));
        }
    }
    let stored: Vec<&StoredTensor> = tensors.iter().map(|(tensor, _)| tensor).collect();
    let share = Share { file: 0, files: 1, tensors: stored.len() };
    let arranged = Gguf.arrange(&Metadata::KeyValues(Cow::Owned(key_values)), share, &stored);
    let mut out = arranged.head;
    for ((_, values), &offset) in tensors.iter().zip(&arranged.offsets) {
        out.resize(offset as usize, 0);
        Float::F32.append(values, &mut out);
    }
    out.resize(arranged.bytes as usize, 0);
    out
}

/// All tensors that have processed tokens, layer by layer.
fn entries(model: &Runnable<'_>, probe: &Probe) -> Vec<ImatrixEntry> {
    let mut entries = Vec::new();
    for layer in &model.layers {
        let Mixer::Attention(attention) = &layer.mixer;
        let mut put = |role: Role, suffix: &str, linears: &[Linear<'_>]| {
            let name = llama_cpp_name(role).map(|name| format!("blk.{}.{name}{suffix}.weight", layer.index));
            entries.extend(name.and_then(|name| entry(probe, name, linears)));
        };
        match attention.projection {
            Projection::Split { query, key, value } => {
                put(Role::Query, "", &[query]);
                put(Role::Key, "", &[key]);
                put(Role::Value, "", &[value]);
            }
            Projection::Fused(all) => put(Role::QueryKeyValue, "", &[all]),
        }
        put(Role::Output, "", &[attention.output]);
        match &layer.ffn {
            Ffn::Dense(mlp) => {
                for (role, linear) in named(mlp) {
                    put(role, "", &[linear]);
                }
            }
            Ffn::Mixture(experts) => mixture(experts, &mut put),
        }
    }
    let role = if model.own_head.is_some() { Role::Head } else { Role::Embedding };
    let name = llama_cpp_name(role).map(|name| format!("{name}.weight"));
    entries.extend(name.and_then(|name| entry(probe, name, &[model.head()])));
    entries
}

/// Calls `put` with the matrices of a mixture. Stacks those of the routed experts, and splits a fused gate and up in two.
fn mixture(mixture: &Experts<'_>, put: &mut dyn FnMut(Role, &str, &[Linear<'_>])) {
    put(Role::Router, "", &[mixture.router]);
    let parts: Vec<Vec<(Role, Linear<'_>)>> = mixture.routed.iter().map(split).collect();
    for (which, (role, _)) in parts.first().into_iter().flatten().enumerate() {
        let stack: Vec<Linear<'_>> = parts.iter().map(|expert| expert[which].1).collect();
        put(*role, "_exps", &stack);
    }
    if let Some(shared) = &mixture.shared {
        if let Some(gate) = shared.gate {
            put(Role::Router, "_shexp", &[gate]);
        }
        for (role, linear) in named(&shared.mlp) {
            put(role, "_shexp", &[linear]);
        }
    }
}

/// The matrices of a network with the roles that name them. A fused gate and up stays one tensor, under the name of `up`.
fn named<'a>(mlp: &Mlp<'a>) -> Vec<(Role, Linear<'a>)> {
    let mut found = match mlp.expansion {
        Expansion::Plain(up) | Expansion::FusedGated(up) => vec![(Role::Up, up)],
        Expansion::Gated { gate, up } => vec![(Role::Gate, gate), (Role::Up, up)],
    };
    found.push((Role::Down, mlp.down));
    found
}

/// The same matrices, with a fused gate and up split in two.
fn split<'a>(mlp: &Mlp<'a>) -> Vec<(Role, Linear<'a>)> {
    match mlp.expansion {
        Expansion::FusedGated(both) => vec![(Role::Gate, both), (Role::Up, both), (Role::Down, mlp.down)],
        Expansion::Plain(_) | Expansion::Gated { .. } => named(mlp),
    }
}

/// The sums of one tensor; `None` if it has processed no token. A matrix of a stack without tokens has counts and sums of 0.
fn entry(probe: &Probe, name: String, linears: &[Linear<'_>]) -> Option<ImatrixEntry> {
    let moments: Vec<Option<&Moments>> =
        linears.iter().map(|found| probe.moments.get(&(found.weight.name.clone(), found.at))).collect();
    let width = moments.iter().flatten().next()?.squares.len();
    let (mut sums, mut counts) = (Vec::with_capacity(width * linears.len()), Vec::with_capacity(linears.len()));
    for moments in moments {
        if let Some(found) = moments {
            sums.extend(found.squares.iter().map(|&sum| sum as f32));
            counts.push(found.tokens as f32);
        } else {
            sums.resize(sums.len() + width, 0.0);
            counts.push(0.0);
        }
    }
    Some(ImatrixEntry { name, sums, counts })
}
