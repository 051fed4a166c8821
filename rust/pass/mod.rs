//! Passes over matrices: the one loop over bands ([`fold`]), and what it finds without a scheme ([`energy`]).

pub(crate) mod energy;
pub(crate) mod fold;

pub(crate) use fold::{BandAt, BandJob, Which};
