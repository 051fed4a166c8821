//! Architectures: which tensor of a checkpoint has which place in the model, and how its configuration combines them.
//!
//! [`model`] finds tensors by role and layer, not by architecture, and leaves out what it does not find: the sensitivity
//! source `weights` works on such a partial [`Model`]. [`Model::runnable`] checks it once and returns a [`Runnable`], in
//! which every part that a forward pass needs is present. The probe accepts only that. The table of [`families`] adds
//! what a configuration implies but does not state.

mod blueprint;
mod check;
pub(crate) mod contract;
pub(crate) mod conventions;
pub(crate) mod families;
pub(crate) mod gguf;
pub(crate) mod hard_coded;
pub(crate) mod pattern;
mod resolve;
pub(crate) mod rope;
mod runnable;
mod spelling;

use std::path::Path;

use crate::checkpoint::prequantized::{self, Paired};
use crate::checkpoint::stream::{Pass, Reader};
use crate::checkpoint::{Checkpoint, Config, Matrix, Part, Reading, Tensor, View};
use crate::container::{Header, KeyValues};
use crate::dtype::Float;
use crate::error::{Error, Result};
pub(crate) use crate::simd::math::Activation;
use conventions::Conventions;
pub(crate) use resolve::model;
pub(crate) use runnable::{
    Attention, Expansion, Experts, Ffn, HeadShape, Layer, Mixer, Mlp, Projection, Runnable, SharedExpert,
};

/// A linear layer: its matrix, and its bias if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    pub weight: &'a Tensor,
    /// Index of the matrix in `weight` if that is a stack of matrices, else 0.
    pub at: u64,
    /// Shape of the matrix as it is stored.
    pub matrix: Matrix,
    /// Whether a stored row belongs to an input, not to an output.
    pub transposed: bool,
    /// One element per output.
    pub bias: Option<ParameterVector<'a>>,
}

impl Linear<'_> {
    #[must_use]
    pub fn inputs(&self) -> usize {
        (if self.transposed { self.matrix.rows } else { self.matrix.cols }) as usize
    }

    #[must_use]
    pub fn outputs(&self) -> usize {
        (if self.transposed { self.matrix.cols } else { self.matrix.rows }) as usize
    }

    /// The matrix as a view with one row per output.
    #[must_use]
    pub fn view(&self, checkpoint: &Checkpoint) -> Option<View> {
        let whole = View::whole(checkpoint.position(&self.weight.name)?, self.weight);
        let count = self.weight.elements() / (self.matrix.rows * self.matrix.cols);
        let stored = whole.matrix_of(self.at, count);
        Some(if self.transposed { stored.transposed() } else { stored })
    }

    /// Offset of the matrix within the data of `weight`, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at * self.matrix.rows * self.matrix.row_bytes()
    }

    /// Bytes of the matrix.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.matrix.rows * self.matrix.row_bytes()
    }
}

/// A vector of parameters: a whole tensor, or one of several vectors in it.
#[derive(Clone, Copy, Debug)]
pub struct ParameterVector<'a> {
    pub tensor: &'a Tensor,
    /// Index of the vector in it; 0 for the only one.
    pub at: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub weight: &'a Tensor,
    /// Whether `weight` is the gain minus one.
    pub minus_one: bool,
    pub bias: Option<&'a Tensor>,
}

/// Attention as it was found. `None` where a part is missing or ambiguous.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FoundAttention<'a> {
    pub query: Option<Linear<'a>>,
    pub key: Option<Linear<'a>>,
    pub value: Option<Linear<'a>>,
    pub query_key_value: Option<Linear<'a>>,
    pub query_norm: Option<Norm<'a>>,
    pub key_norm: Option<Norm<'a>>,
    pub sinks: Option<&'a Tensor>,
    pub output: Option<Linear<'a>>,
}

/// A feed-forward network, or one expert, as it was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FoundMlp<'a> {
    pub gate: Option<Linear<'a>>,
    pub up: Option<Linear<'a>>,
    pub gate_up: Option<Linear<'a>>,
    pub down: Option<Linear<'a>>,
}

#[derive(Clone, Debug)]
pub(crate) struct FoundExperts<'a> {
    pub router: Option<Linear<'a>>,
    /// Added to the router's scores when experts are chosen, and only then.
    pub correction: Option<&'a Tensor>,
    pub experts: Vec<FoundMlp<'a>>,
    /// The expert that processes every token.
    pub shared: Option<FoundMlp<'a>>,
    /// Scales the output of the shared expert per token.
    pub shared_gate: Option<Linear<'a>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FoundLayer<'a> {
    pub index: usize,
    pub attention_in: Option<Norm<'a>>,
    pub attention: FoundAttention<'a>,
    pub attention_out: Option<Norm<'a>>,
    pub mlp_in: Option<Norm<'a>>,
    /// The dense feed-forward network; empty where there are experts.
    pub mlp: FoundMlp<'a>,
    pub experts: Option<FoundExperts<'a>>,
    pub mlp_out: Option<Norm<'a>>,
}

/// A decoder-only model as it was found in a checkpoint: embedding, layers, final norm, head.
#[derive(Clone, Debug)]
pub(crate) struct Model<'a> {
    pub embedding: Linear<'a>,
    /// Learned position embeddings, if any.
    pub positions: Option<Linear<'a>>,
    pub layers: Vec<FoundLayer<'a>>,
    pub final_norm: Option<Norm<'a>>,
    /// The head; `None` if it is tied to the embedding.
    pub head: Option<Linear<'a>>,
    pub heads: HeadShape,
    pub conventions: Conventions,
}

impl Model<'_> {
    /// Width of the residual stream.
    #[must_use]
    pub(crate) fn width(&self) -> usize {
        self.embedding.matrix.cols as usize
    }

    /// Rows of the embedding.
    #[must_use]
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.matrix.rows as usize
    }
}

/// Reads the names of a release, and those of a GGUF file as a release has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseNames {
    /// In the usual spelling of the family.
    Usual,
    /// As they are stored.
    Stored,
}

impl Reading for ReleaseNames {
    fn spelled(&self, name: &str, key_values: &KeyValues, config: Option<&Config>) -> Option<String> {
        if !key_values.is_empty() {
            return gguf::model_of(key_values)?.used_name(name);
        }
        if *self == Self::Stored {
            return None;
        }
        let model_type = config.and_then(|config| config.get("model_type")?.as_str());
        spelling::usual(name, model_type.filter(|kind| families::family(kind).is_some()).map(spelling::prefixes))
    }

    fn stated(&self, headers: &[&Header]) -> Option<Config> {
        gguf::config(headers)
    }
}

/// Opens the checkpoint at `path` with its tensors under the usual names of its family.
///
/// # Errors
/// As [`Checkpoint::open`].
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    open_with(path, ReleaseNames::Usual, prequantized::pair)
}

/// Opens the checkpoint at `path` with its tensors under these `names`, and with parts that `pair` groups into tensors.
///
/// # Errors
/// As [`Checkpoint::open`].
pub(crate) fn open_with(
    path: &Path,
    names: ReleaseNames,
    pair: impl Fn(&[Part], Option<&Config>) -> Paired,
) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::open_with(path, &names, pair)?;
    gguf::state_rotary_factors(&mut checkpoint)?;
    Ok(checkpoint)
}

/// Finds the model in `checkpoint`, and checks that all parts of its forward pass are present and no tensor is left over.
///
/// # Errors
/// A sentence that says what is missing, or which tensor has no place.
pub fn runnable(checkpoint: &Checkpoint) -> std::result::Result<Runnable<'_>, String> {
    model(checkpoint)?.runnable(checkpoint)
}

/// Reads the elements of `vector`; `None` if the tensor does not hold whole vectors of `length` floats.
///
/// # Errors
/// [`Error::NonFinite`], and those of reading.
pub(crate) fn read_vector(pass: Pass<'_>, vector: ParameterVector<'_>, length: usize) -> Result<Option<Vec<f32>>> {
    let ParameterVector { tensor, at } = vector;
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
