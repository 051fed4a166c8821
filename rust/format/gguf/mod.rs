//! GGUF: the file that llama.cpp, Ollama and LM Studio read.
//!
//! A quantized tensor is one tensor of blocks (`rust/codec/ggml`). There are no files next to it: hyperparameters and
//! tokenizer are key-values of the file. They are those of the source, or of the header that the user gives, since llama.cpp's
//! converter writes them: ramrs changes what says how the weights are stored, and nothing else.

mod arrange;
mod types;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Arrangement, CardFacts, Described, Format, OutputModel, PackedSource, Runtime, SchemeUse, SideFile};
use crate::arch::hard_coded::{self, Difference};
use crate::band::Matrix;
use crate::checkpoint::prequantized::Packing;
use crate::checkpoint::{Checkpoint, Config};
use crate::codec::Scheme;
use crate::container::gguf::split;
use crate::container::gguf::value::Value;
use crate::container::{Container, Gguf, HeadSize, KeyValues, Metadata};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::option::OptionName;
use types::{Backend, file_type};

const FILE_TYPE: &str = "general.file_type";

/// The head of the output.
#[derive(Clone, Debug, Default)]
enum Head {
    /// Not known: no source was seen.
    #[default]
    None,
    /// Its key-values.
    KeyValues(KeyValues),
    /// The size of its key-values, from a document.
    Size(HeadSize),
}

#[derive(Debug)]
pub(crate) struct LlamaCpp {
    backend: Backend,
    schemes: Vec<Scheme>,
    /// A GGUF file whose key-values the output gets.
    header: Option<PathBuf>,
    head: Head,
}

/// Opens the format for `runtime`.
///
/// # Errors
/// [`Error::Option`] for an unknown backend, or tensor parallelism.
pub(super) fn open(runtime: &Runtime) -> Result<Arc<dyn Format>> {
    let backend = match &runtime.target {
        None => Backend::default(),
        Some(name) => Backend::named(name).ok_or_else(|| {
            Error::option(OptionName::Target, name, format!("not one of: {}", Backend::NAMES.join(", ")))
        })?,
    };
    if runtime.tensor_parallel > 1 {
        let reason = "llama.cpp divides layers by itself: leave it out".to_owned();
        return Err(Error::option(OptionName::TensorParallel, runtime.tensor_parallel, reason));
    }
    let head = runtime.head.map_or(Head::None, Head::Size);
    Ok(Arc::new(LlamaCpp { backend, schemes: backend.schemes(), header: runtime.header.clone(), head }))
}

impl LlamaCpp {
    /// The key-values of an output of `checkpoint`.
    fn key_values(&self, checkpoint: &Checkpoint) -> Result<KeyValues> {
        let mut found = match &self.header {
            Some(path) => {
                let first = split::open(path)?.into_iter().next();
                first.map(|file| file.header.key_values).unwrap_or_default()
            }
            None if checkpoint.is_gguf() => (*checkpoint.key_values).clone(),
            None => {
                let reason = "a GGUF file needs the hyperparameters and the tokenizer as llama.cpp's converter writes them: \
                              make a header with `python convert_hf_to_gguf.py --vocab-only --outfile header.gguf MODEL`";
                return Err(Error::MissingOption { option: OptionName::Header, what: reason });
            }
        };
        if found.get("general.architecture").is_none() {
            let path = self.header.clone().unwrap_or_else(|| checkpoint.dir.clone());
            let reason = "has no `general.architecture`: it is not the header of a model".to_owned();
            return Err(Error::Layout { file: path, tensor: "general.architecture".to_owned(), reason });
        }
        for key in split::KEYS {
            found.remove(key);
        }
        if !checkpoint.is_gguf() {
            arrange::add_unstated(checkpoint, &mut found);
            self.check_header(checkpoint, &found)?;
        }
        found.set(FILE_TYPE, &Value::U32(0));
        found.set("general.quantization_version", &Value::U32(2));
        found.set("general.quantized_by", &Value::Text(concat!("ramrs ", env!("CARGO_PKG_VERSION")).to_owned()));
        Ok(found)
    }
}

impl LlamaCpp {
    /// Checks that llama.cpp computes with these key-values what the release in `checkpoint` does, in windows.
    fn check_header(&self, checkpoint: &Checkpoint, key_values: &KeyValues) -> Result<()> {
        if let Some(reason) = hard_coded::other_model(checkpoint, key_values) {
            let path = self.header.clone().unwrap_or_default();
            return Err(Error::option(OptionName::Header, path.display(), reason));
        }
        let always = |difference| match difference {
            Difference::Always(what) => Some(what),
            Difference::BeyondWindow(_) => None,
        };
        match hard_coded::differences(checkpoint, key_values).into_iter().find_map(always) {
            None => Ok(()),
            Some(what) => {
                let reason = format!("{what}, and no key-value says otherwise: its output would be another model's");
                let hint = "llama.cpp does not run this model; if another version does, convert the model to BF16 with \
                            that one's converter and quantize the GGUF file";
                Err(Error::Inexpressible { config: checkpoint.dir.join("config.json"), reason, hint })
            }
        }
    }
}

impl Format for LlamaCpp {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn targets(&self) -> &'static [&'static str] {
        &Backend::NAMES
    }

    fn target(&self) -> Option<&'static str> {
        Some(self.backend.name())
    }

    fn default_group(&self) -> u16 {
        32
    }

    fn container(&self) -> &'static dyn Container {
        &Gguf
    }

    fn metadata(&self, uses: &[SchemeUse]) -> Metadata<'_> {
        match &self.head {
            Head::None => Metadata::Texts(&[]),
            Head::Size(size) => Metadata::Size(*size),
            Head::KeyValues(known) => {
                let mut own = known.clone();
                own.set(FILE_TYPE, &Value::U32(file_type(most_used(uses))));
                Metadata::KeyValues(Cow::Owned(own))
            }
        }
    }

    fn is_one_file(&self) -> bool {
        true
    }

    fn head(&self) -> Option<HeadSize> {
        match &self.head {
            Head::None => None,
            Head::Size(size) => Some(*size),
            Head::KeyValues(known) => Some(known.size()),
        }
    }

    fn of_source(&self, checkpoint: &Checkpoint) -> Result<Option<Arc<dyn Format>>> {
        // A document says how long they are; the output has them.
        if matches!(self.head, Head::Size(_)) && self.header.is_none() && !checkpoint.is_gguf() {
            return Ok(None);
        }
        let head = Head::KeyValues(self.key_values(checkpoint)?);
        Ok(Some(Arc::new(Self { schemes: self.schemes.clone(), header: self.header.clone(), head, ..*self })))
    }

    fn notes(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let Head::KeyValues(known) = &self.head else { return Vec::new() };
        if checkpoint.is_gguf() {
            return Vec::new();
        }
        let note = |difference| match difference {
            Difference::BeyondWindow(what) => Some(format!("{what}: longer texts are computed otherwise there")),
            Difference::Always(_) => None,
        };
        hard_coded::differences(checkpoint, known).into_iter().filter_map(note).collect()
    }

    fn schemes(&self) -> &[Scheme] {
        &self.schemes
    }

    fn no_candidates(&self, _name: &Name, matrix: Matrix) -> Option<String> {
        Some(format!("rows of {} do not divide into blocks of 32", matrix.cols))
    }

    fn passes(&self, source: &PackedSource<'_>) -> Option<Scheme> {
        match source.packing {
            Packing::Mxfp4 { .. } => Scheme::of_blocks(Dtype::MXFP4),
            Packing::Plain | Packing::Fp8 { .. } | Packing::Int4 { .. } | Packing::Encoded(_) => None,
        }
    }

    fn arrange(&self, checkpoint: &Checkpoint, generic: bool) -> Result<Arrangement> {
        if generic {
            let reason = "llama.cpp reads no names but its own".to_owned();
            return Err(Error::option(OptionName::Generic, true, reason));
        }
        let tokens = match &self.head {
            Head::KeyValues(known) => known.get("tokenizer.ggml.tokens").and_then(|tokens| Some(tokens.elements()?.1)),
            Head::None | Head::Size(_) => None,
        };
        arrange::arrange(checkpoint, tokens)
    }

    fn part_name(&self, _scheme: Scheme, tensor: &str, _kind: &str) -> String {
        tensor.to_owned()
    }

    fn side_files(&self, _output: &OutputModel<'_>) -> Vec<SideFile> {
        Vec::new()
    }

    fn described<'c>(&self, _config: &'c Config) -> Described<'c> {
        Box::new(|_| None)
    }

    fn card(&self) -> CardFacts {
        CardFacts {
            library: "gguf",
            tags: &["gguf"],
            schemes: "Schemes are the types of ggml: `q4_k` has super-blocks of 256 weights, `q4_0` blocks of 32.",
            usage: "```sh\nllama-cli -m PATH_TO_THIS_FILE -p \"Hello\"\n```",
            generic: "",
        }
    }
}

/// The type of most weights.
fn most_used(uses: &[SchemeUse]) -> Dtype {
    let mut sums: Vec<(Dtype, u64)> = Vec::new();
    for found in uses {
        match sums.iter_mut().find(|(dtype, _)| *dtype == found.dtype) {
            Some((_, elements)) => *elements += found.elements,
            None => sums.push((found.dtype, found.elements)),
        }
    }
    sums.into_iter().max_by_key(|(_, elements)| *elements).map_or(Dtype::F32, |(dtype, _)| dtype)
}
