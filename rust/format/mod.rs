//! Output formats: what one runtime wants. Names, order, refusals, files beside the weights; no bytes of weights.
//!
//! A format is a folder here and one line of [`FORMATS`]. It says in which [container](crate::container) tensors are
//! stored, and which [schemes](crate::codec) a tensor may have.

pub(crate) mod mlx;

use std::borrow::Cow;

use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config, Matrix, View};
use crate::codec::{Extent, Scheme};
use crate::container::{Container, StoredTensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::option::OptionName;

/// What the output has in place of a tensor of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// The targets that have views of it.
    Write,
    /// Nothing: it is the same as this other tensor.
    Tied(String),
    /// Nothing, for this reason.
    Drop(&'static str),
}

/// A tensor of the output, before it is decided how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
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
    pub(crate) fn same(checkpoint: &Checkpoint, index: usize) -> Self {
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
    pub(crate) fn copies(&self, checkpoint: &Checkpoint) -> Option<usize> {
        let [view] = self.views.as_slice() else { return None };
        let tensor = &checkpoint.tensors[view.tensor];
        let same = view.is_whole(tensor) && tensor.packing == Packing::Plain && !self.adds_one;
        same.then_some(view.tensor)
    }

    /// Rows of all its views.
    #[must_use]
    pub(crate) fn rows(&self) -> u64 {
        self.views.iter().map(|view| view.rows).sum()
    }

    /// The form that `format` takes all of it over in, as the source stores it, if there is one.
    #[must_use]
    pub(crate) fn packed(&self, checkpoint: &Checkpoint, format: &dyn Format) -> Option<Scheme> {
        let of = |view: &View| {
            let packing = &checkpoint.tensors[view.tensor].packing;
            let scales = packing.scales().map(|part| checkpoint.parts[part].dtype)?;
            format.passes(packing, scales, self.dtype).filter(|_| view.col_stride == 1)
        };
        let mut forms = self.views.iter().map(of);
        let first = forms.next()??;
        let fits = self.views.iter().all(|view| first.fits(view.cols));
        (fits && !self.adds_one && forms.all(|form| form == Some(first))).then_some(first)
    }
}

/// What becomes of a checkpoint in a format.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrangement {
    /// The tensors of the output, in the order in which the source first has something of them.
    pub targets: Vec<Target>,
    /// What becomes of each tensor of the source, in their order.
    pub treatments: Vec<Treatment>,
}

impl Arrangement {
    /// Every tensor under its own name and as it is.
    #[must_use]
    pub(crate) fn untouched(checkpoint: &Checkpoint) -> Self {
        let count = checkpoint.tensors.len();
        Self {
            targets: (0..count).map(|at| Target::same(checkpoint, at)).collect(),
            treatments: vec![Treatment::Write; count],
        }
    }
}

/// A module of the output that could be quantized, and what it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its path: the tensor's name without `.weight`.
    pub path: String,
    /// What it became.
    pub scheme: Scheme,
    /// The form in which it was kept, if not as plain numbers.
    pub packed: Option<Scheme>,
}

impl Module {
    /// The scheme that its bytes are stored in: none for plain numbers.
    #[must_use]
    pub(crate) fn stored_in(&self) -> Option<Scheme> {
        if self.scheme.is_kept() { self.packed } else { Some(self.scheme) }
    }
}

/// What a model card says of a format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardFacts {
    /// `library_name` of the card's front matter.
    pub library: &'static str,
    /// Tags of the front matter.
    pub tags: &'static [&'static str],
    /// A sentence on how schemes are spelled.
    pub schemes: &'static str,
    /// How to run it, if the runtime is promised to load it.
    pub usage: &'static str,
    /// What it is, if no runtime is promised to load it.
    pub generic: &'static str,
}

/// A file beside the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideFile {
    /// Its name in the output directory.
    pub name: &'static str,
    /// Its content.
    pub text: String,
}

/// Why a runtime would not load an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The tensor or module that it stumbles over.
    pub tensor: String,
    /// The rule, and what to do.
    pub reason: String,
}

/// An output format.
pub(crate) trait Format: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The container of its weights.
    fn container(&self) -> &'static dyn Container;

    /// Texts in each file of weights.
    fn metadata(&self) -> &'static [(&'static str, &'static str)];

    /// The schemes it has, by growing bytes. What a tensor may have of them is asked of [`candidates`](Self::candidates).
    fn schemes(&self) -> &'static [Scheme];

    /// The schemes that `matrix`, the rows of a tensor of that name, may have, by growing bytes.
    fn candidates(&self, _name: &Name, matrix: Matrix) -> Vec<Scheme> {
        self.schemes().iter().copied().filter(|scheme| scheme.fits(matrix.cols)).collect()
    }

    /// The scheme in which it takes over what a release stores as `packing` with scales of type `scales`, if the output
    /// is of type `dtype`; none if it must be decoded.
    fn passes(&self, packing: &Packing, scales: Dtype, dtype: Dtype) -> Option<Scheme>;

    /// Canonical tensors to tensors of the output. With `generic`, names and tensors are not touched, whatever the model is.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::AlreadyQuantized`], [`Error::Layout`].
    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement>;

    /// Tensors of one fusion group must share a scheme: its name, for a tensor of this name. By default each module is one
    /// of its own.
    fn fusion_group<'n>(&self, name: &'n Name) -> Cow<'n, str> {
        Cow::Borrowed(&name.module)
    }

    /// The name under which the part `kind` of the tensor called `tensor` is stored.
    fn part_name(&self, tensor: &str, kind: &str) -> String;

    /// What the runtime would refuse, known before any work: of modules that may be quantized (`scheme` kept), or as they
    /// are planned.
    fn refusals(&self, _modules: &[Module]) -> Vec<Refusal> {
        Vec::new()
    }

    /// The configuration and other files beside the weights, for the quantized `modules`.
    fn side_files(&self, source: Option<&Config>, modules: &[Module], generic: bool) -> Vec<SideFile>;

    /// The scheme of each module that a configuration describes, by its path; an empty path stands for all others.
    fn described(&self, config: &Config) -> Vec<(String, Scheme)>;

    /// What a model card says of it.
    fn card(&self) -> CardFacts;
}

/// What `format` stores for the tensor `name` of dimensions `shape`, whose rows are `matrix`, in `scheme`.
#[must_use]
pub(crate) fn stored_tensors(
    format: &dyn Format,
    (name, shape): (&str, &[u64]),
    matrix: Matrix,
    scheme: Scheme,
) -> Vec<StoredTensor> {
    let above = shape.split_last().map_or(&[][..], |(_, above)| above);
    let stored = |part: crate::codec::PartSpec| {
        let shape = match &part.extent {
            Extent::PerRow(width) => above.iter().copied().chain([*width]).collect(),
            Extent::Fixed(shape) => shape.clone(),
        };
        let (bytes, grows) = (part.bytes(matrix.rows), matches!(part.extent, Extent::PerRow(_)));
        StoredTensor { name: format.part_name(name, part.kind), dtype: part.dtype, shape, bytes, grows }
    };
    scheme.parts(matrix).into_iter().map(stored).collect()
}

/// The formats there are.
const FORMATS: &[&dyn Format] = &[
    &mlx::Mlx,
    #[cfg(test)]
    &crate::tests::toy::format::ToyFormat,
];

/// The format called `name`.
///
/// # Errors
/// [`Error::Option`].
pub(crate) fn by_name(name: &str) -> Result<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name).ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
        Error::option(OptionName::Format, name, format!("not one of: {}", known.join(", ")))
    })
}
