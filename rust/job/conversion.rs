//! A checkpoint and its mapping to an output format.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::encode::StoreMode;
use crate::arch;
use crate::band::Matrix;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::prequantized::PartUse;
use crate::codec::Scheme;
use crate::digest::Digest;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::readable::prepare;
use crate::format::{Arrangement, Disposition, ForeignLayout, Format, Module, OutputModel, Refusal, SideFile, Target};
use crate::name::{Name, Role};
use crate::policy::{Kept, Policy, Subject, candidate};
use crate::schema::{SourceId, analysis};
use crate::sensitivity::Candidate;

/// Maximum number of tensor names listed in a message.
const MAX_LISTED: usize = 8;

/// The first of `names`, for a message.
pub(crate) fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let first: Vec<String> = names.iter().take(MAX_LISTED).map(|name| format!("`{name}`")).collect();
    format!("{}{}", first.join(", "), if names.len() > MAX_LISTED { ", …" } else { "" })
}

/// A checkpoint, and the disposition of each of its tensors in a format.
pub(crate) struct Conversion {
    pub checkpoint: Checkpoint,
    pub format: Arc<dyn Format>,
    /// Whether source names and tensors are kept without a model-specific layout.
    pub generic: bool,
    /// The program that laid the checkpoint out, if it is not a release.
    pub laid_out_by: Option<String>,
    /// The disposition of each tensor of the checkpoint, in checkpoint order.
    pub dispositions: Vec<Disposition>,
    pub outputs: Vec<OutputTensor>,
    /// For each tensor of the checkpoint, the outputs that contain data of it.
    pub contributions: Vec<Vec<Contribution>>,
}

pub(crate) struct OutputTensor {
    pub name: Name,
    pub target: Target,
    /// All rows as one matrix and the available schemes, or the reason why the tensor cannot be quantized.
    pub candidate: std::result::Result<(Matrix, Vec<Scheme>), Kept>,
    /// The prequantized form in the source that can be passed through, if any.
    pub packed: Option<Scheme>,
    /// Indices of its matrices in the conversion's [candidates](Conversion::candidates); empty if no scheme is
    /// available.
    pub matrices: Range<usize>,
}

/// The fate of a stored part of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate<'a> {
    /// Not needed to compute the weights, for this reason.
    Unused(&'static str),
    /// Read together with this tensor, which is written.
    Companion(usize),
    /// Not written: this other tensor has the same data.
    Tied(&'a str),
    /// Not written, for this reason.
    Dropped(&'static str),
    /// Contains the elements of this tensor, which is written.
    Written(usize),
}

/// The views that one output has of one source tensor.
#[derive(Debug)]
pub(crate) struct Contribution {
    /// Index of the output.
    pub target: usize,
    /// Indices of the output's views.
    pub views: Vec<usize>,
}

impl OutputTensor {
    fn new(checkpoint: &Checkpoint, format: &dyn Format, (name, target): (Name, Target), first_matrix: usize) -> Self {
        let Target { dtype, shape, stacked, unquantizable, .. } = &target;
        let subject = Subject { name: &name, dtype: *dtype, shape, stacked: *stacked, unquantizable: *unquantizable };
        let candidate = candidate(subject, format);
        let packed = target.packed(checkpoint, format).filter(|_| candidate.is_ok());
        let matrices = first_matrix..first_matrix + if candidate.is_ok() { target.views.len() } else { 0 };
        Self { name, target, candidate, packed, matrices }
    }

    /// Bytes stored if the tensor is kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let elements: u64 = self.target.shape.iter().product();
        match (self.packed, &self.candidate) {
            (Some(packed), Ok((matrix, _))) => packed.stored_bytes(*matrix),
            _ => self.target.dtype.bytes(elements).unwrap_or(u64::MAX),
        }
    }

    /// The storage mode if the tensor is kept.
    pub(crate) fn kept_mode(&self, checkpoint: &Checkpoint) -> StoreMode<'static> {
        match (&self.candidate, self.packed) {
            (Ok((matrix, _)), Some(packed)) => StoreMode::PassedThrough(packed, matrix.float),
            _ if self.target.copies(checkpoint).is_some() => StoreMode::Copied,
            _ => StoreMode::Converted,
        }
    }

    /// Bytes stored in the smallest scheme, or kept if that is smaller or no scheme is available.
    pub(crate) fn smallest_bytes(&self) -> u64 {
        let smallest = self
            .candidate
            .as_ref()
            .ok()
            .and_then(|(matrix, schemes)| schemes.first().map(|scheme| scheme.stored_bytes(*matrix)));
        smallest.unwrap_or(u64::MAX).min(self.kept_bytes())
    }

    /// The tensor's entry in an analysis, without its curve.
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
    /// Opens the checkpoint at `model` and arranges it for `format`.
    ///
    /// # Errors
    /// The errors of opening the checkpoint and of [`Format::arrange`].
    pub(crate) fn open(
        model: &Path,
        format: Arc<dyn Format>,
        generic: bool,
        layout: Option<&ForeignLayout>,
    ) -> Result<Self> {
        // A generic output has the names of the source.
        let mut checkpoint = if generic { Checkpoint::open(model)? } else { arch::open(model)? };
        if checkpoint.tensors.is_empty() {
            let (path, reason) = (model.to_owned(), "no tensors in it".to_owned());
            return Err(Error::NoCheckpoint { path, reason, hint: "give the model's directory" });
        }
        prepare(&mut checkpoint, generic)?;
        let format = format.of_source(&checkpoint)?.unwrap_or(format);
        let notes = format.notes(&checkpoint);
        checkpoint.notes.extend(notes);
        let mut arrangement = format.arrange(&checkpoint, generic)?;
        if let Some(layout) = layout {
            layout.apply(&mut arrangement);
        }
        let conversion = Self::with(checkpoint, format, generic, (arrangement, layout));
        // What the runtime refuses in any scheme is known before any work.
        conversion.check_refusals(|_| Scheme::KEPT)?;
        Ok(conversion)
    }

    /// Opens a checkpoint that the format has no layout for, with every tensor under its source name.
    pub(crate) fn untouched(model: &Path, format: Arc<dyn Format>) -> Result<Self> {
        let checkpoint = arch::open(model)?;
        let arrangement = Arrangement::untouched(&checkpoint);
        Ok(Self::with(checkpoint, format, true, (arrangement, None)))
    }

    fn with(
        checkpoint: Checkpoint,
        format: Arc<dyn Format>,
        generic: bool,
        (arrangement, layout): (Arrangement, Option<&ForeignLayout>),
    ) -> Self {
        let Arrangement { targets, dispositions } = arrangement;
        let mut outputs: Vec<OutputTensor> = Vec::with_capacity(targets.len());
        for target in targets {
            let first_matrix = outputs.last().map_or(0, |last| last.matrices.end);
            let name = Name::parse(&target.name);
            let name = layout.map_or_else(|| name.clone(), |layout| layout.named(name.clone()));
            outputs.push(OutputTensor::new(&checkpoint, &*format, (name, target), first_matrix));
        }
        let mut contributions: Vec<Vec<Contribution>> = checkpoint.tensors.iter().map(|_| Vec::new()).collect();
        for (target, output) in outputs.iter().enumerate() {
            for (at, view) in output.target.views.iter().enumerate() {
                let of_tensor = &mut contributions[view.tensor];
                match of_tensor.last_mut().filter(|contribution| contribution.target == target) {
                    Some(contribution) => contribution.views.push(at),
                    None => of_tensor.push(Contribution { target, views: vec![at] }),
                }
            }
        }
        let laid_out_by = layout.map(|layout| layout.by.clone());
        Self { checkpoint, format, generic, laid_out_by, dispositions, outputs, contributions }
    }

    /// Checks, before any work, that the runtime loads the outputs in the schemes given by `scheme_of`.
    ///
    /// # Errors
    /// [`Error::Scheme`] for the first tensor that the runtime refuses.
    pub(crate) fn check_refusals(&self, scheme_of: impl Fn(usize) -> Scheme) -> Result<()> {
        // Tensors beyond the language model's layers are read by other code, if at all.
        let must_be_quantized = |output: &&OutputTensor| {
            let is_within = output.target.unquantizable.is_none() && output.name.role != Role::MultiToken;
            is_within && output.name.is_weight && !self.format.may_keep(&output.name)
        };
        for output in self.outputs.iter().filter(must_be_quantized) {
            if let Err(kept) = &output.candidate {
                let reason = format!("the runtime reads it only quantized if anything is, and it cannot be: {kept}");
                return Err(Error::Scheme { tensor: output.target.name.clone(), reason });
            }
        }
        match self.format.refusals(&self.modules(scheme_of)).into_iter().next() {
            Some(Refusal { tensor, reason }) => Err(Error::Scheme { tensor, reason }),
            None => Ok(()),
        }
    }

    /// The quantizable modules, each in the scheme that `scheme_of` returns for its output.
    pub(crate) fn modules(&self, scheme_of: impl Fn(usize) -> Scheme) -> Vec<Module> {
        let outputs = self.outputs.iter().enumerate().filter(|(_, output)| output.candidate.is_ok());
        let module = |(at, output): (usize, &OutputTensor)| Module {
            path: output.name.module.clone(),
            scheme: scheme_of(at),
            packed: output.packed,
        };
        outputs.map(module).collect()
    }

    /// The files that the format writes next to the weights, with the schemes that `scheme_of` returns for outputs.
    pub(crate) fn side_files(&self, scheme_of: impl Fn(usize) -> Scheme) -> Vec<SideFile> {
        let output = OutputModel {
            source: self.checkpoint.config.as_ref(),
            modules: &self.modules(scheme_of),
            unquantizable: &self.unquantizable(),
            generic: self.generic,
        };
        self.format.side_files(&output)
    }

    /// The paths of the modules with a matrix as weight that cannot be quantized, except for embeddings.
    pub(crate) fn unquantizable(&self) -> Vec<String> {
        let is_linear = |output: &&OutputTensor| {
            let is_matrix = output.target.shape.len() == 2 && output.name.is_weight;
            output.candidate.is_err() && is_matrix && output.name.role != Role::Embedding
        };
        self.outputs.iter().filter(is_linear).map(|output| output.name.module.clone()).collect()
    }

    /// The fate of part `part` of the source.
    pub(crate) fn fate(&self, part: usize) -> Fate<'_> {
        let (tensor, written) = match self.checkpoint.uses[part] {
            PartUse::Unused(why) => return Fate::Unused(why),
            PartUse::Companion(tensor) => (tensor, Fate::Companion(tensor)),
            PartUse::Elements(tensor) => (tensor, Fate::Written(tensor)),
        };
        match &self.dispositions[tensor] {
            Disposition::Tied(to) => Fate::Tied(to),
            Disposition::Drop(why) => Fate::Dropped(why),
            Disposition::Write => written,
        }
    }

    /// Whether `output` is an unchanged copy of tensor `tensor`: same name, shape and bytes.
    pub(crate) fn is_unchanged(&self, tensor: usize, output: &OutputTensor) -> bool {
        let (target, source) = (&output.target, &self.checkpoint.tensors[tensor]);
        let stored = self.checkpoint.parts[source.part].stored_name();
        target.copies(&self.checkpoint) == Some(tensor) && target.name == stored && target.shape == source.shape
    }

    /// The matrices that can be quantized, in the order of the outputs and their views.
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

    /// The role of part `part`. A part that is read together with a weight has the weight's role.
    pub(crate) fn role(&self, part: usize) -> Role {
        let (name, tensor) = match self.checkpoint.uses[part] {
            PartUse::Companion(tensor) => (&self.checkpoint.tensors[tensor].name, Some(tensor)),
            PartUse::Elements(tensor) => (&self.checkpoint.parts[part].name, Some(tensor)),
            PartUse::Unused(_) => (&self.checkpoint.parts[part].name, None),
        };
        let outputs = tensor.into_iter().flat_map(|tensor| &self.contributions[tensor]);
        let mut outputs = outputs.map(|contribution| &self.outputs[contribution.target]);
        // The program that laid a checkpoint out may have said more than the name does.
        let known = outputs.find(|output| self.laid_out_by.is_some() && output.target.name == *name);
        known.map_or_else(|| Name::parse(name).role, |output| output.name.role)
    }

    /// Number of weights that are written, in any scheme.
    pub(crate) fn parameters(&self) -> u64 {
        let tensors = self.checkpoint.tensors.iter().zip(&self.dispositions);
        let written =
            tensors.filter(|(tensor, disposition)| **disposition == Disposition::Write && tensor.dtype.is_float());
        written.map(|(tensor, _)| tensor.elements()).sum()
    }

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

    /// Reports tensors with weights that are left out, and tensors of unknown role that no rule of `policy` covers.
    /// With `strict`, the latter are an error.
    ///
    /// # Errors
    /// [`Error::UnrecognisedTensor`].
    pub(crate) fn check(&self, strict: bool, policy: Option<&Policy>, mut say: impl FnMut(String)) -> Result<()> {
        self.checkpoint.notes.iter().cloned().for_each(&mut say);
        for (reason, count, bytes) in self.left_out() {
            say(format!("{count} tensors of {} are left out: {reason}", crate::budget::size(bytes)));
        }
        let name = |entry: &OutputTensor| &self.checkpoint.tensors[entry.target.views[0].tensor].name;
        let mut unrecognised = self.unrecognised();
        let names = |entry: &OutputTensor| [entry.target.name.clone(), name(entry).clone()];
        unrecognised
            .retain(|(entry, _)| policy.is_none_or(|policy| !names(entry).iter().any(|name| policy.is_about(name))));
        let Some((first, reason)) = unrecognised.first() else { return Ok(()) };
        if strict {
            let listed = listed(unrecognised.iter().map(|(entry, _)| name(entry).as_str()));
            let tensor = &self.checkpoint.tensors[first.target.views[0].tensor];
            return Err(Error::UnrecognisedTensor {
                file: self.checkpoint.file_of(tensor).to_owned(),
                tensor: tensor.name.clone(),
                reason: (*reason).to_owned(),
                listed,
            });
        }
        let mut by_reason: Vec<(&str, Vec<&OutputTensor>)> = Vec::new();
        for (entry, reason) in &unrecognised {
            match by_reason.iter_mut().find(|(other, _)| other == reason) {
                Some((_, entries)) => entries.push(entry),
                None => by_reason.push((reason, vec![entry])),
            }
        }
        for (reason, entries) in by_reason {
            let listed = listed(entries.iter().map(|entry| name(entry).as_str()));
            say(format!("{} tensors are treated by their shape alone: {listed} ({reason})", entries.len()));
        }
        Ok(())
    }

    /// For each reason for which weights are left out, the number and bytes of all tensors that are.
    fn left_out(&self) -> Vec<(&'static str, u64, u64)> {
        let mut found: Vec<(&'static str, u64, u64)> = Vec::new();
        let mut of_weights: Vec<&'static str> = Vec::new();
        for (tensor, disposition) in self.checkpoint.tensors.iter().zip(&self.dispositions) {
            let Disposition::Drop(reason) = disposition else { continue };
            if Float::of(tensor.dtype).is_some() && tensor.shape.len() > 1 {
                of_weights.push(reason);
            }
            let at = found.iter().position(|(other, ..)| other == reason).unwrap_or(found.len());
            if at == found.len() {
                found.push((reason, 0, 0));
            }
            found[at].1 += 1;
            found[at].2 += tensor.bytes;
        }
        found.retain(|(reason, ..)| of_weights.contains(reason));
        found
    }

    /// The outputs whose names do not identify a role, and the outputs with the name of a matrix that are kept because
    /// of their shape.
    fn unrecognised(&self) -> Vec<(&OutputTensor, &'static str)> {
        let reason = |entry: &OutputTensor| match (&entry.candidate, entry.name.role) {
            _ if Float::of(entry.target.dtype).is_none() => None,
            (Ok(_), Role::Other) => Some("its name says nothing of what it does"),
            (Err(Kept::NotAWeight), Role::Other) if entry.target.shape.len() > 1 => {
                Some("its name says nothing of what it does, not even that it is a weight")
            }
            (Err(Kept::NotAMatrix(_)), Role::Other) => Some("neither its name nor its shape says what it does"),
            (Err(Kept::NotAMatrix(_) | Kept::NotAWeight), Role::GateUp | Role::Gate | Role::Up | Role::Down)
                if entry.target.shape.len() > 2 =>
            {
                Some("it holds matrices in an order that is not known, and is kept")
            }
            _ => None,
        };
        self.outputs.iter().filter_map(|entry| Some((entry, reason(entry)?))).collect()
    }
}
