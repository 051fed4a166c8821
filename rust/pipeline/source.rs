//! A checkpoint seen as what is to be done with it.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Matrix};
use crate::digest::Digest;
use crate::document::{SourceId, analysis};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::{self, Arrangement, Format, Target, Treatment};
use crate::name::Name;
use crate::policy::{Kept, Subject, candidate};
use crate::scheme::{Affine, Packed};
use crate::sensitivity::Candidate;

/// A checkpoint, and what becomes of it in a format.
pub(super) struct Source {
    pub checkpoint: Checkpoint,
    pub format: &'static dyn Format,
    pub generic: bool,
    /// What becomes of each tensor of the checkpoint, in their order.
    pub treatments: Vec<Treatment>,
    /// The tensors of the output.
    pub entries: Vec<Entry>,
}

/// A tensor of the output.
pub(super) struct Entry {
    pub name: Name,
    pub target: Target,
    /// The schemes that exist for it, and all its rows as one matrix; or why there are none.
    pub candidate: std::result::Result<(Matrix, Vec<Affine>), Kept>,
    /// The form it has in the source and may keep, if that is not plain numbers.
    pub packed: Option<Packed>,
}

impl Entry {
    fn new(checkpoint: &Checkpoint, target: Target) -> Self {
        let name = Name::parse(&target.name);
        let Target { dtype, shape, stacked, never, .. } = &target;
        let subject = Subject { name: &name, dtype: *dtype, shape, stacked: *stacked, never: *never };
        let candidate = candidate(subject);
        let packed = target.packed(checkpoint).filter(|_| candidate.is_ok());
        Self { name, target, candidate, packed }
    }

    /// Bytes of it, if it is kept.
    pub(super) fn kept_bytes(&self) -> u64 {
        let elements: u64 = self.target.shape.iter().product();
        match (self.packed, &self.candidate) {
            (Some(packed), Ok((matrix, _))) => packed.stored_bytes(matrix.rows, matrix.cols, matrix.float),
            _ => self.target.dtype.bytes(elements).unwrap_or(u64::MAX),
        }
    }

    /// Bytes of it in the smallest scheme, or kept if that is smaller or all there is.
    pub(super) fn smallest_bytes(&self) -> u64 {
        let smallest = self.candidate.as_ref().ok().and_then(|(matrix, schemes)| {
            schemes.first().map(|scheme| scheme.stored_bytes(matrix.rows, matrix.cols, matrix.float))
        });
        smallest.unwrap_or(u64::MAX).min(self.kept_bytes())
    }

    /// As an analysis describes it, without its curve.
    pub(super) fn described(&self, checkpoint: &Checkpoint) -> analysis::Tensor {
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
        analysis::Tensor {
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

impl Source {
    pub(super) fn open(model: &Path, format: &str, generic: bool) -> Result<Self> {
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
    pub(super) fn untouched(model: &Path, format: &str) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let arrangement = Arrangement::untouched(&checkpoint);
        Ok(Self::with(checkpoint, format::by_name(format)?, true, arrangement))
    }

    fn with(checkpoint: Checkpoint, format: &'static dyn Format, generic: bool, arrangement: Arrangement) -> Self {
        let Arrangement { targets, treatments } = arrangement;
        let entries = targets.into_iter().map(|target| Entry::new(&checkpoint, target)).collect();
        Self { checkpoint, format, generic, treatments, entries }
    }

    /// The matrices that schemes exist for, those of one target after those of the one before.
    pub(super) fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut found = Vec::new();
        for (target, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.candidate.is_ok()) {
            for view in &entry.target.views {
                if let Some(matrix) = view.matrix(&self.checkpoint) {
                    found.push(Candidate { name: &entry.name, target, view: *view, matrix });
                }
            }
        }
        found
    }

    /// Weights in it that are written, however they are stored.
    pub(super) fn parameters(&self) -> u64 {
        let tensors = self.checkpoint.tensors.iter().zip(&self.treatments);
        let written = tensors.filter(|(tensor, treatment)| **treatment == Treatment::Write && tensor.dtype.is_float());
        written.map(|(tensor, _)| tensor.elements()).sum()
    }

    pub(super) fn id(&self) -> SourceId {
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

    /// Tells of what is left out although it holds weights, and of weights that were rounded before.
    pub(super) fn tell(&self, mut say: impl FnMut(String)) {
        let tensors = || self.checkpoint.tensors.iter().zip(&self.treatments);
        let mut reasons: Vec<&str> = Vec::new();
        for (_, treatment) in tensors() {
            if let Treatment::Drop(reason) = treatment
                && !reasons.contains(reason)
            {
                reasons.push(reason);
            }
        }
        for reason in reasons {
            let dropped = tensors().filter(|(tensor, treatment)| {
                **treatment == Treatment::Drop(reason) && Float::of(tensor.dtype).is_some() && tensor.shape.len() > 1
            });
            let (count, bytes) = dropped.fold((0, 0), |(count, bytes), (tensor, _)| (count + 1, bytes + tensor.bytes));
            if count > 0 {
                say(format!("{count} tensors of {} are left out: {reason}", crate::budget::size(bytes)));
            }
        }
    }
}
