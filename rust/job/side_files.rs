//! Files next to the weights: copies of the source's files, and files written by the format.

use std::path::{Path, PathBuf};

use super::model_card::SOURCE_CARD;
use super::staging::Staging;
use crate::checkpoint::Checkpoint;
use crate::digest::Digest;
use crate::error::Result;
use crate::format::Format;
use crate::schema::manifest::{self, FileDigest, LeftOut};

/// Suffixes of weight files in other formats, which are not copied.
const OTHER_WEIGHTS: [&str; 14] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".npz",
    ".index.json",
];

/// The source's other files: the files to copy, and the files to leave out with the reason.
#[must_use]
pub(crate) fn sort(checkpoint: &Checkpoint, format: &dyn Format) -> (Vec<PathBuf>, Vec<LeftOut>) {
    let (mut copied, mut left_out) = (Vec::new(), Vec::new());
    for file in &checkpoint.other_files {
        let name = file.display().to_string();
        let why = if OTHER_WEIGHTS.iter().any(|ending| name.ends_with(ending)) {
            Some("weights in another form")
        } else if format.is_one_file() {
            Some("the file of weights holds all that its runtime reads")
        } else if name == "hf_quant_config.json" {
            Some("what it says of the source's codes is not so of these")
        } else if name == manifest::FILE_NAME || name == SOURCE_CARD {
            Some("its name is needed")
        } else {
            None
        };
        match why {
            Some(why) => left_out.push(LeftOut { name, why: why.to_owned() }),
            None => copied.push(file.clone()),
        }
    }
    (copied, left_out)
}

/// The output name of a copied file.
#[must_use]
pub(crate) fn copied_name(file: &Path) -> &Path {
    if file == Path::new("README.md") { Path::new(SOURCE_CARD) } else { file }
}

pub(crate) fn put(staging: &Staging, name: &Path, content: &[u8]) -> Result<FileDigest> {
    staging.write_file(name, content)?;
    Ok(FileDigest { name: name.display().to_string(), bytes: content.len() as u64, sha256: Digest::of(content) })
}
