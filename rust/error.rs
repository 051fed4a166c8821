//! What can go wrong, where, and what to do about it.
//!
//! Every error names the file, the tensor or the option it is about, carries a [slug](Error::slug) that does not
//! change between releases, and where there is one a [hint](Error::hint) that says what to do. Messages and hints name
//! options by [marks](crate::option).

use std::io;
use std::path::{Path, PathBuf};

use crate::option::OptionName;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with one entry of a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The name occurs twice.
    #[error("listed twice in one header")]
    Twice,
    /// Not a type of the format.
    #[error("unknown dtype `{0}`")]
    UnknownDtype(String),
    /// The entry is not `{dtype, shape, data_offsets}`.
    #[error("not a tensor entry: {0}")]
    Malformed(String),
    /// More elements than can be counted, or elements that do not fill whole bytes.
    #[error("shape {shape:?} of {dtype} has no size in bytes")]
    NoSize {
        /// The entry's shape.
        shape: Vec<u64>,
        /// The entry's element type.
        dtype: &'static str,
    },
    /// The offsets span another length than the shape and dtype.
    #[error("data_offsets span {span} bytes, but shape {shape:?} of {dtype} takes {needed}")]
    Length {
        /// Bytes between the offsets.
        span: u64,
        /// The entry's shape.
        shape: Vec<u64>,
        /// The entry's element type.
        dtype: &'static str,
        /// Bytes that shape and dtype take.
        needed: u64,
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
        /// Bytes that the file has after its header.
        available: u64,
    },
    /// The bytes belong to another tensor, too.
    #[error("overlaps `{with}`")]
    Overlap {
        /// The other tensor.
        with: String,
    },
    /// There are bytes before it that belong to no tensor.
    #[error("starts {bytes} bytes after the end of the tensor before it")]
    Gap {
        /// Bytes in between.
        bytes: u64,
    },
}

/// What is wrong with a shard or an index as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// Shorter than the eight bytes of the header's length.
    #[error("{0} bytes long, too short to be a safetensors file")]
    TooShort(u64),
    /// The header is longer than the file, or than the format allows.
    #[error("claims a header of {claimed} bytes, but at most {limit} are possible here")]
    HeaderLength {
        /// What the first eight bytes say.
        claimed: u64,
        /// What is possible.
        limit: u64,
    },
    /// The header is not a JSON object of strings and entries.
    #[error("the header is not valid: {0}")]
    Header(String),
    /// There is data after the last tensor.
    #[error("{0} bytes after the end of the last tensor")]
    Trailing(u64),
    /// It looks like a pickle.
    #[error("is a pickle, which runs code when it is loaded; ramrs reads safetensors only")]
    Pickle,
    /// It is another format.
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
    /// A symbolic link out of the checkpoint.
    #[error("is a symbolic link that leaves the checkpoint, to {}", .0.display())]
    LinkOut(PathBuf),
    /// The index lists a shard that is not there.
    #[error("lists the shard `{shard}` ({tensors} tensors), which is missing")]
    MissingShard {
        /// The shard's file name.
        shard: String,
        /// How many tensors the index expects there.
        tensors: usize,
    },
    /// The index and a shard disagree about a tensor.
    #[error("says that tensor `{tensor}` is in `{expected}`, but {found}")]
    Disagrees {
        /// The tensor.
        tensor: String,
        /// Where the index says it is.
        expected: String,
        /// What the shards say.
        found: String,
    },
    /// It changed while it was read.
    #[error("changed while it was read: {0}")]
    Changed(String),
    /// A saved analysis, plan, sensitivity or manifest that does not read as one.
    #[error("not {} {what}: {reason}", if what.starts_with('a') { "an" } else { "a" })]
    Document {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
}

/// Anything that stops ramrs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option's value makes no sense.
    #[error("{option} `{value}`: {reason}")]
    Option {
        /// The option.
        option: OptionName,
        /// The value given.
        value: String,
        /// Why it cannot be.
        reason: String,
    },
    /// A request that does not parse: a field of a wrong type, out of range, or a path that is not text.
    #[error("invalid option: {0}")]
    Request(String),
    /// An option that there must be is not there.
    #[error("{option} is missing: {what}")]
    MissingOption {
        /// The option.
        option: OptionName,
        /// What it should say.
        what: &'static str,
    },
    /// The path holds no checkpoint.
    #[error("{}: {reason}", path.display())]
    NoCheckpoint {
        /// What was given.
        path: PathBuf,
        /// What was found there.
        reason: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A file of the checkpoint is not what it should be.
    #[error("{}: {fault}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        fault: FileFault,
    },
    /// An entry of a header is not what it should be.
    #[error("{}: tensor `{tensor}`: {fault}", file.display())]
    Entry {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        fault: EntryFault,
    },
    /// Two shards hold tensors of the same name.
    #[error("tensor `{tensor}` is in both {} and {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The shard it was met in first.
        first: PathBuf,
        /// The shard it was met in again.
        second: PathBuf,
    },
    /// Weights that are not finite numbers.
    #[error("tensor `{tensor}` in {}: {count} non-finite {} among rows {}..{}, first at {first:?}", file.display(),
        if *count == 1 { "value" } else { "values" }, rows.0, rows.1)]
    NonFinite {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many, in the rows looked at.
        count: usize,
        /// The rows looked at.
        rows: (u64, u64),
        /// Index of the first.
        first: Vec<u64>,
    },
    /// Weights too large to square.
    #[error("tensor `{tensor}` in {}: |w| = {magnitude:e} at row {row} is too large to be a weight", file.display())]
    TooLarge {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The largest magnitude.
        magnitude: f32,
        /// A row that holds it.
        row: u64,
    },
    /// A model that the output format has no layout for.
    #[error("model_type `{model_type}` has no {format} layout in this version of ramrs")]
    UnknownModel {
        /// `model_type` of the configuration.
        model_type: String,
        /// The output format.
        format: &'static str,
    },
    /// A model that the probe cannot run.
    #[error("the probe cannot run model_type `{model_type}`: {reason}")]
    Unrunnable {
        /// `model_type` of the configuration.
        model_type: String,
        /// Why not.
        reason: String,
    },
    /// A checkpoint that is quantized already.
    #[error("{}: the checkpoint is quantized already ({method})", config.display())]
    AlreadyQuantized {
        /// Its configuration.
        config: PathBuf,
        /// The method it names.
        method: String,
    },
    /// Tensors that belong together do not fit together.
    #[error("tensor `{tensor}` in {}: {reason}", file.display())]
    Layout {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// What it is asked to account for strictly cannot be.
    #[error("tensor `{tensor}` in {}: {reason} (all such tensors: {listed})", file.display())]
    UnrecognisedTensor {
        /// The shard.
        file: PathBuf,
        /// The first such tensor.
        tensor: String,
        /// Why it cannot.
        reason: String,
        /// The names of all of them, or the first few.
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
    /// A saved analysis or plan was made from something else.
    #[error("{place}: {reason}")]
    Stale {
        /// Where the document is.
        place: DocumentSource,
        /// What differs.
        reason: String,
    },
    /// A saved analysis or plan that a request holds does not read as one.
    #[error("the given {what} is not valid: {reason}")]
    Document {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A plan's scheme cannot be given to a tensor.
    #[error("tensor `{tensor}`: {reason}")]
    Scheme {
        /// The tensor.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// No plan is small enough.
    #[error("the budget of {budget} is below the smallest possible size, {minimum}: {sets_it}")]
    BudgetTooSmall {
        /// The budget, as counted.
        budget: String,
        /// The least possible, in the same unit.
        minimum: String,
        /// What makes it no smaller.
        sets_it: String,
    },
    /// What is to be overwritten was not written by ramrs.
    #[error("{} is not an output of ramrs", path.display())]
    NotOurs {
        /// The output.
        path: PathBuf,
    },
    /// The partial output is there already.
    #[error("{} is there: another run is writing it, or it is not ramrs' own", path.display())]
    Locked {
        /// The partial output.
        path: PathBuf,
    },
    /// The output is there already.
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
        /// Bytes of the plan.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// The file does not hold what it should.
    #[error("{}{}: {reason}", file.display(), tensor.as_ref().map(|t| format!(": tensor `{t}`")).unwrap_or_default())]
    Verify {
        /// The file.
        file: PathBuf,
        /// The tensor, if it is about one.
        tensor: Option<String>,
        /// What differs.
        reason: String,
    },
    /// The operating system refused.
    #[error("{action} {}: {}", path.display(), os_message(source))]
    Io {
        /// What was tried, as a participle: `reading`, `writing`…
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// An invariant of ramrs itself does not hold.
    #[error("internal error: {0}")]
    Bug(String),
}

/// Where a saved document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentSource {
    /// In a file.
    File(PathBuf),
    /// In the request: an analysis, a plan.
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

/// What kind of thing went wrong: decides the exit code, and the exception in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the caller asked for makes no sense.
    Config,
    /// The checkpoint is not sound, or not one we read.
    Checkpoint,
    /// A tensor cannot be dealt with.
    Tensor,
    /// The answer is no: the budget cannot be met.
    Budget,
    /// The answer is no: what is there is not what should be.
    Verify,
    /// The operating system refused.
    Io,
    /// The caller asked to stop.
    Interrupted,
    /// Our bug.
    Bug,
}

/// What the system said, without the number of its error.
pub(crate) fn os_message(source: &io::Error) -> String {
    let text = source.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::File`].
    #[must_use]
    pub fn file(file: &Path, fault: FileFault) -> Self {
        Self::File { file: file.to_owned(), fault }
    }

    /// An [`Error::Option`].
    #[expect(clippy::needless_pass_by_value, reason = "a number, a text or a path's display are all given as they are")]
    pub fn option(option: OptionName, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Option { option, value: value.to_string(), reason: reason.into() }
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Option { .. }
            | Self::MissingOption { .. }
            | Self::Request(_)
            | Self::NotOurs { .. }
            | Self::Locked { .. }
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
            | Self::AlreadyQuantized { .. }
            | Self::Layout { .. }
            | Self::UnrecognisedTensor { .. } => Kind::Checkpoint,
            Self::NonFinite { .. } | Self::TooLarge { .. } | Self::Sensitivity { .. } | Self::Scheme { .. } => {
                Kind::Tensor
            }
            Self::BudgetTooSmall { .. } => Kind::Budget,
            Self::Verify { .. } => Kind::Verify,
            Self::DiskFull { .. } | Self::Io { .. } => Kind::Io,
            Self::Interrupted => Kind::Interrupted,
            Self::Bug(_) => Kind::Bug,
        }
    }

    /// A name for this error that stays the same between releases.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Option { .. } => "bad-option",
            Self::Request(_) => "bad-request",
            Self::MissingOption { .. } => "missing-option",
            Self::NotOurs { .. } => "output-foreign",
            Self::Locked { .. } => "output-busy",
            Self::NoCheckpoint { .. } => "no-checkpoint",
            Self::File { fault, .. } => match fault {
                FileFault::TooShort(_) => "file-too-short",
                FileFault::HeaderLength { .. } => "header-length",
                FileFault::Header(_) => "header-syntax",
                FileFault::Trailing(_) => "trailing-bytes",
                FileFault::Pickle => "pickle",
                FileFault::OtherFormat(_) => "other-format",
                FileFault::Index(_) => "index-syntax",
                FileFault::Config(_) => "config-syntax",
                FileFault::Escapes(_) => "shard-escapes",
                FileFault::LinkOut(_) => "link-escapes",
                FileFault::MissingShard { .. } => "missing-shard",
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
                EntryFault::Backwards { .. } => "entry-backwards",
                EntryFault::BeyondEnd { .. } => "entry-beyond-end",
                EntryFault::Overlap { .. } => "entry-overlap",
                EntryFault::Gap { .. } => "entry-gap",
            },
            Self::DuplicateTensor { .. } => "duplicate-tensor",
            Self::NonFinite { .. } => "non-finite",
            Self::TooLarge { .. } => "too-large",
            Self::UnknownModel { .. } => "unknown-model",
            Self::Unrunnable { .. } => "unrunnable",
            Self::AlreadyQuantized { .. } => "already-quantized",
            Self::Layout { .. } => "bad-layout",
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
            Self::Io { .. } => "io",
            Self::Interrupted => "interrupted",
            Self::Bug(_) => "bug",
        }
    }

    /// What to do about it, if there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoCheckpoint { hint, .. } => Some(hint),
            Self::File { fault, .. } => match fault {
                FileFault::TooShort(_) | FileFault::MissingShard { .. } => {
                    Some("the download is incomplete: fetch the file again")
                }
                FileFault::Pickle => {
                    Some("convert it on a machine you can afford to lose, with `safetensors.torch.save_file`")
                }
                FileFault::OtherFormat(_) => Some("give the original checkpoint in safetensors"),
                FileFault::LinkOut(_) => Some("copy the file into the checkpoint's directory"),
                _ => None,
            },
            Self::Entry { fault: EntryFault::BeyondEnd { .. }, .. } => {
                Some("the file is truncated: fetch it again and compare its size and digest")
            }
            Self::NonFinite { .. } => Some(
                "the checkpoint is damaged: compare its digests with the publisher's; ramrs does not guess weights",
            ),
            Self::UnknownModel { .. } => {
                Some("⟨generic=true⟩ writes its tensors under their own names; no runtime is promised")
            }
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
            Self::Locked { .. } => Some("wait for the other run, remove what is there, or give another ⟨output⟩"),
            Self::OutputIsSource { .. } => Some("give another ⟨output⟩"),
            Self::DiskFull { .. } => Some("free some space, or give an ⟨output⟩ on another file system"),
            Self::Stale { .. } => Some("analyze the checkpoint again"),
            Self::Bug(_) => Some("please report it, with the command and the manifest or the header of the checkpoint"),
            _ => None,
        }
    }

    /// The file it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::NoCheckpoint { path, .. }
            | Self::OutputExists { path }
            | Self::OutputIsSource { path }
            | Self::NotOurs { path }
            | Self::Locked { path }
            | Self::DiskFull { path, .. }
            | Self::Io { path, .. } => Some(path),
            Self::File { file, .. }
            | Self::Entry { file, .. }
            | Self::NonFinite { file, .. }
            | Self::TooLarge { file, .. }
            | Self::Layout { file, .. }
            | Self::UnrecognisedTensor { file, .. }
            | Self::Sensitivity { file, .. }
            | Self::Stale { place: DocumentSource::File(file), .. }
            | Self::Verify { file, .. } => Some(file),
            Self::DuplicateTensor { second, .. } => Some(second),
            Self::AlreadyQuantized { config, .. } => Some(config),
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

    /// The tensor it is about.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::Entry { tensor, .. }
            | Self::DuplicateTensor { tensor, .. }
            | Self::NonFinite { tensor, .. }
            | Self::TooLarge { tensor, .. }
            | Self::Layout { tensor, .. }
            | Self::UnrecognisedTensor { tensor, .. }
            | Self::Sensitivity { tensor, .. }
            | Self::Scheme { tensor, .. }
            | Self::File { fault: FileFault::Disagrees { tensor, .. }, .. } => Some(tensor),
            Self::Verify { tensor, .. } => tensor.as_deref(),
            _ => None,
        }
    }
}
