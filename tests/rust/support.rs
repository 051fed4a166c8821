//! Input for the other test modules: reproducible pseudo-random numbers, and safetensors files.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::checkpoint::stream::{HELD_BYTES, Pass};
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::dtype::Float;
use crate::journal::Journal;
use crate::name::Name;
use crate::pool::Workers;
use crate::progress::Progress;
use crate::sensitivity::Candidate;
use crate::simd::Isa;
use proptest::test_runner::Config as ProptestConfig;

/// Runs this number of cases, and writes no regression files: the message contains the failing input.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A pseudo-random number generator (`SplitMix64`).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// A number in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// An approximately normal number of mean 0 and variance 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// `count` weights with the distribution of a layer, exact in `float`.
    pub(crate) fn weights(&mut self, count: usize, float: Float) -> Vec<f32> {
        (0..count).map(|_| float.round((0.05 * self.normal()) as f32)).collect()
    }
}

/// Path of the test data file `name`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A tensor of floats.
pub(crate) fn made(name: &str, float: Float, shape: &[u64], values: &[f32]) -> Made {
    let mut bytes = Vec::new();
    float.append(values, &mut bytes);
    Made { name: name.to_owned(), dtype: float.dtype().name(), shape: shape.to_vec(), bytes }
}

/// A file: length of the header, header, data.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A safetensors file of `tensors`. `metadata` contains the entries of its `__metadata__` as JSON.
pub(crate) fn safetensors(tensors: &[Made], metadata: &str) -> Vec<u8> {
    let mut header = format!("{{\"__metadata__\":{{{metadata}}}");
    let mut data = Vec::new();
    for Made { name, dtype, shape, bytes } in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        header += &serde_json::json!({ name: { "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] } })
            .to_string()
            .replacen('{', ",", 1);
        header.pop();
    }
    header.push('}');
    file(&header, &data)
}

/// A checkpoint of one shard, and its directory.
pub(crate) fn checkpoint(tensors: &[Made]) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors(tensors, "")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// Owns the threads and settings that a pass over a checkpoint borrows.
pub(crate) struct Crew {
    workers: Workers,
    pub(crate) progress: Progress,
    chunk_bytes: u64,
}

impl Crew {
    pub(crate) fn new(threads: usize, chunk_bytes: u64) -> Self {
        Self { workers: Workers::new(NonZeroUsize::new(threads)).unwrap(), progress: Progress::default(), chunk_bytes }
    }

    pub(crate) fn pass<'a>(&'a self, checkpoint: &'a Checkpoint, isa: Isa) -> Pass<'a> {
        let Self { workers, progress, chunk_bytes } = self;
        let journal = Journal::NONE;
        Pass { checkpoint, workers, progress, journal, isa, chunk_bytes: *chunk_bytes, held_bytes: HELD_BYTES }
    }
}

/// The parsed names of the tensors of `checkpoint`.
pub(crate) fn names(checkpoint: &Checkpoint) -> Vec<Name> {
    checkpoint.tensors.iter().map(|tensor| Name::parse(&tensor.name)).collect()
}

/// The matrices of `checkpoint` under their own names.
pub(crate) fn candidates<'a>(checkpoint: &Checkpoint, names: &'a [Name]) -> Vec<Candidate<'a>> {
    let of = |(target, (tensor, name)): (usize, (&Tensor, &'a Name))| {
        let matrix = tensor.matrix().filter(|_| tensor.shape.len() == 2)?;
        Some(Candidate { name, target, view: View::whole(target, tensor), matrix })
    };
    checkpoint.tensors.iter().zip(names).enumerate().filter_map(of).collect()
}
