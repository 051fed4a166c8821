//! Errors: what is wrong, where, and what to do about it.
//!
//! An error names the file, the tensor or the option that it concerns. It has a [slug](Error::slug), which does not change
//! between releases, and often a [hint](Error::hint) that says what to do. Messages and hints name options by
//! [marks](OptionName).

use std::io;
use std::path::{Path, PathBuf};

use crate::option::OptionName;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A fault of one tensor's entry in a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The name occurs twice.
    #[error("listed twice in one header")]
    Twice,
    /// The format has no such element type.
    #[error("unknown dtype `{0}`")]
    UnknownDtype(String),
    /// The entry is not `{dtype, shape, data_offsets}`.
    #[error("not a tensor entry: {0}")]
    Malformed(String),
    /// The number of elements overflows, or the elements do not fill whole bytes.
    #[error("shape {shape:?} of {dtype} has no size in bytes")]
    NoSize {
        /// The entry's shape.
        shape: Vec<u64>,
        /// The entry's element type.
        dtype: &'static str,
    },
    /// The length between the offsets differs from that of shape and element type.
    #[error("data_offsets span {span} bytes, but shape {shape:?} of {dtype} takes {needed}")]
    Length {
        /// Bytes between the offsets.
        span: u64,
        /// The entry's shape.
        shape: Vec<u64>,
        /// The entry's element type.
        dtype: &'static str,
        /// Bytes that shape and element type need.
        needed: u64,
    },
    /// GGUF: the rows do not consist of whole blocks.
    #[error("rows of {row} elements are not whole blocks of {dtype}, which are of {block}")]
    Rows {
        /// Elements of a row.
        row: u64,
        /// The entry's element type.
        dtype: &'static str,
        /// Elements of a block.
        block: u64,
    },
    /// GGUF: the offset is not a multiple of the alignment.
    #[error("starts at byte {offset} of the data section, which is not a multiple of the alignment, {alignment}")]
    Misaligned {
        /// Offset in the data section.
        offset: u64,
        /// The file's alignment, in bytes.
        alignment: u64,
    },
    /// `data_offsets` run backwards.
    #[error("data_offsets [{begin}, {end}] run backwards")]
    Backwards {
        /// First offset.
        begin: u64,
        /// Second offset.
        end: u64,
    },
    /// The data lie beyond the end of the file.
    #[error("data end at byte {end} of the data section, which is {available} bytes long")]
    BeyondEnd {
        /// End offset of the entry.
        end: u64,
        /// Bytes after the header of the file.
        available: u64,
    },
    /// Some bytes belong to another tensor, too.
    #[error("overlaps `{with}`")]
    Overlap {
        /// The other tensor.
        with: String,
    },
    /// The bytes before the tensor belong to no tensor.
    #[error("starts {bytes} bytes after the end of the tensor before it")]
    Gap {
        /// Length of the gap.
        bytes: u64,
    },
}

/// A fault of a file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// The file is shorter than what every file of its format begins with.
    #[error("{bytes} bytes long, too short to be a {format} file")]
    TooShort {
        /// Length of the file.
        bytes: u64,
        /// The format.
        format: &'static str,
    },
    /// The header is longer than the file, or than the format allows.
    #[error("claims a header of {claimed} bytes, but at most {limit} are possible here")]
    HeaderLength {
        /// The length in the first 8 bytes.
        claimed: u64,
        /// The largest possible length.
        limit: u64,
    },
    /// GGUF: the header ends before all that it announces.
    #[error("the header is cut off: {what} needs {needed} bytes, and {left} are left in the file")]
    HeaderCut {
        /// What does not fit.
        what: String,
        /// Bytes that it needs, at least.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// GGUF: the file does not begin with the letters of the format.
    #[error("is not a GGUF file: it starts with `{0}`")]
    NotGguf(String),
    /// GGUF: a version that is not read.
    #[error("is a GGUF file of version {0}; ramrs reads versions 2 and 3")]
    Version(u32),
    /// GGUF: numbers are stored with the most significant byte first.
    #[error("is a big-endian GGUF file; ramrs reads little-endian ones")]
    BigEndian,
    /// GGUF: a key-value is faulty.
    #[error("key-value `{key}`: {reason}")]
    KeyValue {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// GGUF: the files of a split model do not belong together.
    #[error("is not a file of this split model: {0}")]
    Split(String),
    /// GGUF: a file of a split model does not exist.
    #[error("is one of {count} files, and `{file}` is missing")]
    MissingSplit {
        /// Number of files.
        count: u64,
        /// Name of the missing file.
        file: String,
    },
    /// The header is not a JSON object of strings and entries.
    #[error("the header is not valid: {0}")]
    Header(String),
    /// There is data after the last tensor.
    #[error("{0} bytes after the end of the last tensor")]
    Trailing(u64),
    /// The file looks like a pickle.
    #[error("is a pickle, which runs code when it is loaded; ramrs reads safetensors only")]
    Pickle,
    /// The file is of another format.
    #[error("is a {0} file; ramrs reads safetensors")]
    OtherFormat(&'static str),
    /// The index is not JSON with a `weight_map` of strings.
    #[error("not a checkpoint index: {0}")]
    Index(String),
    /// `config.json` is not a JSON object.
    #[error("not a model configuration: {0}")]
    Config(String),
    /// The name would leave the checkpoint's directory.
    #[error("names the shard `{0}`, which is not a plain file name")]
    Escapes(String),
    /// A symbolic link leads out of the checkpoint.
    #[error("is a symbolic link that leaves the checkpoint, to {}", .0.display())]
    LinkOut(PathBuf),
    /// The index lists a shard that does not exist.
    #[error("lists the shard `{shard}` ({tensors} tensors), which is missing")]
    MissingShard {
        /// The shard's file name.
        shard: String,
        /// Number of tensors that the index expects in it.
        tensors: usize,
    },
    /// The index and a shard disagree about a tensor.
    #[error("says that tensor `{tensor}` is in `{expected}`, but {found}")]
    Disagrees {
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        expected: String,
        /// What the shards hold.
        found: String,
    },
    /// The file changed while it was read.
    #[error("changed while it was read: {0}")]
    Changed(String),
    /// A saved analysis, plan, sensitivity or manifest does not parse.
    #[error("not {} {what}: {reason}", if what.starts_with('a') { "an" } else { "a" })]
    Document {
        /// The expected kind of document.
        what: &'static str,
        /// The fault.
        reason: String,
    },
}

/// Any error of ramrs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The value of an option is invalid.
    #[error("{option} `{value}`: {reason}")]
    Option {
        /// The option.
        option: OptionName,
        /// The value given.
        value: String,
        /// Why it is invalid.
        reason: String,
    },
    /// A request does not parse: a field has a wrong type or is out of range, or a path is not UTF-8.
    #[error("invalid option: {0}")]
    Request(String),
    /// A required option is missing.
    #[error("{option} is missing: {what}")]
    MissingOption {
        /// The option.
        option: OptionName,
        /// What the option must state.
        what: &'static str,
    },
    /// The path holds no checkpoint.
    #[error("{}: {reason}", path.display())]
    NoCheckpoint {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file is faulty.
    #[error("{}: {fault}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The fault.
        fault: FileFault,
    },
    /// An entry of a header is faulty.
    #[error("{}: tensor `{tensor}`: {fault}", file.display())]
    Entry {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The fault.
        fault: EntryFault,
    },
    /// Two shards hold tensors of the same name.
    #[error("tensor `{tensor}` is in both {} and {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The first shard that holds it.
        first: PathBuf,
        /// The second shard that holds it.
        second: PathBuf,
    },
    /// Some weights are non-finite.
    #[error("tensor `{tensor}` in {}: {count} non-finite {} among rows {}..{}, first at {first:?}", file.display(),
        if *count == 1 { "value" } else { "values" }, rows.0, rows.1)]
    NonFinite {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Number of non-finite values in `rows`.
        count: usize,
        /// First row, and end, of the rows that were checked together.
        rows: (u64, u64),
        /// Index of the first such value.
        first: Vec<u64>,
    },
    /// The squares of some weights overflow.
    #[error("tensor `{tensor}` in {}: |w| = {magnitude:e} at row {row} is too large to be a weight", file.display())]
    TooLarge {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The largest magnitude.
        magnitude: f32,
        /// The row that holds it.
        row: u64,
    },
    /// The output format has no layout for this model.
    #[error("model_type `{model_type}` has no {format} layout in this version of ramrs{}", because(*.reason))]
    UnknownModel {
        /// `model_type` of the configuration.
        model_type: String,
        /// The output format.
        format: &'static str,
        /// The reason, if it is not that the model type is unknown.
        reason: Option<&'static str>,
    },
    /// The probe cannot run this model.
    #[error("the probe cannot run model_type `{model_type}`: {reason}")]
    Unrunnable {
        /// `model_type` of the configuration.
        model_type: String,
        /// Why not.
        reason: String,
    },
    /// A model that is to be run cannot be.
    #[error("{}: model_type `{model_type}` cannot be run: {reason}", path.display())]
    CannotRun {
        /// Directory of the checkpoint.
        path: PathBuf,
        /// `model_type` of the configuration.
        model_type: String,
        /// Why not.
        reason: String,
    },
    /// Two models that cannot be compared.
    #[error("{}: {reason}", path.display())]
    OtherModel {
        /// Directory of the output.
        path: PathBuf,
        /// In what it differs from the reference.
        reason: String,
    },
    /// The checkpoint is already quantized.
    #[error("{}: the checkpoint is quantized already ({method})", config.display())]
    AlreadyQuantized {
        /// Path of its configuration.
        config: PathBuf,
        /// The method that the configuration names.
        method: String,
    },
    /// The tensors of one weight or module do not fit together.
    #[error("tensor `{tensor}` in {}: {reason}", file.display())]
    Layout {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// The runtime computes something else than the configuration says, and the output cannot tell it.
    #[error("{}: {reason}", config.display())]
    Inexpressible {
        /// The configuration.
        config: PathBuf,
        /// What differs.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The checkpoint is not a model of the type that its configuration names.
    #[error("tensor `{tensor}` ({}): {reason}", file.display())]
    Mismatch {
        /// The shard, or the configuration if the tensor is missing.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What differs.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// With the option `strict`: the name of a tensor is not recognised.
    #[error("tensor `{tensor}` in {}: {reason} (all such tensors: {listed})", file.display())]
    UnrecognisedTensor {
        /// The shard.
        file: PathBuf,
        /// The first such tensor.
        tensor: String,
        /// Why it is not recognised.
        reason: String,
        /// The names of all such tensors, or of the first few.
        listed: String,
    },
    /// The sensitivity file does not fit the checkpoint.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Sensitivity {
        /// The sensitivity file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// A saved analysis or plan does not match the checkpoint, the options, or this version.
    #[error("{place}: {reason}")]
    Stale {
        /// The document.
        place: DocumentSource,
        /// What differs.
        reason: String,
    },
    /// An analysis or plan inside a request does not parse.
    #[error("the given {what} is not valid: {reason}")]
    Document {
        /// The expected kind of document.
        what: &'static str,
        /// The fault.
        reason: String,
    },
    /// A tensor cannot have the scheme that a plan gives it.
    #[error("tensor `{tensor}`: {reason}")]
    Scheme {
        /// The tensor.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// Every plan exceeds the budget.
    #[error("the budget of {budget} is below the smallest possible size, {minimum}: {sets_it}")]
    BudgetTooSmall {
        /// The budget, with its unit.
        budget: String,
        /// The smallest possible size, in the same unit.
        minimum: String,
        /// What prevents a smaller size.
        sets_it: String,
    },
    /// The output to be overwritten was not written by ramrs.
    #[error("{} is not an output of ramrs", path.display())]
    NotOurs {
        /// The output.
        path: PathBuf,
    },
    /// The partial output exists already: another run holds its lock, or it was not written by ramrs.
    #[error("{} is there: another run is writing it, or it is not ramrs' own", path.display())]
    Locked {
        /// The partial output.
        path: PathBuf,
    },
    /// The partial output is that of another job.
    #[error("{} is the unfinished output of another job: {difference}", path.display())]
    OtherJob {
        /// The partial output.
        path: PathBuf,
        /// In what the jobs differ.
        difference: String,
    },
    /// The parts of a job do not make an output.
    #[error("{}: {reason}", path.display())]
    Parts {
        /// The partial output.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The output exists already.
    #[error("{} exists already", path.display())]
    OutputExists {
        /// The output directory.
        path: PathBuf,
    },
    /// The output would overwrite the source.
    #[error("the output {} is the source, or lies inside it", path.display())]
    OutputIsSource {
        /// The output directory.
        path: PathBuf,
    },
    /// The file system has no room for the plan.
    #[error("{}: the plan takes {needed} bytes, and the file system has {available} left", path.display())]
    DiskFull {
        /// The output directory.
        path: PathBuf,
        /// Bytes that the plan needs.
        needed: u64,
        /// Free bytes of the file system.
        available: u64,
    },
    /// A file of the output differs from its manifest.
    #[error("{}{}: {reason}", file.display(), tensor.as_ref().map(|t| format!(": tensor `{t}`")).unwrap_or_default())]
    Verify {
        /// The file.
        file: PathBuf,
        /// The tensor, if only one differs.
        tensor: Option<String>,
        /// What differs.
        reason: String,
    },
    /// An output has the right digests and computes something else than its source.
    #[error("{}: the output is not the model: {reason}", file.display())]
    WrongModel {
        /// The output directory.
        file: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// A call of the operating system failed.
    #[error("{action} {}: {}", path.display(), os_message(source))]
    Io {
        /// What was attempted, as a participle: `reading`, `writing`, ….
        action: &'static str,
        /// The path that it concerns.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The caller cancelled the job.
    #[error("interrupted")]
    Interrupted,
    /// An internal invariant is violated.
    #[error("internal error: {0}")]
    Bug(String),
}

/// The origin of a saved document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentSource {
    /// A file.
    File(PathBuf),
    /// The request itself, with the kind of document: `analysis`, `plan`.
    Given(&'static str),
}

impl std::fmt::Display for DocumentSource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            Self::Given(what) => write!(out, "the given {what}"),
        }
    }
}

/// The kind of an error. It decides the exit code of the command line and the exception in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is invalid.
    Config,
    /// The checkpoint is damaged or not supported.
    Checkpoint,
    /// A tensor cannot be processed.
    Tensor,
    /// The budget cannot be met.
    Budget,
    /// Verification found a difference.
    Verify,
    /// A call of the operating system failed.
    Io,
    /// The caller cancelled the job.
    Interrupted,
    /// A bug in ramrs.
    Bug,
}

/// The message of a system error, without its number.
pub(crate) fn os_message(source: &io::Error) -> String {
    let text = source.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

/// `reason` as the end of a sentence.
fn because(reason: Option<&'static str>) -> String {
    reason.map_or(String::new(), |reason| format!(": {reason}"))
}

impl Error {
    /// Makes an [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Makes an [`Error::File`].
    #[must_use]
    pub fn file(file: &Path, fault: FileFault) -> Self {
        Self::File { file: file.to_owned(), fault }
    }

    /// Makes an [`Error::Option`].
    #[expect(clippy::needless_pass_by_value, reason = "callers pass temporaries: numbers, texts, displayed paths")]
    pub fn option(option: OptionName, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Option { option, value: value.to_string(), reason: reason.into() }
    }

    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Option { .. }
            | Self::MissingOption { .. }
            | Self::Request(_)
            | Self::NotOurs { .. }
            | Self::Locked { .. }
            | Self::OtherJob { .. }
            | Self::Parts { .. }
            | Self::OutputExists { .. }
            | Self::OutputIsSource { .. }
            | Self::Document { .. }
            | Self::Stale { .. } => Kind::Config,
            Self::NoCheckpoint { .. }
            | Self::File { .. }
            | Self::Entry { .. }
            | Self::DuplicateTensor { .. }
            | Self::UnknownModel { .. }
            | Self::Unrunnable { .. }
            | Self::CannotRun { .. }
            | Self::OtherModel { .. }
            | Self::AlreadyQuantized { .. }
            | Self::Layout { .. }
            | Self::Inexpressible { .. }
            | Self::Mismatch { .. }
            | Self::UnrecognisedTensor { .. } => Kind::Checkpoint,
            Self::NonFinite { .. } | Self::TooLarge { .. } | Self::Sensitivity { .. } | Self::Scheme { .. } => {
                Kind::Tensor
            }
            Self::BudgetTooSmall { .. } => Kind::Budget,
            Self::Verify { .. } | Self::WrongModel { .. } => Kind::Verify,
            Self::DiskFull { .. } | Self::Io { .. } => Kind::Io,
            Self::Interrupted => Kind::Interrupted,
            Self::Bug(_) => Kind::Bug,
        }
    }

    /// A name of the error that does not change between releases.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Option { .. } => "bad-option",
            Self::Request(_) => "bad-request",
            Self::MissingOption { .. } => "missing-option",
            Self::NotOurs { .. } => "output-foreign",
            Self::Locked { .. } => "output-busy",
            Self::OtherJob { .. } => "other-job",
            Self::Parts { .. } => "missing-parts",
            Self::NoCheckpoint { .. } => "no-checkpoint",
            Self::File { fault, .. } => match fault {
                FileFault::TooShort { .. } => "file-too-short",
                FileFault::HeaderCut { .. } => "header-cut",
                FileFault::Version(_) => "header-version",
                FileFault::BigEndian => "big-endian",
                FileFault::KeyValue { .. } => "bad-key-value",
                FileFault::Split(_) => "bad-split",
                FileFault::HeaderLength { .. } => "header-length",
                FileFault::Header(_) => "header-syntax",
                FileFault::Trailing(_) => "trailing-bytes",
                FileFault::Pickle => "pickle",
                FileFault::OtherFormat(_) | FileFault::NotGguf(_) => "other-format",
                FileFault::Index(_) => "index-syntax",
                FileFault::Config(_) => "config-syntax",
                FileFault::Escapes(_) => "shard-escapes",
                FileFault::LinkOut(_) => "link-escapes",
                FileFault::MissingShard { .. } | FileFault::MissingSplit { .. } => "missing-shard",
                FileFault::Disagrees { .. } => "index-disagrees",
                FileFault::Changed(_) => "source-changed",
                FileFault::Document { .. } => "bad-document",
            },
            Self::Entry { fault, .. } => match fault {
                EntryFault::Twice => "duplicate-entry",
                EntryFault::UnknownDtype(_) => "unknown-dtype",
                EntryFault::Malformed(_) => "bad-entry",
                EntryFault::NoSize { .. } => "entry-size",
                EntryFault::Length { .. } => "entry-length",
                EntryFault::Rows { .. } => "entry-rows",
                EntryFault::Misaligned { .. } => "entry-misaligned",
                EntryFault::Backwards { .. } => "entry-backwards",
                EntryFault::BeyondEnd { .. } => "entry-beyond-end",
                EntryFault::Overlap { .. } => "entry-overlap",
                EntryFault::Gap { .. } => "entry-gap",
            },
            Self::DuplicateTensor { .. } => "duplicate-tensor",
            Self::NonFinite { .. } => "non-finite",
            Self::TooLarge { .. } => "too-large",
            Self::UnknownModel { .. } => "unknown-model",
            Self::Unrunnable { .. } | Self::CannotRun { .. } => "unrunnable",
            Self::OtherModel { .. } => "other-model",
            Self::AlreadyQuantized { .. } => "already-quantized",
            Self::Layout { .. } => "bad-layout",
            Self::Inexpressible { .. } => "inexpressible",
            Self::Mismatch { .. } => "wrong-tensors",
            Self::UnrecognisedTensor { .. } => "unexplained",
            Self::Sensitivity { .. } => "sensitivity-mismatch",
            Self::Stale { .. } => "stale-document",
            Self::Document { .. } => "bad-document",
            Self::Scheme { .. } => "bad-scheme",
            Self::BudgetTooSmall { .. } => "budget-too-small",
            Self::OutputExists { .. } => "output-exists",
            Self::OutputIsSource { .. } => "output-is-source",
            Self::DiskFull { .. } => "disk-full",
            Self::Verify { .. } => "verify",
            Self::WrongModel { .. } => "wrong-model",
            Self::Io { .. } => "io",
            Self::Interrupted => "interrupted",
            Self::Bug(_) => "bug",
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoCheckpoint { hint, .. } | Self::Inexpressible { hint, .. } => Some(hint),
            Self::Mismatch { hint, .. } => Some(hint),
            Self::File { fault, .. } => match fault {
                FileFault::TooShort { .. } | FileFault::MissingShard { .. } => {
                    Some("the download is incomplete: fetch the file again")
                }
                FileFault::MissingSplit { .. } => {
                    Some("fetch all files of the model into one folder, and keep their names")
                }
                FileFault::HeaderCut { .. } => {
                    Some("the file is truncated or damaged: fetch it again and compare its size and digest")
                }
                FileFault::Version(_) => Some("convert the model with a current llama.cpp"),
                FileFault::BigEndian => Some("convert it with `gguf-convert-endian` of the `gguf` package"),
                FileFault::Split(_) => {
                    Some("give the first file, NAME-00001-of-0000N.gguf, with the others next to it")
                }
                FileFault::Pickle => Some("convert it in a sandbox, with `safetensors.torch.save_file`"),
                FileFault::OtherFormat(_) => Some("give the original checkpoint in safetensors"),
                FileFault::Disagrees { .. } => Some(
                    "the index is of other files: fetch all files again, or remove the index if the shards are complete",
                ),
                FileFault::LinkOut(_) => Some("copy the file into the checkpoint's directory"),
                _ => None,
            },
            Self::Entry { fault: EntryFault::BeyondEnd { .. }, .. } => {
                Some("the file is truncated: fetch it again and compare its size and digest")
            }
            Self::NonFinite { .. } => Some(
                "the checkpoint is damaged: compare its digests with the publisher's; ramrs does not guess weights",
            ),
            // Of GGUF the reason says what to do.
            Self::UnknownModel { format, .. } => (*format != "GGUF")
                .then_some("⟨generic=true⟩ writes its tensors under their own names; no runtime is promised"),
            Self::Unrunnable { .. } => Some("⟨sensitivity=weights⟩ needs no forward pass"),
            Self::Layout { .. } => Some(
                "the checkpoint is incomplete or of a form that is not known: fetch it again, or give the release in BF16",
            ),
            Self::UnrecognisedTensor { .. } => {
                Some("`inspect` lists all tensors; without ⟨strict⟩ they are only warned about")
            }
            Self::AlreadyQuantized { .. } => Some("give the original checkpoint: quantizing twice loses twice"),
            Self::BudgetTooSmall { .. } => Some("raise the budget, or loosen what sets the minimum"),
            Self::OutputExists { .. } => Some("give another ⟨output⟩, or ⟨overwrite=true⟩ to replace it"),
            Self::NotOurs { .. } => Some(
                "⟨overwrite=true⟩ replaces outputs of ramrs and empty directories: remove it yourself, or give another ⟨output⟩",
            ),
            Self::Parts { .. } => Some("run the parts that are missing: ⟨plan⟩ and ⟨part⟩ as for the others"),
            Self::OtherJob { .. } => Some(
                "continue it with its own options, give another ⟨output⟩, or ⟨overwrite=true⟩ to delete it and start",
            ),
            Self::Locked { .. } => Some("wait for the other run, remove what is there, or give another ⟨output⟩"),
            Self::OutputIsSource { .. } => Some("give another ⟨output⟩"),
            Self::DiskFull { .. } => Some("free some space, or give an ⟨output⟩ on another file system"),
            Self::Stale { .. } => Some("analyze the checkpoint again"),
            Self::WrongModel { .. } => Some(
                "please report it, with the header and the config.json of the checkpoint; ⟨check=false⟩ writes it all the same",
            ),
            Self::Bug(_) => Some("please report it, with the command and the manifest or the header of the checkpoint"),
            _ => None,
        }
    }

    /// The file that the error concerns.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::NoCheckpoint { path, .. }
            | Self::CannotRun { path, .. }
            | Self::OtherModel { path, .. }
            | Self::OutputExists { path }
            | Self::OutputIsSource { path }
            | Self::NotOurs { path }
            | Self::Locked { path }
            | Self::OtherJob { path, .. }
            | Self::Parts { path, .. }
            | Self::DiskFull { path, .. }
            | Self::Io { path, .. } => Some(path),
            Self::File { file, .. }
            | Self::Entry { file, .. }
            | Self::NonFinite { file, .. }
            | Self::TooLarge { file, .. }
            | Self::Layout { file, .. }
            | Self::Mismatch { file, .. }
            | Self::UnrecognisedTensor { file, .. }
            | Self::Sensitivity { file, .. }
            | Self::Stale { place: DocumentSource::File(file), .. }
            | Self::Verify { file, .. }
            | Self::WrongModel { file, .. } => Some(file),
            Self::DuplicateTensor { second, .. } => Some(second),
            Self::AlreadyQuantized { config, .. } | Self::Inexpressible { config, .. } => Some(config),
            Self::Option { .. }
            | Self::MissingOption { .. }
            | Self::Request(_)
            | Self::Stale { place: DocumentSource::Given(_), .. }
            | Self::Document { .. }
            | Self::UnknownModel { .. }
            | Self::Unrunnable { .. }
            | Self::Scheme { .. }
            | Self::BudgetTooSmall { .. }
            | Self::Interrupted
            | Self::Bug(_) => None,
        }
    }

    /// The tensor that the error concerns.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::Entry { tensor, .. }
            | Self::DuplicateTensor { tensor, .. }
            | Self::NonFinite { tensor, .. }
            | Self::TooLarge { tensor, .. }
            | Self::Layout { tensor, .. }
            | Self::Mismatch { tensor, .. }
            | Self::UnrecognisedTensor { tensor, .. }
            | Self::Sensitivity { tensor, .. }
            | Self::Scheme { tensor, .. }
            | Self::File { fault: FileFault::Disagrees { tensor, .. }, .. } => Some(tensor),
            Self::Verify { tensor, .. } => tensor.as_deref(),
            _ => None,
        }
    }
}
