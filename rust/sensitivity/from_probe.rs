//! Source `probe`: what running the model on its own vocabulary says, as two vectors for each matrix.
//!
//! The sums over rows and over columns of the squared gradients ([`Moments`]), `K` and `R`, stand for the whole matrix of
//! them as `K_j R_i / Σ K`. Per token, that is `k_j = K_j / mean K` and `r_i = R_i / (tokens · draws · columns)`. A matrix
//! that is stored with a row for each input has them the other way round: `k` belongs to its columns, `r` to its rows,
//! whatever these are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::table::{Found, Table};
use crate::arch::{Decoder, Linear, Mlp};
use crate::probe::{EXPERT_TOKENS, Key, Mode, Moments, Probe};

/// How the probe works; a change of any number it gives is a new version.
pub const VERSION: u32 = 1;

/// How much more an error matters in a text that the model did not write than in one that it did, on average of two models
/// (`docs/method.md`, "The probe"). The same for all matrices, so plans do not depend on it, only what they predict.
const UNFAMILIAR: f64 = 1.2;

/// Sums of one matrix by its columns and by its rows, per token, and the mean squares of its inputs.
#[derive(Clone, Debug, Default)]
struct Sums {
    columns: Vec<f64>,
    rows: Vec<f64>,
    squares: Vec<f64>,
}

impl Sums {
    /// Those of `moments`, gradients of `weight` tokens and draws in all.
    fn of(linear: &Linear<'_>, moments: &Moments, weight: f64) -> Self {
        let per = |sums: &[f64], by: f64| sums.iter().map(|sum| sum / by).collect();
        let (inputs, outputs) = (per(&moments.inputs, weight), per(&moments.outputs, weight));
        let squares = per(&moments.squares, (moments.tokens as f64).max(1.0));
        let (columns, rows) = if linear.transposed { (outputs, inputs) } else { (inputs, outputs) };
        Self { columns, rows, squares }
    }

    fn add(&mut self, columns: &[f64], rows: &[f64]) {
        self.columns.iter_mut().zip(columns).for_each(|(sum, other)| *sum += other);
        self.rows.iter_mut().zip(rows).for_each(|(sum, other)| *sum += other);
    }

    /// The mean of some of the same shape.
    fn mean(all: &[&Self]) -> Self {
        let mut mean = all.first().copied().cloned().unwrap_or_default();
        for other in all.iter().skip(1) {
            mean.add(&other.columns, &other.rows);
            mean.squares.iter_mut().zip(&other.squares).for_each(|(sum, other)| *sum += other);
        }
        let count = all.len().max(1) as f64;
        let halves = [&mut mean.columns, &mut mean.rows, &mut mean.squares];
        halves.into_iter().flatten().for_each(|sum| *sum /= count);
        mean
    }

    /// As the vectors that a sensitivity is, the gain `times` what it is.
    fn vectors(&self, times: f64) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let count = self.columns.len().max(1) as f64;
        let by_columns: f64 = self.columns.iter().sum();
        let by_rows: f64 = self.rows.iter().sum();
        let scaled = |values: &[f64], by: f64| values.iter().map(|value| (value * by) as f32).collect();
        // Both add up to the same, but for rounding.
        let k = scaled(&self.columns, if by_columns > 0.0 { count / by_columns } else { 0.0 });
        let r = scaled(&self.rows, if by_rows > 0.0 { times * by_columns / by_rows / count } else { 0.0 });
        (k, r, scaled(&self.squares, 1.0))
    }
}

/// What `probe` found of the matrices of `decoder`, and what there is to say about it.
#[must_use]
pub fn table(decoder: &Decoder<'_>, probe: &Probe) -> (Table, Vec<String>) {
    let weight = (probe.tokens.len() * probe.draws) as f64;
    let mut sums: BTreeMap<Key, Sums> = BTreeMap::new();
    let mut linears: Vec<Linear<'_>> = Vec::new();
    for block in &decoder.blocks {
        linears.extend(block.linears());
    }
    linears.extend(decoder.head);
    for linear in &linears {
        if let Some(moments) = probe.moments.get(&key(linear)) {
            // What is known of the head is an expectation: nothing was drawn.
            let is_head = decoder.head.is_some_and(|head| head.weight.name == linear.weight.name);
            let weight = if is_head { probe.tokens.len() as f64 } else { weight };
            sums.insert(key(linear), Sums::of(linear, moments, weight));
        }
    }
    sums.insert(key(&decoder.embedding), embedding(decoder, probe));
    let warnings = fill_up(decoder, probe, &mut sums);
    let times = if probe.mode == Mode::Written { UNFAMILIAR } else { 1.0 };
    (stored(&sums, times, &linears, &decoder.embedding), warnings)
}

fn key(linear: &Linear<'_>) -> Key {
    (linear.weight.name.clone(), linear.at)
}

/// Looked up, a row of the embedding has the gradients at its channels whenever its token comes: all tokens that may come
/// do so alike, but for the one that every window begins with. Tied, the matrix is the head, too, and both add up.
fn embedding(decoder: &Decoder<'_>, probe: &Probe) -> Sums {
    let weight = (probe.tokens.len() * probe.draws) as f64;
    let [others, firsts] = &probe.lookups;
    let mut rows = vec![0.0; decoder.vocabulary()];
    let allowed = probe.vocabulary.allowed();
    let each = others.iter().sum::<f64>() / weight / allowed.len().max(1) as f64;
    for &token in allowed {
        rows[token as usize] = each;
    }
    if let Some(first) = probe.vocabulary.first() {
        rows[first as usize] += firsts.iter().sum::<f64>() / weight;
    }
    let columns = others.iter().zip(firsts).map(|(other, first)| (other + first) / weight).collect();
    let mut sums = Sums { columns, rows, squares: Vec::new() };
    if decoder.head.is_none()
        && let Some(moments) = probe.moments.get(&key(&decoder.embedding))
    {
        let as_head = Sums::of(&decoder.embedding, moments, probe.tokens.len() as f64);
        sums.add(&as_head.columns, &as_head.rows);
        sums.squares = as_head.squares;
    }
    sums
}

/// Gives experts that saw too few tokens what the others of their layer have on average; says which.
fn fill_up(decoder: &Decoder<'_>, probe: &Probe, sums: &mut BTreeMap<Key, Sums>) -> Vec<String> {
    let mut warnings = Vec::new();
    for block in &decoder.blocks {
        let (Some(experts), Some(loads)) = (&block.experts, probe.loads.get(&block.index)) else { continue };
        let (poor, rich): (Vec<usize>, Vec<usize>) =
            (0..experts.experts.len()).partition(|&expert| loads[expert] < EXPERT_TOKENS);
        if poor.is_empty() {
            continue;
        }
        // With no expert that saw enough, those that saw anything.
        let seen = |expert: &usize| loads[*expert] > 0;
        let from: Vec<usize> = if rich.is_empty() { poor.iter().copied().filter(seen).collect() } else { rich };
        for which in 0..4 {
            let of = |expert: &usize| parts(&experts.experts[*expert])[which].as_ref().map(key);
            let known: Vec<&Sums> = from.iter().filter_map(|expert| sums.get(&of(expert)?)).collect();
            if known.is_empty() {
                continue;
            }
            let mean = Sums::mean(&known);
            for key in poor.iter().filter_map(of) {
                sums.insert(key, mean.clone());
            }
        }
        warnings.push(few(block.index, &poor, probe.tokens.len()));
    }
    warnings
}

fn parts<'a>(mlp: &Mlp<'a>) -> [Option<Linear<'a>>; 4] {
    [mlp.gate, mlp.up, mlp.gate_up, mlp.down]
}

/// A sentence for the experts of a layer that saw too few tokens.
fn few(layer: usize, experts: &[usize], tokens: usize) -> String {
    const NAMED: usize = 12;
    let mut named = String::new();
    for (at, expert) in experts.iter().take(NAMED).enumerate() {
        let _ = write!(named, "{}{expert}", if at > 0 { ", " } else { "" });
    }
    if experts.len() > NAMED {
        let _ = write!(named, " and {} more", experts.len() - NAMED);
    }
    format!(
        "layer {layer}: of {tokens} probe tokens fewer than {EXPERT_TOKENS} went to expert {named}: what was measured of \
         the others counts on average"
    )
}

/// The vectors by tensor, those of a stack one after the other; gains `times` what they are.
fn stored(sums: &BTreeMap<Key, Sums>, times: f64, linears: &[Linear<'_>], embedding: &Linear<'_>) -> Table {
    let stacks: BTreeSet<&str> = linears
        .iter()
        .filter(|linear| linear.weight.shape.len() == 3)
        .map(|linear| linear.weight.name.as_str())
        .collect();
    let mut table = Table::new();
    let names: BTreeSet<&String> = sums.keys().map(|(name, _)| name).collect();
    for name in names {
        let (mut k, mut r, mut x2) = (Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for (_, sums) in sums.range((name.clone(), 0)..=(name.clone(), u64::MAX)) {
            let vectors = sums.vectors(times);
            k.extend(vectors.0);
            r.extend(vectors.1);
            x2.extend(vectors.2);
            count += 1;
        }
        let stack = (*name != embedding.weight.name && stacks.contains(name.as_str())).then_some(count);
        table.insert(name.clone(), Found { stack, k: k.into(), r: r.into(), x2: x2.into() });
    }
    table
}
