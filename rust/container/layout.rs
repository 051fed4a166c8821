//! The layout of the output: the place of every byte, as a pure function of names, types and shapes.

use super::{Container, Metadata, Share};
use crate::dtype::Dtype;

/// Default limit of tensor data per file, in bytes: 5 GiB, as `mlx_lm` and the Hugging Face hub have it.
pub(crate) const SHARD_BYTES: u64 = 5 << 30;

/// What the names of the files of an output begin with, if nobody chooses them.
pub(crate) const STEM: &str = "model";

/// A tensor to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: u64,
    /// Whether its size is proportional to the rows of the matrix it encodes.
    pub grows: bool,
}

impl StoredTensor {
    /// Bytes per row of a matrix of `rows` rows; 0 if the size does not depend on the number of rows.
    pub(crate) fn row_bytes(&self, rows: u64) -> u64 {
        if self.grows { self.bytes.checked_div(rows).unwrap_or(0) } else { 0 }
    }

    /// The fields of a header entry: name, element type, shape, length in bytes.
    pub(super) fn listed(&self) -> (&str, Dtype, &[u64], u64) {
        (&self.name, self.dtype, &self.shape, self.bytes)
    }
}

/// The place of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Index into [`Layout::files`].
    pub file: usize,
    /// Offset of its data in that file, in bytes.
    pub offset: u64,
}

/// A file of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedFile {
    pub name: String,
    /// Everything before the data.
    pub head: Vec<u8>,
    /// Length of the file, in bytes.
    pub bytes: u64,
}

/// All files of weights, and the place of each tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub files: Vec<PlannedFile>,
    /// The place of each tensor of each module, in the order of the modules given to [`lay_out`].
    pub modules: Vec<Vec<Location>>,
}

impl Layout {
    /// Total length of the files, in bytes.
    #[must_use]
    pub(crate) fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The tensors of `modules` with their places. `modules` must be those that were laid out.
    pub(crate) fn placed<'a>(
        &'a self,
        modules: &'a [Vec<StoredTensor>],
    ) -> impl Iterator<Item = (&'a StoredTensor, Location)> {
        modules.iter().flatten().zip(self.modules.iter().flatten().copied())
    }
}

/// Lays out `modules` over files of at most `shard_bytes` of data each, whose names begin with `stem`. The tensors of a
/// module stay in one file, so a file with a single module may be longer. The files state `metadata`.
#[must_use]
pub(crate) fn lay_out(
    container: &dyn Container,
    stem: &str,
    modules: &[Vec<StoredTensor>],
    shard_bytes: u64,
    metadata: &Metadata<'_>,
) -> Layout {
    // Ranges of modules.
    let mut shards: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    for (at, module) in modules.iter().enumerate() {
        let bytes: u64 = module.iter().map(|tensor| tensor.bytes).sum();
        let is_empty = |range: &std::ops::Range<usize>| modules[range.clone()].iter().all(Vec::is_empty);
        match shards.last_mut() {
            Some((filled, range)) if is_empty(range) || *filled + bytes <= shard_bytes => {
                *filled += bytes;
                range.end = at + 1;
            }
            _ => shards.push((bytes, at..at + 1)),
        }
    }
    let (files, tensors) = (shards.len(), modules.iter().map(Vec::len).sum());
    let mut layout = Layout { files: Vec::with_capacity(files), modules: Vec::with_capacity(modules.len()) };
    for (file, (_, range)) in shards.into_iter().enumerate() {
        let here: Vec<&StoredTensor> = modules[range.clone()].iter().flatten().collect();
        let arranged = container.arrange(metadata, Share { file, files, tensors }, &here);
        let mut locations = arranged.offsets.iter().map(|&offset| Location { file, offset });
        let of_module = |module: &Vec<StoredTensor>| locations.by_ref().take(module.len()).collect();
        layout.modules.extend(modules[range].iter().map(of_module));
        let name = file_name(stem, file, files, container.extension());
        let (head, bytes) = (arranged.head, arranged.bytes);
        layout.files.push(PlannedFile { name, head, bytes });
    }
    layout
}

/// The name of file `at` of `count`, as Hugging Face's tools and llama.cpp have it.
pub(super) fn file_name(stem: &str, at: usize, count: usize, extension: &str) -> String {
    if count == 1 { format!("{stem}.{extension}") } else { format!("{stem}-{:05}-of-{count:05}.{extension}", at + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Safetensors;

    fn stored(name: &str, dtype: Dtype, elements: u64) -> StoredTensor {
        let bytes = dtype.bytes(elements).unwrap();
        StoredTensor { name: name.to_owned(), dtype, shape: vec![elements], bytes, grows: true }
    }

    fn data(layout: &Layout, modules: &[Vec<StoredTensor>]) -> Vec<Vec<u8>> {
        let mut files: Vec<Vec<u8>> = layout.files.iter().map(|file| vec![0; file.bytes as usize]).collect();
        for (file, planned) in files.iter_mut().zip(&layout.files) {
            file[..planned.head.len()].copy_from_slice(&planned.head);
        }
        for (at, (tensor, Location { file, offset })) in layout.placed(modules).enumerate() {
            files[file][offset as usize..][..tensor.bytes as usize].fill(at as u8 + 1);
        }
        files
    }

    #[test]
    fn the_reference_reader_finds_every_tensor_where_it_was_planned() {
        let modules = vec![
            vec![
                stored("a.weight", Dtype::U32, 7),
                stored("a.scales", Dtype::BF16, 3),
                stored("odd \"q\"", Dtype::U8, 5),
            ],
            vec![stored("b", Dtype::F32, 1), stored("empty", Dtype::BF16, 0)],
        ];
        let layout = lay_out(&Safetensors, STEM, &modules, SHARD_BYTES, &Metadata::Texts(&[("format", "mlx")]));
        assert_eq!(layout.files[0].name, "model.safetensors");
        let files = data(&layout, &modules);
        let read = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
        assert_eq!(read.len(), 5);
        for (at, (tensor, place)) in layout.placed(&modules).enumerate() {
            let found = read.tensor(&tensor.name).unwrap();
            assert_eq!(found.data(), vec![at as u8 + 1; tensor.bytes as usize]);
            assert!(place.offset.is_multiple_of(tensor.dtype.bits() / 8), "{} is aligned", tensor.name);
        }
        assert_eq!(layout.file_bytes(), files[0].len() as u64);
    }

    #[test]
    fn shards_are_filled_in_order_and_modules_stay_whole() {
        let module = |name: &str, bytes: u64| {
            vec![stored(&format!("{name}.weight"), Dtype::U8, bytes - 2), stored(name, Dtype::U8, 2)]
        };
        let modules = vec![module("a", 60), module("b", 40), module("c", 10), module("d", 150), module("e", 5)];
        let layout = lay_out(&Safetensors, STEM, &modules, 100, &Metadata::Texts(&[("format", "mlx")]));
        let names: Vec<_> = layout.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names[0], "model-00001-of-00004.safetensors");
        assert_eq!(
            layout.modules.iter().flatten().map(|at| at.file).collect::<Vec<_>>(),
            [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
        );
        let index: serde_json::Value =
            serde_json::from_str(&Safetensors.index(&layout, &modules, 7).unwrap().1).unwrap();
        assert_eq!(index["metadata"]["total_size"], 265);
        assert_eq!(index["weight_map"]["d.weight"], names[2]);
    }
}
