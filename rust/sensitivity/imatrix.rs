//! What the probe saw of the inputs, as the importance matrix that `llama-quantize --imatrix` reads.
//!
//! A GGUF file (version 3): `general.type` = `imatrix`, `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`,
//! and for each tensor `T` of the GGUF model `T.in_sum2` F32 `[inputs, matrices]`, sums of squared inputs, and `T.counts`
//! F32 `[1, matrices]`, of how many tokens. Dimensions innermost first. Experts are stacked there, wherever they are in
//! the checkpoint. Names are those that llama.cpp's converter gives.

use crate::arch::{Decoder, Experts, Linear, Mlp};
use crate::probe::tokens::WINDOW;
use crate::probe::{Moments, Probe};

/// Every tensor's data begin on a multiple of so many bytes.
const ALIGNMENT: usize = 32;

/// Types of values and of elements, by the format's numbers.
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;

/// The sums of one tensor, matrix by matrix.
struct Entry {
    name: String,
    sums: Vec<f32>,
    counts: Vec<f32>,
}

/// The file.
#[must_use]
pub fn bytes(decoder: &Decoder<'_>, probe: &Probe) -> Vec<u8> {
    let entries = entries(decoder, probe);
    let windows = (probe.tokens.len() / WINDOW) as u32;
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, 3);
    put_u64(&mut out, 2 * entries.len());
    put_u64(&mut out, 4);
    put_text(&mut out, "general.type");
    put_u32(&mut out, STRING);
    put_text(&mut out, "imatrix");
    put_text(&mut out, "imatrix.datasets");
    for number in [ARRAY, STRING] {
        put_u32(&mut out, number);
    }
    put_u64(&mut out, 1);
    put_text(&mut out, &format!("ramrs probe, {} tokens of the model's own vocabulary", probe.tokens.len()));
    for (key, number) in [("imatrix.chunk_count", windows), ("imatrix.chunk_size", WINDOW as u32)] {
        put_text(&mut out, key);
        put_u32(&mut out, U32);
        put_u32(&mut out, number);
    }
    let mut data = Vec::new();
    for Entry { name, sums, counts } in &entries {
        let matrices = counts.len();
        for (ending, width, values) in [("in_sum2", sums.len() / matrices.max(1), sums), ("counts", 1, counts)] {
            put_text(&mut out, &format!("{name}.{ending}"));
            put_u32(&mut out, 2);
            put_u64(&mut out, width);
            put_u64(&mut out, matrices);
            put_u32(&mut out, F32);
            put_u64(&mut out, data.len());
            data.extend_from_slice(bytemuck::cast_slice(values));
            pad(&mut data);
        }
    }
    pad(&mut out);
    out.extend_from_slice(&data);
    out
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&(number as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// All tensors that tokens went through, layer by layer.
fn entries(decoder: &Decoder<'_>, probe: &Probe) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut put = |name: String, linears: &[Option<Linear<'_>>]| entries.extend(entry(probe, name, linears));
    for block in &decoder.blocks {
        let named = |name: &str| format!("blk.{}.{name}.weight", block.index);
        let attention = &block.attention;
        put(named("attn_q"), &[attention.query]);
        put(named("attn_k"), &[attention.key]);
        put(named("attn_v"), &[attention.value]);
        put(named("attn_qkv"), &[attention.query_key_value]);
        put(named("attn_output"), &[attention.output]);
        for (name, linears) in mlp(&block.mlp) {
            put(named(name), &[linears]);
        }
        if let Some(experts) = &block.experts {
            for (name, linears) in mixture(experts) {
                put(named(&name), &linears);
            }
        }
    }
    let head = if decoder.head.is_some() { "output.weight" } else { "token_embd.weight" };
    put(head.to_owned(), &[Some(decoder.head.unwrap_or(decoder.embedding))]);
    entries
}

/// A network's matrices by their names. What is fused stays so, under the second half's name.
fn mlp<'a>(mlp: &Mlp<'a>) -> [(&'static str, Option<Linear<'a>>); 3] {
    [("ffn_gate", mlp.gate), ("ffn_up", mlp.up.or(mlp.gate_up)), ("ffn_down", mlp.down)]
}

/// A mixture's matrices, those of the experts stacked. There, what is fused is taken apart.
fn mixture<'a>(experts: &Experts<'a>) -> Vec<(String, Vec<Option<Linear<'a>>>)> {
    let stack = |which: fn(&Mlp<'a>) -> Option<Linear<'a>>| experts.experts.iter().map(which).collect();
    let mut found = vec![
        ("ffn_gate_inp".to_owned(), vec![experts.router]),
        ("ffn_gate_exps".to_owned(), stack(|mlp| mlp.gate.or(mlp.gate_up))),
        ("ffn_up_exps".to_owned(), stack(|mlp| mlp.up.or(mlp.gate_up))),
        ("ffn_down_exps".to_owned(), stack(|mlp| mlp.down)),
        ("ffn_gate_inp_shexp".to_owned(), vec![experts.shared_gate]),
    ];
    for (name, linear) in experts.shared.iter().flat_map(mlp) {
        found.push((format!("{name}_shexp"), vec![linear]));
    }
    found
}

/// The sums of one tensor, if any token went through it; a matrix that none went through has counts and sums of 0.
fn entry(probe: &Probe, name: String, linears: &[Option<Linear<'_>>]) -> Option<Entry> {
    let moments: Vec<Option<&Moments>> = linears
        .iter()
        .map(|linear| linear.as_ref().and_then(|found| probe.moments.get(&(found.weight.name.clone(), found.at))))
        .collect();
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
    Some(Entry { name, sums, counts })
}
