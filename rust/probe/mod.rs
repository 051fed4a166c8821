//! The probe: the model run on tokens of its own vocabulary, forward and back, to measure where its weights are sensitive.
//!
//! It needs no text and forms no gradients of weights. Windows of tokens, random ones or written by the model itself, go
//! through the layers one by one. Random gradients with the covariance of the model's own predictions come back (`head`),
//! and on the way back the inputs and output gradients of every matrix give its [moments](Moments). Weights are read as
//! they are needed, once forward and once back. What is held is the residual stream before each layer and the activations
//! of one layer; up to [`Pass::held_bytes`] of layers keep theirs, so that their forward pass is not repeated.
//!
//! | module | contents |
//! |---|---|
//! | `vocabulary` `tokens` | which tokens may be drawn; the fixed random generator |
//! | `activations` `matmul` | one vector for each token; products with matrices in files and in memory |
//! | `norm` `attention` `gating` `ffn` `routing` `moe` | the parts of a layer, forward and back |
//! | `embedding` `layer` `head` | the input of the model, one layer, the output |
//! | `run` `generate` | the order of a run; windows that the model writes itself |
//! | `moments` | what is measured |

mod activations;
mod attention;
mod embedding;
mod ffn;
mod gating;
mod generate;
mod head;
mod layer;
pub(crate) mod matmul;
mod moe;
pub(crate) mod moments;
mod norm;
mod routing;
mod run;
pub(crate) mod tokens;
pub(crate) mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub(crate) use moments::Moments;
pub(crate) use run::{EXPERT_TOKENS, Probe};
pub use run::{Mode, Options, probe};

use crate::arch::{Layer, Linear, ParameterVector, Runnable, read_vector};
use crate::checkpoint::Tensor;
use crate::checkpoint::stream::{Block, Pass, Reader};
use crate::error::{Error, Result};
use activations::Activations;
use matmul::stored::{Direction, Operand, Product, product, products};
use tokens::WINDOW;

/// A matrix: the name of its tensor, and its index if that is a stack of matrices.
pub(crate) type MatrixKey = (String, u64);

/// A linear layer, and rows at its output: what it gives, or gradients.
struct LinearOutput<'a> {
    linear: Linear<'a>,
    rows: Activations,
}

impl<'a> LinearOutput<'a> {
    fn zeros(linear: Linear<'a>, count: usize) -> Self {
        Self { linear, rows: Activations::zeros(count, linear.outputs()) }
    }
}

/// One run, and what it has measured so far.
struct Session<'a> {
    pass: Pass<'a>,
    model: &'a Runnable<'a>,
    multiply_adds: AtomicU64,
    moments: Mutex<BTreeMap<MatrixKey, Moments>>,
    /// Weights that are held in memory, by tensor, while the model writes its windows.
    held: BTreeMap<&'a str, Block>,
}

impl<'a> Session<'a> {
    fn new(pass: Pass<'a>, model: &'a Runnable<'a>) -> Self {
        let (moments, held) = Default::default();
        Self { pass, model, multiply_adds: AtomicU64::new(0), moments, held }
    }

    /// Reads all weights into memory if they fit: generating a text reads them once per token.
    fn hold(&mut self) -> Result<()> {
        let linears = self.model.layers.iter().flat_map(Layer::linears).chain([self.model.head()]);
        let weights: BTreeMap<&str, &Tensor> =
            linears.map(|linear| (linear.weight.name.as_str(), linear.weight)).collect();
        if weights.values().map(|weight| weight.bytes).sum::<u64>() > self.pass.held_bytes {
            return Ok(());
        }
        let weights: Vec<&Tensor> = weights.into_values().collect();
        let blocks = self.pass.workers.map(self.pass.progress, &weights, Reader::default, |reader, weight| {
            reader.block(self.pass.checkpoint, weight, 0..weight.bytes)
        })?;
        self.held = weights.iter().map(|weight| weight.name.as_str()).zip(blocks).collect();
        Ok(())
    }

    /// The bytes `range` of a weight, if it is held.
    fn held(&self, weight: &Tensor, range: Range<u64>) -> Option<&[u8]> {
        self.held.get(weight.name.as_str()).map(|block| &block.bytes()[range.start as usize..range.end as usize])
    }

    /// Counts multiply-adds.
    fn count(&self, multiply_adds: usize) {
        self.multiply_adds.fetch_add(multiply_adds as u64, Ordering::Relaxed);
    }

    /// Counts bytes of weights that were read.
    fn visited(&self, bytes: u64) {
        self.pass.progress.advance(bytes);
    }

    /// The elements of a vector that must have that length.
    fn elements(&self, of: ParameterVector<'_>, length: usize) -> Result<Vec<f32>> {
        let unfit = || Error::Scheme {
            tensor: of.tensor.name.clone(),
            reason: format!("{} {:?} is not {length} floats", of.tensor.dtype, of.tensor.shape),
        };
        read_vector(self.pass, of, length)?.ok_or_else(unfit)
    }

    /// Adds the bias of the layer to each row of its output, if it has one.
    fn add_bias(&self, output: &mut LinearOutput<'_>) -> Result<()> {
        let Some(bias) = output.linear.bias else { return Ok(()) };
        let bias = self.elements(bias, output.rows.width)?;
        for row in output.rows.values.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(&bias).for_each(|(value, bias)| *value += bias);
        }
        Ok(())
    }

    /// Computes the outputs of linear layers, biases included, each from an input of its own.
    fn forward(&self, mut layers: Vec<(&Activations, &mut LinearOutput<'_>)>) -> Result<()> {
        let each = layers
            .iter_mut()
            .map(|(x, LinearOutput { linear, rows })| Product { operands: vec![Operand::new(*linear, x)], out: rows });
        products(self, Direction::Forward, each.collect())?;
        layers.iter_mut().try_for_each(|(_, output)| self.add_bias(output))
    }

    /// The output of one linear layer for `x`, bias included.
    fn forward_one(&self, linear: Linear<'_>, x: &Activations) -> Result<Activations> {
        let mut output = LinearOutput::zeros(linear, x.count());
        self.forward(vec![(x, &mut output)])?;
        Ok(output.rows)
    }

    /// Gradients at the input `x` of `linear`, from those at its output. Records its moments.
    fn back_one(&self, linear: Linear<'_>, x: &Activations, gradients: &Activations) -> Result<Activations> {
        self.record(x, &[(linear, gradients)], &Self::windows(x.count()))?;
        product(self, Direction::Back, gradients.count(), vec![Operand::new(linear, gradients)])
    }

    /// The rows of each window, of the tokens `0..count`.
    fn windows(count: usize) -> Vec<Range<usize>> {
        (0..count).step_by(WINDOW).map(|from| from..(from + WINDOW).min(count)).collect()
    }

    /// The rows of each window, of some tokens in ascending order.
    fn windows_of(tokens: &[usize]) -> Vec<Range<usize>> {
        let mut windows: Vec<Range<usize>> = Vec::new();
        for (row, token) in tokens.iter().enumerate() {
            match windows.last_mut() {
                Some(last) if tokens[last.start] / WINDOW == token / WINDOW => last.end = row + 1,
                _ => windows.push(row..row + 1),
            }
        }
        windows
    }

    /// Records the moments of layers with the common input `x`, from the gradients at their outputs.
    fn record(&self, x: &Activations, layers: &[(Linear<'_>, &Activations)], windows: &[Range<usize>]) -> Result<()> {
        let gradients: Vec<&Activations> = layers.iter().map(|(_, gradients)| *gradients).collect();
        let found = moments::moments(self, x, &gradients, windows)?;
        for ((linear, _), moments) in layers.iter().zip(found) {
            self.add_moments(linear, &moments);
        }
        Ok(())
    }

    fn add_moments(&self, linear: &Linear<'_>, moments: &Moments) {
        let mut all = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((linear.weight.name.clone(), linear.at)).or_default().add(moments);
    }

    /// The model's type, for messages.
    fn model_type(&self) -> String {
        self.pass.checkpoint.model_type().unwrap_or("unknown").to_owned()
    }

    /// The error for infinities or NaN after `place`.
    fn overflow(&self, place: &str) -> Error {
        Error::Unrunnable { model_type: self.model_type(), reason: format!("its numbers overflow after {place}") }
    }
}
