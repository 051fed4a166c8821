//! A checkpoint seen as a decoder: which tensor plays which part, and how its configuration says they go together.
//!
//! Parts are found by role and layer, not by architecture. What the configuration implies and does not say is a table
//! ([`traits`]). Two readers: the source `weights` takes what it finds and leaves out the rest, the probe runs a
//! model only if [`Decoder::complete`] finds everything in its place.

mod resolve;
pub mod rope;
mod runnable;
pub mod traits;

use crate::checkpoint::stream::{Pass, Reader};
use crate::checkpoint::{Checkpoint, Matrix, Tensor, View};
use crate::dtype::Float;
use crate::error::{Error, Result};
pub use resolve::decoder;
use traits::Conventions;

/// A linear layer: its matrix, and its bias if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// Which of the matrices of `weight`, if that is a stack of them; else 0.
    pub at: u64,
    /// Its shape, as it is stored.
    pub matrix: Matrix,
    /// Whether it is stored with a row for each input, and not for each output.
    pub transposed: bool,
    /// The bias, one element per output.
    pub bias: Option<Vector<'a>>,
}

impl Linear<'_> {
    /// Length of what it takes.
    #[must_use]
    pub fn inputs(&self) -> usize {
        (if self.transposed { self.matrix.rows } else { self.matrix.cols }) as usize
    }

    /// Length of what it gives.
    #[must_use]
    pub fn outputs(&self) -> usize {
        (if self.transposed { self.matrix.cols } else { self.matrix.rows }) as usize
    }

    /// Where it is, with a row for each output.
    #[must_use]
    pub fn view(&self, checkpoint: &Checkpoint) -> Option<View> {
        let whole = View::whole(checkpoint.position(&self.weight.name)?, self.weight);
        let count = self.weight.elements() / (self.matrix.rows * self.matrix.cols);
        let stored = whole.matrix_of(self.at, count);
        Some(if self.transposed { stored.transposed() } else { stored })
    }

    /// Where its data begin in those of `weight`, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at * self.matrix.rows * self.matrix.row_bytes()
    }
}

/// A vector of parameters, or one of several that a tensor holds one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Vector<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// Which of them; 0 for the only one.
    pub at: u64,
}

/// A norm: its gain, and its shift if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// The gain, or the gain less one.
    pub weight: &'a Tensor,
    /// The shift.
    pub bias: Option<&'a Tensor>,
}

/// Attention. A part that is not there, or not as expected, is `None`.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the parts are named as in the literature")]
pub struct Attention<'a> {
    pub query: Option<Linear<'a>>,
    pub key: Option<Linear<'a>>,
    pub value: Option<Linear<'a>>,
    pub query_key_value: Option<Linear<'a>>,
    pub query_norm: Option<Norm<'a>>,
    pub key_norm: Option<Norm<'a>>,
    pub sinks: Option<&'a Tensor>,
    pub output: Option<Linear<'a>>,
}

/// A feed-forward network, or one expert of a mixture.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the parts are named as in the literature")]
pub struct Mlp<'a> {
    pub gate: Option<Linear<'a>>,
    pub up: Option<Linear<'a>>,
    pub gate_up: Option<Linear<'a>>,
    pub down: Option<Linear<'a>>,
}

/// A mixture of experts.
#[derive(Clone, Debug)]
pub struct Experts<'a> {
    /// Which expert a token goes to.
    pub router: Option<Linear<'a>>,
    /// Added to the router's scores for choosing, and for nothing else.
    pub correction: Option<&'a Tensor>,
    /// The experts.
    pub experts: Vec<Mlp<'a>>,
    /// The expert that every token goes to.
    pub shared: Option<Mlp<'a>>,
    /// How much of it, per token.
    pub shared_gate: Option<Linear<'a>>,
}

/// One layer.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the parts are named as in the literature")]
pub struct Block<'a> {
    pub index: usize,
    pub attention_in: Option<Norm<'a>>,
    pub attention: Attention<'a>,
    pub attention_out: Option<Norm<'a>>,
    pub mlp_in: Option<Norm<'a>>,
    /// The feed-forward network, if there are no experts.
    pub mlp: Mlp<'a>,
    pub experts: Option<Experts<'a>>,
    pub mlp_out: Option<Norm<'a>>,
}

impl<'a> Mlp<'a> {
    /// Its matrices.
    #[must_use]
    pub fn linears(&self) -> Vec<Linear<'a>> {
        [self.gate, self.up, self.gate_up, self.down].into_iter().flatten().collect()
    }
}

impl<'a> Block<'a> {
    /// Its matrices.
    #[must_use]
    pub fn linears(&self) -> Vec<Linear<'a>> {
        let Attention { query, key, value, query_key_value, output, .. } = self.attention;
        let mut found: Vec<Linear<'a>> = [query, key, value, query_key_value, output].into_iter().flatten().collect();
        found.extend(self.mlp.linears());
        if let Some(experts) = &self.experts {
            found.extend(experts.router.into_iter().chain(experts.shared_gate));
            found.extend(experts.experts.iter().chain(&experts.shared).flat_map(Mlp::linears));
        }
        found
    }

    /// Bytes of its matrices.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.linears().iter().map(|linear| linear.matrix.rows * linear.matrix.row_bytes()).sum()
    }
}

/// A decoder: embedding, blocks, final norm, head.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    /// The embedding.
    pub embedding: Linear<'a>,
    /// Embeddings of positions, where they are learned.
    pub positions: Option<Linear<'a>>,
    /// The layers, in order.
    pub blocks: Vec<Block<'a>>,
    /// The norm before the head.
    pub final_norm: Option<Norm<'a>>,
    /// The head, unless it is the embedding.
    pub head: Option<Linear<'a>>,
    /// Elements of one attention head.
    pub head_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// How they go together.
    pub conventions: Conventions,
}

impl Decoder<'_> {
    /// Length of the residual stream.
    #[must_use]
    pub fn width(&self) -> usize {
        self.embedding.matrix.cols as usize
    }

    /// Bytes of the matrices of all layers.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.blocks.iter().map(Block::bytes).sum()
    }

    /// Rows of the embedding.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.embedding.matrix.rows as usize
    }
}

/// The elements of `vector`, `None` if there are not `length` floats for it.
///
/// # Errors
/// [`Error::NonFinite`], and those of reading.
pub fn vector(pass: Pass<'_>, vector: Vector<'_>, length: usize) -> Result<Option<Vec<f32>>> {
    let Vector { tensor, at } = vector;
    let rows = tensor.elements().checked_div(length as u64).unwrap_or(0);
    let fits = at < rows && tensor.elements() == rows * length as u64;
    let Some(float) = Float::of(tensor.dtype).filter(|_| fits) else { return Ok(None) };
    let bytes = (length * float.bytes()) as u64;
    let mut values = vec![0.0; length];
    float.widen(Reader::default().bytes(pass.checkpoint, tensor, at * bytes..(at + 1) * bytes)?, &mut values);
    let wrong = |value: &f32| !value.is_finite();
    match values.iter().position(wrong) {
        None => Ok(Some(values)),
        Some(first) => Err(Error::NonFinite {
            file: pass.checkpoint.file_of(tensor).to_owned(),
            tensor: tensor.name.clone(),
            count: values.iter().filter(|value| wrong(value)).count(),
            rows: if rows > 1 { (at, at + 1) } else { (0, length as u64) },
            first: if rows > 1 { vec![at, first as u64] } else { vec![first as u64] },
        }),
    }
}
