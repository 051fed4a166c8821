//! Output formats, one folder each.

pub mod mlx;

use crate::checkpoint::{Checkpoint, Config, Matrix};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::quant::Encoded;
use crate::scheme::{Affine, Scheme};
use crate::writer::layout::Stored;

/// What the output has in place of a tensor of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The same tensor, encoded or as it is.
    Write,
    /// Nothing: it is the same as this other tensor.
    Tied(String),
    /// Nothing, for this reason.
    Drop(&'static str),
}

/// A module of the output that could be quantized, and what it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its path: the tensor's name without `.weight`.
    pub path: String,
    /// What it became.
    pub scheme: Scheme,
}

/// An output format.
pub trait Format: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// What becomes of each tensor of `checkpoint`, in their order. With `generic`, names and tensors are not touched,
    /// whatever the model is.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::AlreadyQuantized`].
    fn treatments(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Vec<Treatment>>;

    /// The tensors that hold `matrix`, called `name` in the source, in `scheme`.
    fn parts(&self, name: &str, matrix: Matrix, scheme: Affine) -> Vec<Stored>;

    /// Appends `rows` rows of a band to the parts' data.
    fn append(&self, scheme: Affine, store: Float, encoded: &Encoded, rows: usize, parts: &mut [Vec<u8>]);

    /// The codes and grids of `rows` rows, from the parts' data.
    fn extract(&self, scheme: Affine, store: Float, parts: &[&[u8]], rows: usize, encoded: &mut Encoded);

    /// The scheme of each module that a configuration describes, by its path; an empty path stands for all others.
    fn described(&self, config: &Config) -> Vec<(String, Scheme)>;

    /// The text of `config.json` for the quantized `modules`.
    fn config(&self, source: &Config, modules: &[Module], generic: bool) -> String;
}

/// The formats there are.
const FORMATS: [&dyn Format; 1] = [&mlx::Mlx];

/// The format called `name`.
///
/// # Errors
/// [`Error::Option`].
pub fn by_name(name: &str) -> Result<&'static dyn Format> {
    FORMATS.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
        Error::option("--format", name, format!("not one of: {}", known.join(", ")))
    })
}
