//! Source `probe`: converts the moments that the probe has measured to two vectors per matrix.
//!
//! The squared gradients are approximated by their sums over rows and over columns ([`Moments`]) as `K_j R_i / Σ K`. Per
//! token, that is `k_j = K_j / mean K` and `r_i = R_i / (tokens · draws · columns)`. In a sensitivity file `k` belongs to
//! the stored columns and `r` to the stored rows: for a matrix with a row for each input the two are swapped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::table::{Table, TensorVectors};
use crate::arch::{Ffn, Layer, Linear, Runnable};
use crate::probe::{EXPERT_TOKENS, MatrixKey, Mode, Moments, Probe};

/// Version of the probe. A change of any number that it computes is a new version.
pub(crate) const VERSION: u32 = 1;

/// Ratio of the cost of an error in foreign text to its cost in text that the model has generated, on average over two
/// models (`docs/method.md`, "Foreign text"). The ratio is the same for all matrices, so it changes predictions, not plans.
const FOREIGN_TEXT_FACTOR: f64 = 1.2;

/// Sums of squared gradients of one matrix by stored column and by stored row, per token, and mean squares of its inputs.
#[derive(Clone, Debug, Default)]
struct MatrixSums {
    columns: Vec<f64>,
    rows: Vec<f64>,
    squares: Vec<f64>,
}

impl MatrixSums {
    /// The sums of `moments`, divided by `weight`, the number of tokens times draws.
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

    /// The mean of sums of the same shape.
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

    /// The vectors `k`, `r` and `x2`, the gain `r` multiplied by `times`.
    fn vectors(&self, times: f64) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let count = self.columns.len().max(1) as f64;
        let by_columns: f64 = self.columns.iter().sum();
        let by_rows: f64 = self.rows.iter().sum();
        let scaled = |values: &[f64], by: f64| values.iter().map(|value| (value * by) as f32).collect();
        // Both sums are equal except for rounding.
        let k = scaled(&self.columns, if by_columns > 0.0 { count / by_columns } else { 0.0 });
        let r = scaled(&self.rows, if by_rows > 0.0 { times * by_columns / by_rows / count } else { 0.0 });
        (k, r, scaled(&self.squares, 1.0))
    }
}

/// The vectors of all matrices of `model` that `probe` measured, and warnings.
#[must_use]
pub(crate) fn table(model: &Runnable<'_>, probe: &Probe) -> (Table, Vec<String>) {
    let weight = (probe.tokens.len() * probe.draws) as f64;
    let mut sums: BTreeMap<MatrixKey, MatrixSums> = BTreeMap::new();
    let mut linears: Vec<Linear<'_>> = Vec::new();
    for layer in &model.layers {
        linears.extend(layer.linears());
    }
    linears.extend(model.own_head);
    for linear in &linears {
        if let Some(moments) = probe.moments.get(&key(linear)) {
            // Moments of the head are expectations over draws.
            let is_head = model.own_head.is_some_and(|head| head.weight.name == linear.weight.name);
            let weight = if is_head { probe.tokens.len() as f64 } else { weight };
            sums.insert(key(linear), MatrixSums::of(linear, moments, weight));
        }
    }
    sums.insert(key(&model.embedding), embedding(model, probe));
    let warnings = impute_starved_experts(model, probe, &mut sums);
    let times = if probe.mode == Mode::Written { FOREIGN_TEXT_FACTOR } else { 1.0 };
    (stored(&sums, times, &linears, &model.embedding), warnings)
}

/// `table` with the conditional importance of inputs, for encoding with error feedback. Matrices of layers for which it was not
/// measured are taken to gain as much as the others do on average.
#[must_use]
pub(crate) fn conditional(table: &Table, model: &Runnable<'_>, importance: &BTreeMap<MatrixKey, Vec<f32>>) -> Table {
    let mean = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64;
    let means: Vec<f64> = importance.values().map(|found| mean(found)).collect();
    let average = means.iter().sum::<f64>() / means.len().max(1) as f64;
    let mut changed = table.clone();
    let ends = [Some(model.embedding), model.own_head].into_iter().flatten();
    let ends = ends.filter(|linear| importance.contains_key(&key(linear)));
    for linear in model.layers.iter().flat_map(Layer::linears).chain(ends) {
        let Some(vectors) = changed.get_mut(&linear.weight.name) else { continue };
        let of_inputs = if linear.transposed { &mut vectors.r } else { &mut vectors.k };
        let (from, count) = (linear.at as usize * linear.inputs(), linear.inputs());
        let mut all = of_inputs.to_vec();
        let Some(here) = all.get_mut(from..from + count) else { continue };
        // Stored with a row for each input, the vector has another unit: it stays in proportion.
        let unit = if linear.transposed { mean(here) } else { 1.0 };
        match importance.get(&key(&linear)) {
            Some(found) => here.iter_mut().zip(found).for_each(|(out, found)| *out = (unit * f64::from(*found)) as f32),
            None => here.iter_mut().for_each(|out| *out = (average * f64::from(*out)) as f32),
        }
        *of_inputs = all.into();
    }
    changed
}

fn key(linear: &Linear<'_>) -> MatrixKey {
    (linear.weight.name.clone(), linear.at)
}

/// Sums of the embedding. A row has the gradients at its token's positions; all tokens that may be drawn are equally
/// likely, and the first token begins every window. If the embedding is tied, its sums as the head are added.
fn embedding(model: &Runnable<'_>, probe: &Probe) -> MatrixSums {
    let weight = (probe.tokens.len() * probe.draws) as f64;
    let [others, firsts] = &probe.lookups;
    let mut rows = vec![0.0; model.vocabulary()];
    let allowed = probe.vocabulary.allowed();
    let each = others.iter().sum::<f64>() / weight / allowed.len().max(1) as f64;
    for &token in allowed {
        rows[token as usize] = each;
    }
    if let Some(first) = probe.vocabulary.first() {
        rows[first as usize] += firsts.iter().sum::<f64>() / weight;
    }
    let columns = others.iter().zip(firsts).map(|(other, first)| (other + first) / weight).collect();
    let mut sums = MatrixSums { columns, rows, squares: Vec::new() };
    if model.own_head.is_none()
        && let Some(moments) = probe.moments.get(&key(&model.embedding))
    {
        let as_head = MatrixSums::of(&model.embedding, moments, probe.tokens.len() as f64);
        sums.add(&as_head.columns, &as_head.rows);
        sums.squares = as_head.squares;
    }
    sums
}

/// Gives experts that saw too few tokens the mean of the other experts of their layer. Returns a warning per layer.
fn impute_starved_experts(
    model: &Runnable<'_>,
    probe: &Probe,
    sums: &mut BTreeMap<MatrixKey, MatrixSums>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for layer in &model.layers {
        let (Ffn::Mixture(mixture), Some(loads)) = (&layer.ffn, probe.loads.get(&layer.index)) else { continue };
        let experts = &mixture.routed;
        let (poor, rich): (Vec<usize>, Vec<usize>) =
            (0..experts.len()).partition(|&expert| loads[expert] < EXPERT_TOKENS);
        if poor.is_empty() {
            continue;
        }
        // If no expert saw enough tokens, those that saw any.
        let seen = |expert: &usize| loads[*expert] > 0;
        let from: Vec<usize> = if rich.is_empty() { poor.iter().copied().filter(seen).collect() } else { rich };
        // All experts of a mixture have the same matrices: the first of each, the second of each and so on.
        for which in 0..experts[0].linears().count() {
            let of = |expert: &usize| experts[*expert].linears().nth(which).map(|linear| key(&linear));
            let known: Vec<&MatrixSums> = from.iter().filter_map(|expert| sums.get(&of(expert)?)).collect();
            if known.is_empty() {
                continue;
            }
            let mean = MatrixSums::mean(&known);
            for key in poor.iter().filter_map(of) {
                sums.insert(key, mean.clone());
            }
        }
        warnings.push(few(layer.index, &poor, probe.tokens.len()));
    }
    warnings
}

/// The warning for the experts of a layer that saw too few tokens.
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

/// Collects the vectors by tensor, and concatenates those of a stack. Multiplies gains by `times`.
fn stored(sums: &BTreeMap<MatrixKey, MatrixSums>, times: f64, linears: &[Linear<'_>], embedding: &Linear<'_>) -> Table {
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
        table.insert(name.clone(), TensorVectors { stack, k: k.into(), r: r.into(), x2: x2.into() });
    }
    table
}
