//! A checkpoint seen as what is to be done with it.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Matrix, Tensor};
use crate::digest::Digest;
use crate::document::{SourceId, analysis};
use crate::error::{Error, Result};
use crate::format::{self, Format, Treatment};
use crate::name::Name;
use crate::policy::{Kept, candidate};
use crate::scheme::Affine;

/// A checkpoint, and what becomes of each tensor in a format.
pub(super) struct Source {
    pub checkpoint: Checkpoint,
    pub format: &'static dyn Format,
    pub generic: bool,
    /// One for each tensor of the checkpoint, in their order.
    pub entries: Vec<Entry>,
}

/// What becomes of a tensor.
pub(super) struct Entry {
    pub name: Name,
    pub treatment: Treatment,
    /// The schemes that exist for it, or why there are none.
    pub candidate: std::result::Result<(Matrix, Vec<Affine>), Kept>,
}

impl Entry {
    /// `tensor`, the one that this is about, as an analysis describes it, without its curve.
    pub(super) fn described(&self, tensor: &Tensor) -> analysis::Tensor {
        analysis::Tensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes,
            role: self.name.role,
            layer: self.name.layer,
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
        let treatments = format.treatments(&checkpoint, generic)?;
        Ok(Self::with(checkpoint, format, generic, treatments))
    }

    /// A checkpoint that the format has no layout for, as if everything in it were written under its own name.
    pub(super) fn untouched(model: &Path, format: &str) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let treatments = vec![Treatment::Write; checkpoint.tensors.len()];
        Ok(Self::with(checkpoint, format::by_name(format)?, true, treatments))
    }

    fn with(checkpoint: Checkpoint, format: &'static dyn Format, generic: bool, treatments: Vec<Treatment>) -> Self {
        let entry = |(tensor, treatment): (&Tensor, Treatment)| {
            let name = Name::parse(&tensor.name);
            let candidate = candidate(tensor, &name);
            Entry { name, treatment, candidate }
        };
        let entries = checkpoint.tensors.iter().zip(treatments).map(entry).collect();
        Self { checkpoint, format, generic, entries }
    }

    /// The tensors that are written, each with its entry.
    pub(super) fn written(&self) -> impl Iterator<Item = (&Tensor, &Entry)> {
        self.checkpoint.tensors.iter().zip(&self.entries).filter(|(_, entry)| entry.treatment == Treatment::Write)
    }

    /// The matrices that schemes exist for.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (&Tensor, Matrix, &Entry)> {
        self.written().filter_map(|(tensor, entry)| Some((tensor, entry.candidate.as_ref().ok()?.0, entry)))
    }

    pub(super) fn id(&self) -> SourceId {
        let mut digest = Digest::default();
        for shard in &self.checkpoint.shards {
            digest.text(&shard.name);
            digest.text(&shard.header_sha256);
            digest.update(&shard.bytes.to_le_bytes());
        }
        let weights = self.written().filter(|(tensor, _)| tensor.dtype.is_float());
        SourceId {
            headers_sha256: digest.finish(),
            parameters: weights.map(|(tensor, _)| tensor.elements()).sum(),
            tensor_bytes: self.checkpoint.tensors.iter().map(|tensor| tensor.bytes).sum(),
            file_bytes: self.checkpoint.file_bytes(),
        }
    }
}
