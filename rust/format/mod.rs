//! Output formats: the requirements of one runtime. Names, order, refusals and files next to the weights, but no weight
//! bytes.
//!
//! To add a format, add a folder here and a line to [`FORMATS`]. A format chooses the [container](crate::container) of
//! the tensors and the [schemes](crate::codec) that a tensor may have.

mod arrange;
mod compressed_tensors;
pub(crate) mod encoded;
mod foreign;
mod gguf;
pub(crate) mod mlx;
pub(crate) mod readable;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::arch::contract::unneeded;
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config, Matrix, Tensor, View};
use crate::codec::{Extent, PartSpec, Scheme};
use crate::container::{Container, HeadSize, Metadata, StoredTensor};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::option::OptionName;

pub use foreign::ForeignLayout;

/// The disposition of a source tensor in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Written: the views of the targets cover it.
    Write,
    /// Not written: this other tensor has the same data.
    Tied(String),
    /// Not written, for this reason.
    Drop(&'static str),
}

/// A tensor of the output, before its scheme is chosen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub name: String,
    /// Element type if the tensor is not quantized.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The source views of its matrices, in row order.
    pub views: Vec<View>,
    /// Whether 1 is added to each element: the runtime expects `1 + w` of a norm that the source stores as `w`.
    pub plus_one: bool,
    /// Whether it is a stack of matrices, as opposed to another tensor of three dimensions.
    pub stacked: bool,
    /// The reason why the runtime cannot read it quantized, if it cannot.
    pub unquantizable: Option<&'static str>,
    /// Its elements, if they are computed from the configuration. It has no views then, and is F32.
    pub computed: Option<Arc<[f32]>>,
}

impl Target {
    /// An unchanged copy of tensor `index`.
    #[must_use]
    pub(crate) fn same(checkpoint: &Checkpoint, index: usize) -> Self {
        let tensor = &checkpoint.tensors[index];
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            views: vec![View::whole(index, tensor)],
            plus_one: false,
            stacked: false,
            unquantizable: None,
            computed: None,
        }
    }

    /// A vector of these `values`, which no source tensor holds.
    #[must_use]
    pub(crate) fn of_values(name: &str, values: Vec<f32>) -> Self {
        Self {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![values.len() as u64],
            views: Vec::new(),
            plus_one: false,
            stacked: false,
            unquantizable: None,
            computed: Some(values.into()),
        }
    }

    /// The source tensor that the target copies byte for byte, if it is a copy.
    #[must_use]
    pub(crate) fn copies(&self, checkpoint: &Checkpoint) -> Option<usize> {
        let [view] = self.views.as_slice() else { return None };
        let tensor = &checkpoint.tensors[view.tensor];
        let is_plain = tensor.packing == Packing::Plain && tensor.dtype == self.dtype;
        let same = view.is_whole(tensor) && is_plain && !self.plus_one;
        same.then_some(view.tensor)
    }

    /// Rows of all its views.
    #[must_use]
    pub(crate) fn rows(&self) -> u64 {
        self.views.iter().map(|view| view.rows).sum()
    }

    /// The prequantized form in which `format` passes the whole target through, if it does.
    #[must_use]
    pub(crate) fn packed(&self, checkpoint: &Checkpoint, format: &dyn Format) -> Option<Scheme> {
        let (name, float, rows) = (Name::parse(&self.name), Float::of(self.dtype)?, self.rows());
        let of = |view: &View| {
            let packing = &checkpoint.tensors[view.tensor].packing;
            let scales = packing.scales().map(|part| checkpoint.parts[part].dtype)?;
            let matrix = Matrix { rows, cols: view.cols, float };
            let source = PackedSource { name: &name, packing, scales, matrix };
            format.passes(&source).filter(|_| view.col_stride == 1)
        };
        let mut forms = self.views.iter().map(of);
        let first = forms.next()??;
        let fits = self.views.iter().all(|view| first.fits(view.cols));
        (fits && !self.plus_one && forms.all(|form| form == Some(first))).then_some(first)
    }
}

/// A matrix in a prequantized form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedSource<'a> {
    /// Name of the output tensor.
    pub name: &'a Name,
    pub packing: &'a Packing,
    /// Element type of the scales.
    pub scales: Dtype,
    /// All rows of the output tensor, in the element type that it has if it is kept.
    pub matrix: Matrix,
}

/// The mapping of a checkpoint to a format.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrangement {
    /// The tensors of the output, in the order in which the source first contributes to them.
    pub targets: Vec<Target>,
    /// The disposition of each source tensor, in checkpoint order.
    pub dispositions: Vec<Disposition>,
}

impl Arrangement {
    /// Keeps every tensor unchanged under its own name, except for those that no language model needs.
    #[must_use]
    pub(crate) fn untouched(checkpoint: &Checkpoint) -> Self {
        let disposition = |tensor: &Tensor| unneeded(&tensor.name).map_or(Disposition::Write, Disposition::Drop);
        let dispositions: Vec<Disposition> = checkpoint.tensors.iter().map(disposition).collect();
        let written = (0..dispositions.len()).filter(|&at| dispositions[at] == Disposition::Write);
        Self { targets: written.map(|at| Target::same(checkpoint, at)).collect(), dispositions }
    }
}

/// The element type of a stored tensor, and the number of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SchemeUse {
    pub dtype: Dtype,
    pub elements: u64,
}

/// A quantizable module of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// The tensor's name without `.weight`.
    pub path: String,
    /// Its scheme, which may be kept.
    pub scheme: Scheme,
    /// The prequantized form in which it is kept, if it is not kept as plain numbers.
    pub packed: Option<Scheme>,
}

impl Module {
    /// The scheme of the stored bytes; `None` for plain numbers.
    #[must_use]
    pub(crate) fn stored_in(&self) -> Option<Scheme> {
        if self.scheme.is_kept() { self.packed } else { Some(self.scheme) }
    }
}

/// What the files next to the weights describe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputModel<'a> {
    /// The source's configuration, if it has one.
    pub source: Option<&'a Config>,
    /// The modules that can be quantized.
    pub modules: &'a [Module],
    /// The paths of the other modules with a matrix as weight.
    pub unquantizable: &'a [String],
    /// Whether source names are kept without a model-specific layout.
    pub generic: bool,
}

/// The format's texts for a model card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardFacts {
    /// `library_name` of the front matter.
    pub library: &'static str,
    /// Tags of the front matter.
    pub tags: &'static [&'static str],
    /// A sentence on the spelling of schemes.
    pub schemes: &'static str,
    /// Instructions to run the output, if a runtime supports its layout.
    pub usage: &'static str,
    /// A description of the output, if no runtime supports its layout.
    pub generic: &'static str,
}

/// Keys of `config.json` that the runtime's code for a model reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadKeys {
    /// Keys without which it does not load the model.
    pub required: BTreeSet<String>,
    /// Keys that it has a default for.
    pub optional: BTreeSet<String>,
}

/// A file next to the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideFile {
    pub name: &'static str,
    pub text: String,
}

/// What a configuration says of a module, by its path: its scheme, or nothing.
pub(crate) type Described<'c> = Box<dyn Fn(&str) -> Option<Scheme> + 'c>;

/// The reason why a runtime would not load an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The affected tensor or module.
    pub tensor: String,
    /// The violated rule, and the remedy.
    pub reason: String,
}

/// An output format, for one of the runtimes that read it.
pub(crate) trait Format: Send + Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// The names of the runtimes that read the format, the default first; empty if there is only one.
    fn targets(&self) -> &'static [&'static str] {
        &[]
    }

    /// The runtime that this output is for, one of [`targets`](Self::targets).
    fn target(&self) -> Option<&'static str> {
        None
    }

    /// Number of devices that the runtime divides each layer among.
    fn tensor_parallel(&self) -> u64 {
        1
    }

    /// Weights in a group of a uniform scheme, if the user does not say.
    fn default_group(&self) -> u16;

    /// The container of the weights.
    fn container(&self) -> &'static dyn Container;

    /// What the weight files state besides their tensors, for an output whose tensors are stored as `uses` say.
    fn metadata(&self, uses: &[SchemeUse]) -> Metadata<'_>;

    /// Whether a file of weights holds everything that the runtime reads, so that an output may be such a file.
    fn is_one_file(&self) -> bool {
        false
    }

    /// The size of the key-values that the output states; `None` if the format has none.
    fn head(&self) -> Option<HeadSize> {
        None
    }

    /// The format for an output of `checkpoint`, if that states what is in the source.
    ///
    /// # Errors
    /// [`Error::MissingOption`] if the source does not say enough, and those of reading it.
    fn of_source(&self, _checkpoint: &Checkpoint) -> Result<Option<Arc<dyn Format>>> {
        Ok(None)
    }

    /// All schemes of the format, by increasing bytes. [`candidates`](Self::candidates) returns those of a tensor.
    fn schemes(&self) -> &[Scheme];

    /// The schemes available to the tensor `name` with rows `matrix`, by increasing bytes.
    fn candidates(&self, _name: &Name, matrix: Matrix) -> Vec<Scheme> {
        self.schemes().iter().copied().filter(|scheme| scheme.fits(matrix.cols)).collect()
    }

    /// The reason why a tensor has no [candidates](Self::candidates), if it is not the length of its rows.
    fn no_candidates(&self, _name: &Name, _matrix: Matrix) -> Option<String> {
        None
    }

    /// Whether the runtime reads the tensor unquantized if others are quantized.
    fn may_keep(&self, _name: &Name) -> bool {
        true
    }

    /// The scheme in which the format passes `source` through; `None` if it must be decoded.
    fn passes(&self, source: &PackedSource<'_>) -> Option<Scheme>;

    /// What the runtime computes otherwise than `checkpoint`, in sentences for the user.
    fn notes(&self, _checkpoint: &Checkpoint) -> Vec<String> {
        Vec::new()
    }

    /// Maps canonical tensors to output tensors. With `generic`, keeps names and tensors unchanged for any model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::AlreadyQuantized`], [`Error::Layout`].
    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement>;

    /// The fusion group of a tensor: tensors of one group share a scheme. By default each module is its own group.
    fn fusion_group<'n>(&self, name: &'n Name) -> Cow<'n, str> {
        Cow::Borrowed(&name.module)
    }

    /// The name under which part `kind` of tensor `tensor` in `scheme` is stored.
    fn part_name(&self, scheme: Scheme, tensor: &str, kind: &str) -> String;

    /// The part in the element type under which the runtime reads its bytes. By default that is the codec's.
    fn stored_as(&self, _scheme: Scheme, part: PartSpec) -> PartSpec {
        part
    }

    /// The modules that the runtime would refuse, known before any work. The modules are either candidates (`scheme` is
    /// kept) or planned.
    fn refusals(&self, _modules: &[Module]) -> Vec<Refusal> {
        Vec::new()
    }

    /// The configuration and other files next to the weights.
    fn side_files(&self, output: &OutputModel<'_>) -> Vec<SideFile>;

    /// Adds to `config` what the runtime reads there and `config` has elsewhere. `read` names keys that are not known here.
    fn complete_config(&self, _config: &mut Config, _read: &ReadKeys) {}

    /// Looks up what a configuration says of a module, by its path; [`Scheme::KEPT`] if it is not quantized.
    fn described<'c>(&self, config: &'c Config) -> Described<'c>;

    fn card(&self) -> CardFacts;
}

/// The stored tensors of tensor `name` with dimensions `shape` and rows `matrix` in `scheme`.
#[must_use]
pub(crate) fn stored_tensors(
    format: &dyn Format,
    (name, shape): (&str, &[u64]),
    matrix: Matrix,
    scheme: Scheme,
) -> Vec<StoredTensor> {
    let above = shape.split_last().map_or(&[][..], |(_, above)| above);
    let stored = |part: PartSpec| {
        let part = format.stored_as(scheme, part);
        let shape = match &part.extent {
            Extent::PerRow(width) => above.iter().copied().chain([*width]).collect(),
            Extent::Fixed(shape) => shape.clone(),
        };
        let (bytes, grows) = (part.bytes(matrix.rows), matches!(part.extent, Extent::PerRow(_)));
        StoredTensor { name: format.part_name(scheme, name, part.kind), dtype: part.dtype, shape, bytes, grows }
    };
    scheme.parts(matrix).into_iter().map(stored).collect()
}

/// A runtime that reads an output, and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// Its name; `None` for the format's default.
    pub target: Option<String>,
    /// Number of devices that each layer is divided among.
    pub tensor_parallel: u64,
    /// A file whose key-values the output states, if the source does not have them.
    pub header: Option<PathBuf>,
    /// The size of these key-values, from a document.
    pub head: Option<HeadSize>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { target: None, tensor_parallel: 1, header: None, head: None }
    }
}

impl Runtime {
    /// The format, if this is the only runtime that reads it.
    ///
    /// # Errors
    /// [`Error::Option`] if a target or tensor parallelism is asked for.
    pub(crate) fn the_only_one_of(&self, format: impl Format + 'static) -> Result<Arc<dyn Format>> {
        if let Some(target) = &self.target {
            let reason = format!("the format {} has one runtime only: leave the target out", format.name());
            return Err(Error::option(OptionName::Target, target, reason));
        }
        if self.tensor_parallel > 1 {
            let reason = format!("no runtime of the format {} divides layers among devices", format.name());
            return Err(Error::option(OptionName::TensorParallel, self.tensor_parallel, reason));
        }
        self.has_no_header(&format)?;
        Ok(Arc::new(format))
    }
}

impl Runtime {
    /// Checks that no header is given.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(crate) fn has_no_header(&self, format: &dyn Format) -> Result<()> {
        match &self.header {
            Some(path) => {
                let reason = format!("the format {} has no header of key-values", format.name());
                Err(Error::option(OptionName::Header, path.display(), reason))
            }
            None => Ok(()),
        }
    }
}

/// Makes a format for a runtime.
type OpenFormat = fn(&Runtime) -> Result<Arc<dyn Format>>;

/// The registry of formats.
const FORMATS: &[OpenFormat] = &[
    mlx::open,
    compressed_tensors::open,
    gguf::open,
    #[cfg(test)]
    crate::tests::toy::format::open,
];

/// The format called `name`, for `runtime`.
///
/// # Errors
/// [`Error::Option`] for an unknown format or runtime.
pub(crate) fn open(name: &str, runtime: &Runtime) -> Result<Arc<dyn Format>> {
    let defaults = FORMATS.iter().map(|open| Ok((open, open(&Runtime::default())?)));
    let defaults: Vec<(&OpenFormat, Arc<dyn Format>)> = defaults.collect::<Result<_>>()?;
    if let Some((open, _)) = defaults.iter().find(|(_, format)| format.name() == name) {
        return open(runtime);
    }
    let known: Vec<_> = defaults.iter().map(|(_, format)| format.name()).collect();
    Err(Error::option(OptionName::Format, name, format!("not one of: {}", known.join(", "))))
}

/// What a front must know of an output format.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FormatFacts {
    /// Its name.
    pub name: &'static str,
    /// The runtimes that read it, the default first; empty if there is only one.
    pub targets: Vec<&'static str>,
    /// Weights in a group of a uniform scheme, if the user does not say.
    pub group_size: u16,
}

/// The formats that a user can choose.
pub(crate) fn facts() -> Vec<FormatFacts> {
    let formats = FORMATS.iter().filter_map(|open| open(&Runtime::default()).ok());
    let facts = formats.map(|format| FormatFacts {
        name: format.name(),
        targets: format.targets().to_vec(),
        group_size: format.default_group(),
    });
    facts.collect()
}
