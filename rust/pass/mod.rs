//! Passes over matrices: the loop over bands ([`fold`]), and the energies of matrices ([`energy`]).

pub(crate) mod energy;
pub(crate) mod fold;

pub(crate) use fold::{BandAt, BandJob, BandSelection};
