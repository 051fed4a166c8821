//! What the crate promises, checked against oracles: golden files, naive loops, brute force, hostile input.
//!
//! These modules are part of the crate's own unit tests (`rust/lib.rs` includes this file), so that they see what is not
//! public and the crate is compiled once. They are named after the modules of `rust/` whose promises they check. Tests of
//! one function stay beside that function. [`support`] makes the input.

mod allocate;
mod architecture;
mod checkpoint {
    mod directories;
    mod headers;
}
mod codec {
    mod cases;
    mod cross_arch;
    mod encoding;
    mod feedback;
    mod float;
    mod ggml;
    mod symmetric;
}
mod container {
    mod damage;
    mod gguf;
    mod gguf_refused;
    mod layouts;
}
mod options;
mod probe;
mod rate_distortion;
mod schema;
mod sensitivity {
    mod file;
    mod propagate;
}
pub(crate) mod support;
pub(crate) mod toy;
