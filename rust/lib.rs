//! `ramrs` compresses LLM checkpoints from their weights alone, to a size the user names.
//!
//! No calibration text, no forward pass over data, no GPU, no network. See `docs/design.md` for the architecture, and
//! `docs/method.md` for the mathematics. A module uses only modules above it in this list (a test holds that):
//!
//! | rank | modules | duty |
//! |---|---|---|
//! | 0 | [`mod@option`] [`error`] [`progress`] [`dtype`] [`math`] [`digest`] | names of options; errors; events and cancellation; element types; exponential, logarithm, sine and cosine; SHA-256 |
//! | 1 | [`simd`] [`name`] [`pool`] | vector instructions; tensor name → role, layer, expert; an ordered parallel map |
//! | 2 | [`band`] [`codec`] [`container`] [`checkpoint`] | eight rows side by side; rows ↔ bytes; files of tensors; headers, index, shards, prequantized weights, views, streams of rows |
//! | 3 | [`pass`] [`arch`] [`mod@format`] | the loop over bands; which tensor plays which part; one folder for each output format |
//! | 4 | [`policy`] [`budget`] [`probe`] [`sensitivity`] | what may be quantized to what; how large the result may be; the model run on its own vocabulary; how much an error matters |
//! | 5 | [`rate_distortion`] [`allocate`] | rate–distortion curves; budget → allocation with a bound |
//! | 6 | [`schema`] | analyses, plans, manifests |
//! | 7 | [`job`] | units of work that write, and reading back what they wrote |
//! | 8 | [`pipeline`] | the verbs, and the only place that knows the order of the stages |
//! | 9 | `py` | the Python door (feature `python`) |

pub mod allocate;
pub mod arch;
pub mod band;
pub mod budget;
pub mod checkpoint;
pub mod codec;
pub mod container;
pub mod digest;
pub mod dtype;
pub mod error;
pub mod format;
pub mod job;
pub mod math;
pub mod name;
pub mod option;
pub mod pass;
pub mod pipeline;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod progress;
#[cfg(feature = "python")]
mod py;
pub mod rate_distortion;
pub mod schema;
pub mod sensitivity;
pub mod simd;

#[cfg(test)]
#[path = "../tests/rust/mod.rs"]
mod tests;
