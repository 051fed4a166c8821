//! Matrix products.

pub(in crate::probe) mod dense;
pub mod kernel;
pub(in crate::probe) mod stored;
