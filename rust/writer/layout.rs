//! Where every byte of the output will be: a pure function of names, types and shapes.

use std::collections::BTreeMap;

use crate::checkpoint::header::compose;
use crate::dtype::Dtype;

/// Tensor data per file, unless the caller says otherwise: 5 GiB, as `mlx_lm` and the Hugging Face hub like it.
pub const SHARD_BYTES: u64 = 5 << 30;

/// A tensor to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Where a stored tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which file.
    pub file: usize,
    /// Offset of its data in that file, in bytes.
    pub offset: u64,
}

/// A file of the output: its header, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// Header length, header and padding: everything before the data.
    pub head: Vec<u8>,
    /// Its length.
    pub bytes: u64,
    /// The tensors in it, in the order of their data.
    pub tensors: Vec<usize>,
}

/// All files of weights, and where each tensor is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The files.
    pub files: Vec<PlannedFile>,
    /// Location of each stored tensor, in the order they were given.
    pub locations: Vec<Location>,
}

impl Layout {
    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Lays out `modules`, each a list of tensors that belong together, over files of at most `shard_bytes` of data (or
/// one module, if that is longer). `format` goes into the files' metadata.
///
/// Within a file tensors are ordered by falling alignment, so that each lies at a multiple of its element's size
/// without gaps; then as they come.
#[must_use]
pub fn lay_out(modules: &[Vec<Stored>], shard_bytes: u64, format: &str) -> Layout {
    let stored: Vec<&Stored> = modules.iter().flatten().collect();
    let mut shards: Vec<(u64, Vec<usize>)> = Vec::new();
    let mut next = 0;
    for module in modules {
        let bytes: u64 = module.iter().map(|tensor| tensor.bytes).sum();
        if shards.last().is_none_or(|(filled, tensors)| !tensors.is_empty() && filled + bytes > shard_bytes) {
            shards.push((0, Vec::new()));
        }
        if let Some((filled, tensors)) = shards.last_mut() {
            *filled += bytes;
            tensors.extend(next..next + module.len());
        }
        next += module.len();
    }
    let count = shards.len();
    let mut locations = vec![Location { file: 0, offset: 0 }; stored.len()];
    let mut files = Vec::with_capacity(count);
    for (file, (data_bytes, mut tensors)) in shards.into_iter().enumerate() {
        tensors.sort_by_key(|&at| (std::cmp::Reverse(stored[at].dtype.bits()), at));
        let name = if count == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", file + 1)
        };
        let listed = tensors.iter().map(|&at| stored[at]);
        let head = compose(
            &[("format", format)],
            listed.map(|Stored { name, dtype, shape, bytes }| (name.as_str(), *dtype, shape.as_slice(), *bytes)),
        );
        let mut offset = head.len() as u64;
        for &at in &tensors {
            locations[at] = Location { file, offset };
            offset += stored[at].bytes;
        }
        let bytes = head.len() as u64 + data_bytes;
        files.push(PlannedFile { name, head, bytes, tensors });
    }
    Layout { files, locations }
}

/// The index of the files of `layout`, as `model.safetensors.index.json` holds it; `parameters` is the number of
/// weights that the tensors stand for.
#[must_use]
pub fn index(layout: &Layout, modules: &[Vec<Stored>], parameters: u64) -> String {
    let stored = modules.iter().flatten().zip(&layout.locations);
    let total_size: u64 = modules.iter().flatten().map(|tensor| tensor.bytes).sum();
    let weight_map: BTreeMap<&str, &str> =
        stored.map(|(tensor, at)| (tensor.name.as_str(), layout.files[at.file].name.as_str())).collect();
    let index = serde_json::json!({
        "metadata": { "total_size": total_size, "total_parameters": parameters },
        "weight_map": weight_map,
    });
    format!("{index:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str, dtype: Dtype, elements: u64) -> Stored {
        let bytes = dtype.bytes(elements).unwrap();
        Stored { name: name.to_owned(), dtype, shape: vec![elements], bytes }
    }

    fn data(layout: &Layout, modules: &[Vec<Stored>]) -> Vec<Vec<u8>> {
        let mut files: Vec<Vec<u8>> = layout.files.iter().map(|file| vec![0; file.bytes as usize]).collect();
        for (file, planned) in files.iter_mut().zip(&layout.files) {
            file[..planned.head.len()].copy_from_slice(&planned.head);
        }
        for (at, tensor) in modules.iter().flatten().enumerate() {
            let Location { file, offset } = layout.locations[at];
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
        let layout = lay_out(&modules, SHARD_BYTES, "mlx");
        assert_eq!(layout.files[0].name, "model.safetensors");
        let files = data(&layout, &modules);
        let read = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
        assert_eq!(read.len(), 5);
        for (at, tensor) in modules.iter().flatten().enumerate() {
            let found = read.tensor(&tensor.name).unwrap();
            assert_eq!(found.data(), vec![at as u8 + 1; tensor.bytes as usize]);
            assert!(layout.locations[at].offset.is_multiple_of(tensor.dtype.bits() / 8), "{} is aligned", tensor.name);
        }
        assert_eq!(layout.file_bytes(), files[0].len() as u64);
    }

    #[test]
    fn shards_are_filled_in_order_and_modules_stay_whole() {
        let module = |name: &str, bytes: u64| {
            vec![stored(&format!("{name}.weight"), Dtype::U8, bytes - 2), stored(name, Dtype::U8, 2)]
        };
        let modules = vec![module("a", 60), module("b", 40), module("c", 10), module("d", 150), module("e", 5)];
        let layout = lay_out(&modules, 100, "mlx");
        let names: Vec<_> = layout.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names[0], "model-00001-of-00004.safetensors");
        assert_eq!(layout.locations.iter().map(|at| at.file).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]);
        let index: serde_json::Value = serde_json::from_str(&index(&layout, &modules, 7)).unwrap();
        assert_eq!(index["metadata"]["total_size"], 265);
        assert_eq!(index["weight_map"]["d.weight"], names[2]);
    }
}
