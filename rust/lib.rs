//! `ramrs` compresses LLM checkpoints to a given size, from their weights alone.
//!
//! It needs no calibration text, no GPU and no network. `docs/design.md` describes the architecture and `docs/method.md` the
//! mathematics. A module uses only modules above it in this table; a test checks it:
//!
//! | rank | modules | duty |
//! |---|---|---|
//! | 0 | `option` `error` `progress` `dtype` `math` `digest` | names of options; errors; events and cancellation; element types; exponential, logarithm, sine and cosine; SHA-256 |
//! | 1 | `simd` `name` `pool` `journal` `matmul` | vector instructions; tensor name → role, layer, expert; an ordered parallel map; records of finished work; products of matrices in memory |
//! | 2 | `band` `codec` `container` `checkpoint` | tiles of eight rows; rows ↔ bytes; files of tensors; headers, index, shards, prequantized weights, views, streams of rows |
//! | 3 | `pass` `arch` `format` | the loop over bands; model families and the tensors of their layers; one folder per output format |
//! | 4 | `policy` `budget` `probe` `sensitivity` | schemes allowed for each tensor; budgets; forward and backward passes over sampled vocabulary tokens; cost of an error in each weight |
//! | 5 | `rate_distortion` `allocate` `evaluate` | rate–distortion curves; budget → allocation with a bound; divergence of a model from its reference |
//! | 6 | `schema` | analyses, plans, manifests |
//! | 7 | `job` | units of work that write; reading back |
//! | 8 | `pipeline` | the verbs and the order of their stages |
//! | 9 | `py` | the Python bindings (feature `python`) |

mod allocate;
mod arch;
mod band;
mod budget;
mod checkpoint;
mod codec;
mod container;
mod digest;
mod dtype;
mod error;
mod evaluate;
mod format;
mod job;
mod journal;
mod math;
mod matmul;
mod name;
mod option;
mod pass;
mod pipeline;
mod policy;
mod pool;
mod probe;
mod progress;
#[cfg(feature = "python")]
mod py;
mod rate_distortion;
mod schema;
mod sensitivity;
mod simd;

pub use codec::{Effort, Scheme};
pub use error::{Error, Result};
pub use evaluate::{Divergence, Estimate, Quantiles, TokenOrigin};
pub use format::{ForeignLayout, ReadKeys};
pub use job::part::JobPart;
pub use option::OptionName;
pub use pipeline::*;
pub use policy::PolicyOptions;
pub use probe::{Mode as ProbeMode, Options as ProbeOptions};
pub use progress::Progress;
pub use rate_distortion::Objective;
pub use schema::Saved;
pub use schema::analysis::Analysis;
pub use schema::manifest::{Check, Manifest};
pub use schema::plan::Plan;
pub use sensitivity::prior::Prior;

/// Items that `benches/` measure. They are not part of the interface and may change with any commit.
#[doc(hidden)]
pub mod bench {
    pub use crate::arch::runnable;
    pub use crate::band::{Matrix, append, bands, chunk_bands, cut, energy, load, rows_of};
    pub use crate::checkpoint::prequantized::{Blocks, Packing};
    pub use crate::checkpoint::stream::{CHUNK_BYTES, HELD_BYTES, Pass, Reader};
    pub use crate::checkpoint::{Checkpoint, Tensor, View};
    pub use crate::codec::affine::encoder::{Encoded, GridEncoder};
    pub use crate::codec::affine::pack::pack;
    pub use crate::codec::affine::{Affine, Channels};
    pub use crate::codec::feedback::{Factor, FeedbackTarget, SLAB_ROWS, Slab, encode as encode_slab};
    pub use crate::codec::{Band, Effort, Encoder, Metric, PartSpec, Scratch};
    pub use crate::container::file::{PageBuffer, read_at};
    pub use crate::dtype::{Float, Float8};
    pub use crate::journal::Journal;
    pub use crate::matmul::dense::{matmul_nn, matmul_nt};
    pub use crate::matmul::symmetric::{Compute, SymmetricMatrix};
    pub use crate::pass::energy::{DeadWeights, EnergyJob, energies};
    pub use crate::pool::Workers;
    pub use crate::probe::{Mode, Options, probe};
    pub use crate::progress::Progress;
    pub use crate::rate_distortion::{Member, StackJob, curves};
    pub use crate::sensitivity::{Gain, MatrixSensitivity, Origin, Vectors};
    pub use crate::simd::Isa;
    pub use crate::simd::vector::{BAND_ROWS, Column};
}

/// What `fuzz/` feeds with bytes. It is not part of the interface, either.
#[doc(hidden)]
pub mod fuzz {
    pub use crate::container::read_bytes;
}

#[cfg(test)]
#[path = "../tests/rust/mod.rs"]
mod tests;
