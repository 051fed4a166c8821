//! Passes over matrices.

pub mod energy;
