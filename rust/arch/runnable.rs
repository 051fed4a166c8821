//! A model that can be run. It has no missing parts: an `Option` in these types stands for something that models have or do
//! not have, such as a shared expert.

use super::conventions::{Conventions, Routing};
use super::rope::Rope;
use super::{Linear, Norm};
use crate::checkpoint::Tensor;

/// Number of attention heads, and channels of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    pub queries: usize,
    /// Key and value heads: each serves the same number of query heads.
    pub keys: usize,
    pub size: usize,
}

/// The projection to queries, keys and values: three separate items, or one fused item.
#[derive(Clone, Copy, Debug)]
pub enum Projection<T> {
    Split { query: T, key: T, value: T },
    Fused(T),
}

#[derive(Clone, Debug)]
pub struct Attention<'a> {
    pub projection: Projection<Linear<'a>>,
    /// Norm of the queries, over each head or over all.
    pub query_norm: Option<Norm<'a>>,
    pub key_norm: Option<Norm<'a>>,
    /// One score per head that joins the softmax and has no value.
    pub sinks: Option<&'a Tensor>,
    pub output: Linear<'a>,
    pub heads: HeadShape,
    /// Rotary positions; `None` where the layer has none.
    pub rope: Option<Rope>,
}

/// The part of a layer that mixes information between positions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Mixer<'a> {
    /// Softmax attention with a key and a value per position.
    Attention(Attention<'a>),
}

/// The first matrices of a feed-forward network, or one item for each of them.
#[derive(Clone, Copy, Debug)]
pub enum Expansion<T> {
    /// `act(up)`
    Plain(T),
    /// `act(gate) · up`
    Gated { gate: T, up: T },
    /// `act(gate) · up`, with gate and up fused.
    FusedGated(T),
}

/// A feed-forward network, or one expert.
#[derive(Clone, Copy, Debug)]
pub struct Mlp<'a> {
    /// From the residual stream to the inner width.
    pub expansion: Expansion<Linear<'a>>,
    /// Back to the residual stream.
    pub down: Linear<'a>,
}

/// The expert that processes every token.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert<'a> {
    pub mlp: Mlp<'a>,
    /// Scales its output per token, through a sigmoid.
    pub gate: Option<Linear<'a>>,
}

#[derive(Clone, Debug)]
pub struct Experts<'a> {
    pub router: Linear<'a>,
    /// Added to the scores when experts are chosen, and only then.
    pub correction: Option<&'a Tensor>,
    pub routing: Routing,
    /// The routed experts, all of one form.
    pub routed: Vec<Mlp<'a>>,
    pub shared: Option<SharedExpert<'a>>,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each layer")]
pub enum Ffn<'a> {
    Dense(Mlp<'a>),
    Mixture(Experts<'a>),
}

/// One layer. Each half has a norm before it, after it, or both. In a parallel layer the second half may have no norm; it
/// then has the same input as the first half.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    pub index: usize,
    pub mixer_in: Option<Norm<'a>>,
    pub mixer: Mixer<'a>,
    pub mixer_out: Option<Norm<'a>>,
    pub ffn_in: Option<Norm<'a>>,
    pub ffn: Ffn<'a>,
    pub ffn_out: Option<Norm<'a>>,
}

/// A model that can be run.
#[derive(Clone, Debug)]
pub struct Runnable<'a> {
    pub embedding: Linear<'a>,
    /// Learned position embeddings, if positions are not rotary.
    pub positions: Option<Linear<'a>>,
    pub layers: Vec<Layer<'a>>,
    pub final_norm: Norm<'a>,
    /// The head's own matrix; `None` if it is tied to the embedding.
    pub own_head: Option<Linear<'a>>,
    /// Added to a variance before its root is taken.
    pub epsilon: f64,
    pub conventions: Conventions,
}

impl<T> Projection<T> {
    /// All of them, in the order query, key, value.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (first, others) = match self {
            Self::Split { query, key, value } => (query, Some([key, value])),
            Self::Fused(all) => (all, None),
        };
        std::iter::once(first).chain(others.into_iter().flatten())
    }
}

impl<T> Expansion<T> {
    /// All of them, the gate first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (first, second) = match self {
            Self::Plain(one) | Self::FusedGated(one) => (one, None),
            Self::Gated { gate, up } => (gate, Some(up)),
        };
        std::iter::once(first).chain(second)
    }

    /// All of them, the gate first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let (first, second) = match self {
            Self::Plain(one) | Self::FusedGated(one) => (one, None),
            Self::Gated { gate, up } => (gate, Some(up)),
        };
        std::iter::once(first).chain(second)
    }

    /// Applies `make` to each item.
    pub fn map<U>(self, mut make: impl FnMut(T) -> U) -> Expansion<U> {
        match self {
            Self::Plain(up) => Expansion::Plain(make(up)),
            Self::Gated { gate, up } => Expansion::Gated { gate: make(gate), up: make(up) },
            Self::FusedGated(both) => Expansion::FusedGated(make(both)),
        }
    }
}

impl<'a> Attention<'a> {
    pub fn linears(&self) -> impl Iterator<Item = Linear<'a>> {
        self.projection.iter().copied().chain([self.output])
    }
}

impl<'a> Mlp<'a> {
    pub fn linears(&self) -> impl Iterator<Item = Linear<'a>> {
        self.expansion.iter().copied().chain([self.down])
    }
}

impl<'a> Layer<'a> {
    #[must_use]
    pub fn linears(&self) -> Vec<Linear<'a>> {
        let Mixer::Attention(attention) = &self.mixer;
        let mut found: Vec<Linear<'a>> = attention.linears().collect();
        match &self.ffn {
            Ffn::Dense(mlp) => found.extend(mlp.linears()),
            Ffn::Mixture(experts) => {
                let shared = experts.shared.iter();
                found.push(experts.router);
                found.extend(shared.clone().filter_map(|shared| shared.gate));
                found.extend(experts.routed.iter().chain(shared.map(|shared| &shared.mlp)).flat_map(Mlp::linears));
            }
        }
        found
    }

    /// Bytes of its matrices.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.linears().iter().map(Linear::bytes).sum()
    }
}

impl<'a> Runnable<'a> {
    /// The matrix that computes logits: the head's own, or the embedding.
    #[must_use]
    pub fn head(&self) -> Linear<'a> {
        self.own_head.unwrap_or(self.embedding)
    }

    /// Width of the residual stream.
    #[must_use]
    pub fn width(&self) -> usize {
        self.embedding.matrix.cols as usize
    }

    /// Rows of the embedding.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.embedding.matrix.rows as usize
    }

    /// The same model with embeddings and all that follows in float32, whatever type the embeddings are stored in.
    #[must_use]
    pub fn in_float32(mut self) -> Self {
        self.conventions.embedding_scale = self.conventions.float32_embedding_scale;
        self
    }

    /// The longest window that it can be run on, if there is one.
    #[must_use]
    pub fn most_positions(&self) -> Option<usize> {
        let learned = self.positions.map(|positions| positions.matrix.rows as usize);
        learned.into_iter().chain(self.conventions.rope.limit).min()
    }

    /// Bytes of the matrices of all layers.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.layers.iter().map(Layer::bytes).sum()
    }
}
