//! Output formats, one folder each.

pub mod mlx;

use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config, Matrix, Tensor, View};
use crate::codec::encoder::Encoded;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::scheme::{Affine, Packed, Scheme};
use crate::simd::Isa;
use crate::writer::layout::Stored;

/// What the output has in place of a tensor of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The targets that have views of it.
    Write,
    /// Nothing: it is the same as this other tensor.
    Tied(String),
    /// Nothing, for this reason.
    Drop(&'static str),
}

/// A tensor of the output, before it is decided how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Its element type, if it is not quantized.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Where its rows are from, one matrix after the other.
    pub views: Vec<View>,
    /// Whether one is added to each element.
    pub adds_one: bool,
    /// Whether it is a stack of matrices, and not something else of three dimensions.
    pub stacked: bool,
    /// Why the runtime cannot read it quantized, if so.
    pub never: Option<&'static str>,
}

impl Target {
    /// `tensor`, number `index`, under its own name and as it is.
    #[must_use]
    pub fn same(checkpoint: &Checkpoint, index: usize) -> Self {
        let tensor = &checkpoint.tensors[index];
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            views: vec![View::whole(index, tensor)],
            adds_one: false,
            stacked: false,
            never: None,
        }
    }

    /// The tensor that it has byte for byte, if it is no other.
    #[must_use]
    pub fn copies(&self, checkpoint: &Checkpoint) -> Option<usize> {
        let [view] = self.views.as_slice() else { return None };
        let tensor = &checkpoint.tensors[view.tensor];
        let same = view.is_whole(tensor) && tensor.packing == Packing::Plain && !self.adds_one;
        same.then_some(view.tensor)
    }

    /// The form all of it is stored in, if a runtime may take it as it is.
    #[must_use]
    pub fn packed(&self, checkpoint: &Checkpoint) -> Option<Packed> {
        let mut forms = self.views.iter().map(|view| match checkpoint.tensors[view.tensor].packing {
            Packing::Mxfp4 { .. } if view.col_stride == 1 => Some(Packed::Mxfp4),
            // The scales are taken over, too.
            Packing::Int4 { group_size, scales, .. }
                if view.col_stride == 1 && self.dtype == checkpoint.parts[scales].dtype =>
            {
                Affine::new(4, group_size.try_into().ok()?).map(Packed::Int4)
            }
            _ => None,
        });
        let first = forms.next()??;
        let fits = self.views.iter().all(|view| first.fits(view.cols));
        (fits && !self.adds_one && forms.all(|form| form == Some(first))).then_some(first)
    }
}

/// What becomes of a checkpoint in a format.
#[derive(Clone, Debug, Default)]
pub struct Arrangement {
    /// The tensors of the output, in the order in which the source first has something of them.
    pub targets: Vec<Target>,
    /// What becomes of each tensor of the source, in their order.
    pub treatments: Vec<Treatment>,
}

impl Arrangement {
    /// Every tensor under its own name and as it is.
    #[must_use]
    pub fn untouched(checkpoint: &Checkpoint) -> Self {
        let count = checkpoint.tensors.len();
        Self {
            targets: (0..count).map(|at| Target::same(checkpoint, at)).collect(),
            treatments: vec![Treatment::Write; count],
        }
    }
}

/// A module of the output that could be quantized, and what it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its path: the tensor's name without `.weight`.
    pub path: String,
    /// What it became.
    pub scheme: Scheme,
    /// The form in which it was kept, if not as plain numbers.
    pub packed: Option<Packed>,
}

/// The rows of a tensor that is to be stored: as many as its dimensions but the last make, and as long as that.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// Its dimensions but the last.
    pub above: &'a [u64],
    /// The last.
    pub cols: u64,
    /// The type that scales are stored in.
    pub float: Float,
}

/// An output format.
pub trait Format: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// What becomes of `checkpoint`. With `generic`, names and tensors are not touched, whatever the model is.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::AlreadyQuantized`], [`Error::Layout`].
    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement>;

    /// The tensors that hold `rows` in `scheme`.
    fn parts(&self, rows: Rows<'_>, scheme: Affine) -> Vec<Stored>;

    /// Appends the first `rows` rows of a band, encoded by a scheme and stored as a type, to the parts' data.
    fn append(&self, isa: Isa, by: (Affine, Float), encoded: &Encoded, rows: usize, parts: &mut [Vec<u8>]);

    /// The codes and grids of `rows` rows, from the parts' data; of the other rows of the band they are 0.
    fn extract(&self, scheme: Affine, store: Float, parts: &[&[u8]], rows: usize, encoded: &mut Encoded);

    /// The parts in `output` of the tensor called `target` in `scheme`, and all its rows as one matrix; `None` if they are
    /// not all there, of the right types and shapes.
    fn stored<'a>(&self, output: &'a Checkpoint, target: &str, scheme: Affine) -> Option<(Matrix, Vec<&'a Tensor>)>;

    /// The tensors that hold `rows` as the source packs them.
    fn packed_parts(&self, rows: Rows<'_>, packed: Packed) -> Vec<Stored>;

    /// Appends whole rows of the source's codes and scales to the parts' data.
    fn append_packed(&self, packed: Packed, store: Float, codes: &[u8], scales: &[u8], parts: &mut [Vec<u8>]);

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
        Error::option(OptionName::Format, name, format!("not one of: {}", known.join(", ")))
    })
}
