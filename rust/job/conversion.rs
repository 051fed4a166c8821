//! A checkpoint, and what a format makes of it.

use std::ops::Range;
use std::path::Path;

use super::encode::StoreMode;
use crate::band::Matrix;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::prequantized::PartUse;
use crate::codec::Scheme;
use crate::digest::Digest;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::{self, Arrangement, Format, Module, Refusal, Target, Treatment};
use crate::name::{Name, Role};
use crate::policy::{Kept, Policy, Subject, candidate};
use crate::schema::{SourceId, analysis};
use crate::sensitivity::Candidate;

/// Names that a message lists.
const LISTED: usize = 8;

/// A checkpoint, and what becomes of it in a format.
pub(crate) struct Conversion {
    /// The source.
    pub checkpoint: Checkpoint,
    /// The output's format.
    pub format: &'static dyn Format,
    /// Whether names and tensors are not touched.
    pub generic: bool,
    /// What becomes of each tensor of the checkpoint, in their order.
    pub treatments: Vec<Treatment>,
    /// The tensors of the output.
    pub outputs: Vec<OutputTensor>,
    /// What each tensor of the checkpoint gives to which outputs, in their order.
    pub shares: Vec<Vec<Share>>,
}

/// A tensor of the output.
pub(crate) struct OutputTensor {
    /// What its name says.
    pub name: Name,
    /// What it is made of.
    pub target: Target,
    /// All its rows as one matrix, and the schemes that exist for it; or why there are none.
    pub candidate: std::result::Result<(Matrix, Vec<Scheme>), Kept>,
    /// The form it has in the source and may keep, if that is not plain numbers.
    pub packed: Option<Scheme>,
    /// Which of the conversion's [candidates](Conversion::candidates) are its matrices; none if no scheme exists for it.
    pub matrices: Range<usize>,
}

/// What becomes of a part of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate<'a> {
    /// It is of no use to whoever computes with weights, for this reason.
    Unused(&'static str),
    /// It is read with this tensor, which is written.
    Companion(usize),
    /// It is left out: this other tensor is the same.
    Tied(&'a str),
    /// It is left out, for this reason.
    Dropped(&'static str),
    /// It holds the elements of this tensor, which is written.
    Written(usize),
}

/// What one tensor gave to one target.
#[derive(Debug)]
pub(crate) struct Share {
    /// Which of the outputs.
    pub target: usize,
    /// Which of its views.
    pub views: Vec<usize>,
}

impl OutputTensor {
    fn new(checkpoint: &Checkpoint, format: &dyn Format, target: Target, first_matrix: usize) -> Self {
        let name = Name::parse(&target.name);
        let Target { dtype, shape, stacked, never, .. } = &target;
        let subject = Subject { name: &name, dtype: *dtype, shape, stacked: *stacked, never: *never };
        let candidate = candidate(subject, format);
        let packed = target.packed(checkpoint, format).filter(|_| candidate.is_ok());
        let matrices = first_matrix..first_matrix + if candidate.is_ok() { target.views.len() } else { 0 };
        Self { name, target, candidate, packed, matrices }
    }

    /// Bytes of it, if it is kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let elements: u64 = self.target.shape.iter().product();
        match (self.packed, &self.candidate) {
            (Some(packed), Ok((matrix, _))) => packed.stored_bytes(*matrix),
            _ => self.target.dtype.bytes(elements).unwrap_or(u64::MAX),
        }
    }

    /// How it is stored, if it is kept.
    pub(crate) fn kept_mode(&self, checkpoint: &Checkpoint) -> StoreMode<'static> {
        match (&self.candidate, self.packed) {
            (Ok((matrix, _)), Some(packed)) => StoreMode::PassedThrough(packed, matrix.float),
            _ if self.target.copies(checkpoint).is_some() => StoreMode::Copied,
            _ => StoreMode::Converted,
        }
    }

    /// Bytes of it in the smallest scheme, or kept if that is smaller or all there is.
    pub(crate) fn smallest_bytes(&self) -> u64 {
        let smallest = self
            .candidate
            .as_ref()
            .ok()
            .and_then(|(matrix, schemes)| schemes.first().map(|scheme| scheme.stored_bytes(*matrix)));
        smallest.unwrap_or(u64::MAX).min(self.kept_bytes())
    }

    /// As an analysis describes it, without its curve.
    pub(crate) fn described(&self, checkpoint: &Checkpoint) -> analysis::AnalyzedTensor {
        let Target { name, dtype, shape, .. } = &self.target;
        let mut sources: Vec<String> = Vec::new();
        for view in &self.target.views {
            let source = &checkpoint.tensors[view.tensor].name;
            if sources.last() != Some(source) {
                sources.push(source.clone());
            }
        }
        if sources == [name.as_str()] {
            sources.clear();
        }
        analysis::AnalyzedTensor {
            name: name.clone(),
            dtype: dtype.name().to_owned(),
            shape: shape.clone(),
            packed: self.packed.map(|packed| packed.to_string()),
            bytes: self.kept_bytes(),
            role: self.name.role,
            layer: self.name.layer,
            sources,
            kept: self.candidate.as_ref().err().map(ToString::to_string),
            curve: None,
        }
    }
}

impl Conversion {
    /// Opens the checkpoint at `model`, and arranges it for `format`.
    ///
    /// # Errors
    /// Those of opening it, and of [`Format::arrange`].
    pub(crate) fn open(model: &Path, format: &str, generic: bool) -> Result<Self> {
        let format = format::by_name(format)?;
        let checkpoint = Checkpoint::open(model)?;
        if checkpoint.tensors.is_empty() {
            let (path, reason) = (model.to_owned(), "no tensors in it".to_owned());
            return Err(Error::NoCheckpoint { path, reason, hint: "give the model's directory" });
        }
        let arrangement = format.arrange(&checkpoint, generic)?;
        Ok(Self::with(checkpoint, format, generic, arrangement))
    }

    /// A checkpoint that the format has no layout for, as if everything in it were written under its own name.
    pub(crate) fn untouched(model: &Path, format: &str) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let arrangement = Arrangement::untouched(&checkpoint);
        Ok(Self::with(checkpoint, format::by_name(format)?, true, arrangement))
    }

    fn with(checkpoint: Checkpoint, format: &'static dyn Format, generic: bool, arrangement: Arrangement) -> Self {
        let Arrangement { targets, treatments } = arrangement;
        let mut outputs: Vec<OutputTensor> = Vec::with_capacity(targets.len());
        for target in targets {
            let first_matrix = outputs.last().map_or(0, |last| last.matrices.end);
            outputs.push(OutputTensor::new(&checkpoint, format, target, first_matrix));
        }
        let mut shares: Vec<Vec<Share>> = checkpoint.tensors.iter().map(|_| Vec::new()).collect();
        for (target, output) in outputs.iter().enumerate() {
            for (at, view) in output.target.views.iter().enumerate() {
                let of_tensor = &mut shares[view.tensor];
                match of_tensor.last_mut().filter(|share| share.target == target) {
                    Some(share) => share.views.push(at),
                    None => of_tensor.push(Share { target, views: vec![at] }),
                }
            }
        }
        Self { checkpoint, format, generic, treatments, outputs, shares }
    }

    /// Whether the runtime would refuse what is written as `scheme_of` says, known before any work.
    ///
    /// # Errors
    /// [`Error::Scheme`], for the first tensor that it would refuse.
    pub(crate) fn check_refusals(&self, scheme_of: impl Fn(usize) -> Scheme) -> Result<()> {
        match self.format.refusals(&self.modules(scheme_of)).into_iter().next() {
            Some(Refusal { tensor, reason }) => Err(Error::Scheme { tensor, reason }),
            None => Ok(()),
        }
    }

    /// The modules that could be quantized, each in the scheme that `scheme_of` gives its output.
    pub(crate) fn modules(&self, scheme_of: impl Fn(usize) -> Scheme) -> Vec<Module> {
        let outputs = self.outputs.iter().enumerate().filter(|(_, output)| output.candidate.is_ok());
        let module = |(at, output): (usize, &OutputTensor)| Module {
            path: output.name.module.clone(),
            scheme: scheme_of(at),
            packed: output.packed,
        };
        outputs.map(module).collect()
    }

    /// What becomes of part `part` of the source.
    pub(crate) fn fate(&self, part: usize) -> Fate<'_> {
        let (tensor, written) = match self.checkpoint.uses[part] {
            PartUse::Unused(why) => return Fate::Unused(why),
            PartUse::Companion(tensor) => (tensor, Fate::Companion(tensor)),
            PartUse::Elements(tensor) => (tensor, Fate::Written(tensor)),
        };
        match &self.treatments[tensor] {
            Treatment::Tied(to) => Fate::Tied(to),
            Treatment::Drop(why) => Fate::Dropped(why),
            Treatment::Write => written,
        }
    }

    /// Whether tensor `tensor` is all of `output`, under its own name and byte for byte.
    pub(crate) fn is_as_it_is(&self, tensor: usize, output: &OutputTensor) -> bool {
        let (target, source) = (&output.target, &self.checkpoint.tensors[tensor]);
        target.copies(&self.checkpoint) == Some(tensor) && target.name == source.name && target.shape == source.shape
    }

    /// The matrices that schemes exist for, those of one target after those of the one before.
    pub(crate) fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut found = Vec::new();
        for (target, entry) in self.outputs.iter().enumerate().filter(|(_, entry)| entry.candidate.is_ok()) {
            for view in &entry.target.views {
                if let Some(matrix) = view.matrix(&self.checkpoint) {
                    found.push(Candidate { name: &entry.name, target, view: *view, matrix });
                }
            }
        }
        found
    }

    /// The role of part `part`: of one that is read with a weight, that of the weight.
    pub(crate) fn role(&self, part: usize) -> Role {
        let name = match self.checkpoint.uses[part] {
            PartUse::Companion(tensor) => &self.checkpoint.tensors[tensor].name,
            PartUse::Elements(_) | PartUse::Unused(_) => &self.checkpoint.parts[part].name,
        };
        Name::parse(name).role
    }

    /// Weights in it that are written, however they are stored.
    pub(crate) fn parameters(&self) -> u64 {
        let tensors = self.checkpoint.tensors.iter().zip(&self.treatments);
        let written = tensors.filter(|(tensor, treatment)| **treatment == Treatment::Write && tensor.dtype.is_float());
        written.map(|(tensor, _)| tensor.elements()).sum()
    }

    /// Which checkpoint it is.
    pub(crate) fn id(&self) -> SourceId {
        let mut digest = Digest::default();
        for shard in &self.checkpoint.shards {
            digest.text(&shard.name);
            digest.text(&shard.header_sha256);
            digest.update(&shard.bytes.to_le_bytes());
        }
        SourceId {
            headers_sha256: digest.finish(),
            parameters: self.parameters(),
            tensor_bytes: self.checkpoint.parts.iter().map(|part| part.bytes).sum(),
            file_bytes: self.checkpoint.file_bytes(),
        }
    }

    /// Tells of what is left out although it holds weights, and of names that say nothing and no rule of `policy` is about.
    /// If that is `strict`ly asked for, these are errors.
    ///
    /// # Errors
    /// [`Error::UnrecognisedTensor`].
    pub(crate) fn check(&self, strict: bool, policy: Option<&Policy>, mut say: impl FnMut(String)) -> Result<()> {
        for (reason, count, bytes) in self.left_out() {
            say(format!("{count} tensors of {} are left out: {reason}", crate::budget::size(bytes)));
        }
        let name = |entry: &OutputTensor| &self.checkpoint.tensors[entry.target.views[0].tensor].name;
        let mut unexplained = self.unexplained();
        let names = |entry: &OutputTensor| [entry.target.name.clone(), name(entry).clone()];
        unexplained
            .retain(|(entry, _)| policy.is_none_or(|policy| !names(entry).iter().any(|name| policy.is_about(name))));
        let Some((first, reason)) = unexplained.first() else { return Ok(()) };
        let listed: Vec<String> =
            unexplained.iter().take(LISTED).map(|(entry, _)| format!("`{}`", name(entry))).collect();
        let more = if unexplained.len() > LISTED { ", …" } else { "" };
        let listed = format!("{}{more}", listed.join(", "));
        if strict {
            let tensor = &self.checkpoint.tensors[first.target.views[0].tensor];
            return Err(Error::UnrecognisedTensor {
                file: self.checkpoint.file_of(tensor).to_owned(),
                tensor: tensor.name.clone(),
                reason: (*reason).to_owned(),
                listed,
            });
        }
        say(format!("{} tensors are treated by their shape alone: {listed} ({reason})", unexplained.len()));
        Ok(())
    }

    /// Tensors with more than one dimension that are left out, by reason: how many, and their bytes.
    fn left_out(&self) -> Vec<(&'static str, u64, u64)> {
        let mut found: Vec<(&'static str, u64, u64)> = Vec::new();
        for (tensor, treatment) in self.checkpoint.tensors.iter().zip(&self.treatments) {
            let Treatment::Drop(reason) = treatment else { continue };
            if Float::of(tensor.dtype).is_none() || tensor.shape.len() < 2 {
                continue;
            }
            let at = found.iter().position(|(other, ..)| other == reason).unwrap_or(found.len());
            if at == found.len() {
                found.push((reason, 0, 0));
            }
            found[at].1 += 1;
            found[at].2 += tensor.bytes;
        }
        found
    }

    /// What is written although its name says nothing of what it does, and what is kept for its shape although its name
    /// says that it is a matrix.
    fn unexplained(&self) -> Vec<(&OutputTensor, &'static str)> {
        let reason = |entry: &OutputTensor| match (&entry.candidate, entry.name.role) {
            _ if Float::of(entry.target.dtype).is_none() => None,
            (Ok(_), Role::Other) => Some("its name says nothing of what it does"),
            (Err(Kept::NoWeight), Role::Other) if entry.target.shape.len() > 1 => {
                Some("its name says nothing of what it does, not even that it is a weight")
            }
            (Err(Kept::NoMatrix(_)), Role::Other) => Some("neither its name nor its shape says what it does"),
            (Err(Kept::NoMatrix(_) | Kept::NoWeight), Role::GateUp | Role::Gate | Role::Up | Role::Down)
                if entry.target.shape.len() > 2 =>
            {
                Some("it holds matrices in an order that is not known, and is kept")
            }
            _ => None,
        };
        self.outputs.iter().filter_map(|entry| Some((entry, reason(entry)?))).collect()
    }
}
