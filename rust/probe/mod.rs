//! The probe: a model run on tokens of its own vocabulary, forward and back, to learn where its weights are sensitive.
//!
//! No text, no gradients of weights: windows of tokens, random ones or such as the model writes, go through the layers one
//! by one, random gradients with the covariance of the model's own predictions come back (`head`), and on the way back every matrix's
//! inputs and output gradients meet and leave their [moments](Moments). Weights are read as they are needed, once forward
//! and once back; what is held is the stream in front of each layer and what one layer makes of it ([`Pass::held_bytes`] of
//! layers remember more, so that they need not be gone through again).
//!
//! | module | what |
//! |---|---|
//! | `vocabulary` `tokens` | which tokens there are; the fixed generator |
//! | `rows` `matmul` | vectors of tokens; their products with matrices in files, and in memory |
//! | `norm` `attention` `activation` `routing` `experts` | the parts of a layer, forward and back |
//! | `embedding` `block` `head` | the beginning of the model, a layer, the end |
//! | `run` `generate` | the order of a run; windows that the model writes itself |
//! | `moments` | what is measured |

mod activation;
mod attention;
mod block;
mod embedding;
mod experts;
mod generate;
mod head;
pub mod matmul;
pub mod moments;
mod norm;
mod routing;
mod rows;
mod run;
pub mod tokens;
pub mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use head::Seen;
pub use moments::Moments;
pub use run::{EXPERT_TOKENS, Mode, Options, Probe, WRITTEN_BYTES, probe};

use crate::arch::{self, Decoder, Linear, Vector, vector};
use crate::checkpoint::Tensor;
use crate::checkpoint::stream::{Block, Pass, Reader};
use crate::error::{Error, Result};
use activation::Gating;
use matmul::stored::{Direction, Job, products};
use rows::Rows;
use tokens::WINDOW;

/// One matrix: its tensor, and which one of it if that is a stack.
pub type Key = (String, u64);

/// One run, and what it has found so far.
struct Session<'a> {
    pass: Pass<'a>,
    decoder: &'a Decoder<'a>,
    multiply_adds: AtomicU64,
    moments: Mutex<BTreeMap<Key, Moments>>,
    /// Weights that are held in memory, by tensor, while the model goes on token by token.
    held: BTreeMap<&'a str, Block>,
}

impl<'a> Session<'a> {
    fn new(pass: Pass<'a>, decoder: &'a Decoder<'a>) -> Self {
        let (moments, held) = Default::default();
        Self { pass, decoder, multiply_adds: AtomicU64::new(0), moments, held }
    }

    /// Reads all weights into memory if they fit: they are needed once for every token of a window.
    fn hold(&mut self) -> Result<()> {
        let decoder = self.decoder;
        let linears = decoder.blocks.iter().flat_map(arch::Block::linears).chain([head::head(self)]);
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

    /// Counts multiplications with additions.
    fn count(&self, multiply_adds: usize) {
        self.multiply_adds.fetch_add(multiply_adds as u64, Ordering::Relaxed);
    }

    /// Counts bytes of weights that were read.
    fn visited(&self, bytes: u64) {
        self.pass.progress.advance(bytes);
    }

    /// What lies between the matrices of a feed-forward network.
    fn gating(&self) -> Gating {
        let conventions = &self.decoder.conventions;
        let is_gated = |mlp: &arch::Mlp<'_>| mlp.gate.is_some() || mlp.gate_up.is_some();
        let first = self.decoder.blocks.first();
        let gated = first.is_some_and(|block| {
            is_gated(&block.mlp) || block.experts.as_ref().is_some_and(|all| all.experts.first().is_some_and(is_gated))
        });
        match conventions.clamped_gate {
            Some(limit) => Gating::Clamped(limit),
            None if gated => Gating::Gated(conventions.activation),
            None => Gating::Plain(conventions.activation),
        }
    }

    /// The elements of a vector that must be there.
    fn elements(&self, of: Vector<'_>, length: usize) -> Result<Vec<f32>> {
        let unfit = || Error::Scheme {
            tensor: of.tensor.name.clone(),
            reason: format!("{} {:?} is not {length} floats", of.tensor.dtype, of.tensor.shape),
        };
        vector(self.pass, of, length)?.ok_or_else(unfit)
    }

    /// Adds the bias of `linear` to each of `rows`, if it has one.
    fn add_bias(&self, linear: &Linear<'_>, rows: &mut Rows) -> Result<()> {
        let Some(bias) = linear.bias else { return Ok(()) };
        let bias = self.elements(bias, rows.width)?;
        for row in rows.values.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(&bias).for_each(|(value, bias)| *value += bias);
        }
        Ok(())
    }

    /// What `linear` gives of `x`, bias included.
    fn linear(&self, linear: &Linear<'_>, x: &Rows) -> Result<Rows> {
        let mut found = products(self, Direction::Forward, &[Job::one(*linear, x)])?;
        let mut rows = found.pop().ok_or_else(|| Error::Bug("a layer gave nothing".to_owned()))?;
        self.add_bias(linear, &mut rows)?;
        Ok(rows)
    }

    /// Gradients at the input `x` of `linear` from those at its output. Takes down its moments.
    fn linear_back(&self, linear: &Linear<'_>, x: &Rows, gradients: &Rows) -> Result<Rows> {
        self.record(x, &[(*linear, gradients)], &Self::windows(x.count()))?;
        let mut found = products(self, Direction::Back, &[Job::one(*linear, gradients)])?;
        found.pop().ok_or_else(|| Error::Bug("a layer gave nothing back".to_owned()))
    }

    /// The rows of each window, of `count` tokens in their order.
    fn windows(count: usize) -> Vec<Range<usize>> {
        (0..count).step_by(WINDOW).map(|from| from..(from + WINDOW).min(count)).collect()
    }

    /// The rows of each window, of some tokens in their order.
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

    /// Takes down the moments of layers with the inputs `x`, from the gradients at their outputs.
    fn record(&self, x: &Rows, layers: &[(Linear<'_>, &Rows)], windows: &[Range<usize>]) -> Result<()> {
        let gradients: Vec<&Rows> = layers.iter().map(|(_, gradients)| *gradients).collect();
        let found = moments::moments(self, x, &gradients, windows)?;
        for ((linear, _), moments) in layers.iter().zip(found) {
            self.take(linear, &moments);
        }
        Ok(())
    }

    fn take(&self, linear: &Linear<'_>, moments: &Moments) {
        let mut all = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((linear.weight.name.clone(), linear.at)).or_default().add(moments);
    }

    /// The model's type, for messages.
    fn family(&self) -> String {
        self.pass.checkpoint.model_type().unwrap_or("unknown").to_owned()
    }

    /// The error for numbers that are none, seen behind `place`.
    fn overflow(&self, place: &str) -> Error {
        Error::Unrunnable { model_type: self.family(), reason: format!("its numbers overflow behind {place}") }
    }
}
