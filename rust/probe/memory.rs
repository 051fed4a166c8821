//! The memory that the runs of error feedback take.

use super::feedback::{GRADIENT_TOKENS, MORE_TOKENS};
use super::run::{MOST_DRAWN, Options};
use super::stored::BLOCK_BYTES;
use super::tokens::WINDOW;
use super::{generate, head};
use crate::arch::{Experts, Ffn, Layer, Linear, Mixer, Mlp, Runnable};
use crate::matmul::symmetric::TERMS;

/// Windows that pass through a layer of the visit together, at most.
const MOST_WINDOWS: usize = 32;

/// The same, at least: with fewer tokens, the weights are read and widened too often.
const LEAST_WINDOWS: usize = 8;

/// Bytes of activations and gradients within a layer that [`chunk_windows`] aims at.
const CHUNK_BYTES: u64 = 384 << 20;

/// Bytes of a number.
const NUMBER: u64 = 4;

/// What passes through a layer, in numbers for each token, and the covariances of its inputs, in numbers.
#[derive(Default)]
struct LayerSizes {
    /// The trace of the forward pass, the streams included.
    trace: u64,
    /// Numbers that come with it in either half of the layer, at most, for each gradient.
    within: u64,
    /// Distinct inputs of matrices.
    inputs: u64,
    /// Inputs of matrices, an input of several as often.
    products: u64,
    /// Half of each covariance.
    covariances: u64,
    /// The largest order of a covariance.
    most: u64,
}

impl LayerSizes {
    fn of(layer: &Layer<'_>, draws: u64) -> Self {
        let Mixer::Attention(attention) = &layer.mixer;
        let (mixed, width) = (inputs(&attention.output), outputs(&attention.output));
        let projections: Vec<Linear<'_>> = attention.projection.iter().copied().collect();
        let projected: u64 = projections.iter().map(outputs).sum();
        let mut sizes = Self { trace: projected + 4 * width, ..Self::default() };
        sizes.add_input(&projections, 1);
        sizes.add_input(&[attention.output], 1);
        // Queries, keys and values after their norms and after rotation, and by heads; the streams before and after.
        let attending = 3 * projected + 3 * mixed + 6 * width;
        let of_ffn = match &layer.ffn {
            Ffn::Dense(mlp) => sizes.add_network(mlp, 1, 1),
            Ffn::Mixture(experts) => sizes.add_mixture(experts),
        };
        sizes.within = draws * attending.max(of_ffn + 5 * width);
        sizes
    }

    /// Adds an input of `linears`, which a token has `times` times, and its covariance.
    fn add_input(&mut self, linears: &[Linear<'_>], times: u64) {
        let Some(order) = linears.first().map(inputs) else { return };
        self.inputs += times * order;
        self.products += times * linears.len() as u64 * order;
        self.covariances += order * order / 2;
        self.most = self.most.max(order);
    }

    /// Adds `count` networks of which a token goes through `times`. Returns the numbers within them, for each gradient.
    fn add_network(&mut self, mlp: &Mlp<'_>, count: u64, times: u64) -> u64 {
        let first: Vec<Linear<'_>> = mlp.expansion.iter().copied().collect();
        let (outputs, inner) = (first.iter().map(outputs).sum::<u64>(), inputs(&mlp.down));
        self.trace += times * (outputs + inner);
        self.add_input(&first, times);
        self.add_input(&[mlp.down], times);
        self.covariances += (count - 1) * inner * inner / 2;
        // The gradients at the first outputs are there twice while those of gate and up are taken apart.
        times * (2 * outputs + inner)
    }

    fn add_mixture(&mut self, experts: &Experts<'_>) -> u64 {
        self.add_input(&[experts.router], 1);
        let (count, times) = (experts.routed.len() as u64, experts.routing.chosen as u64);
        // One covariance more: all experts together.
        let routed = experts.routed.first().map_or(0, |mlp| self.add_network(mlp, count + 1, times));
        routed + experts.shared.iter().map(|shared| self.add_network(&shared.mlp, 1, 1)).sum::<u64>()
    }

    /// Numbers of a token within the layer.
    fn of_token(&self) -> u64 {
        self.trace + self.within
    }

    /// Numbers of the terms that are packed for a product with the largest covariance.
    fn terms(&self) -> u64 {
        2 * TERMS as u64 * self.most
    }
}

fn inputs(linear: &Linear<'_>) -> u64 {
    linear.inputs() as u64
}

fn outputs(linear: &Linear<'_>) -> u64 {
    linear.outputs() as u64
}

fn sizes(model: &Runnable<'_>, draws: usize) -> Vec<LayerSizes> {
    model.layers.iter().map(|layer| LayerSizes::of(layer, draws as u64)).collect()
}

/// Windows that pass through a layer of the visit together. What is found does not depend on it.
#[must_use]
pub(super) fn chunk_windows(model: &Runnable<'_>, draws: usize) -> usize {
    let numbers = sizes(model, draws).iter().map(LayerSizes::of_token).max().unwrap_or(0);
    let windows = CHUNK_BYTES / (NUMBER * numbers * WINDOW as u64).max(1);
    (windows as usize).clamp(LEAST_WINDOWS, MOST_WINDOWS)
}

/// Bytes that a job with error feedback holds at most: activations, gradients, covariances, and `cached` bytes of weights
/// and traces that are kept while memory allows. Buffers for reading and encoding are not among them.
#[must_use]
pub(crate) fn held_bytes(model: &Runnable<'_>, options: &Options, cached: u64) -> u64 {
    let asked = (GRADIENT_TOKENS * options.tokens).next_multiple_of(WINDOW);
    let is_mixture = model.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Mixture(_)));
    let recorded = (if is_mixture { MOST_DRAWN * asked } else { asked }) as u64;
    let (width, draws, layers) = (model.width() as u64, options.draws as u64, model.layers.len() as u64);
    let sizes = sizes(model, options.draws);
    let widest = |numbers: &dyn Fn(&LayerSizes) -> u64| sizes.iter().map(numbers).max().unwrap_or(0);
    let stream = recorded * width;
    // Of the embedding and of the head; the streams they are made of are there before.
    let ends = (2 * stream).max(2 * width * width);
    // A covariance is copied where several matrices have one input: none has more of these than the width of the stream.
    let copies = width * width;
    let probe = widest(&|sizes| {
        let importance = sizes.most * sizes.most / 2 + copies + sizes.terms() + 2 * recorded * sizes.most;
        recorded * sizes.trace + importance.max(recorded * sizes.within)
    });
    let probe = layers * stream + probe + cached / NUMBER;
    let chunk = (chunk_windows(model, options.draws) * WINDOW) as u64;
    let visit = widest(&|sizes| {
        let rows = recorded * (sizes.inputs + sizes.products);
        sizes.covariances + copies + sizes.terms() + rows + chunk * (sizes.trace + sizes.within.max(2 * sizes.most))
    });
    let visit = MORE_TOKENS as u64 * stream + visit;
    let of_head = layers * stream + head::held_bytes(model, recorded) / NUMBER + cached / NUMBER;
    let written = (generate::held_bytes(model, MORE_TOKENS as u64 * recorded) + cached) / NUMBER;
    // The gradients of all layers are kept.
    let kept = draws * layers * stream + ends;
    NUMBER * (kept + probe.max(visit).max(of_head).max(written)) + BLOCK_BYTES
}
