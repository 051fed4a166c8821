//! Passes over matrices: the one loop over bands ([`fold`]), and what it finds without a scheme ([`energy`]).

pub mod energy;
pub mod fold;

pub use fold::{BandAt, BandJob, Which};
