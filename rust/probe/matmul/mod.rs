//! Matrix products.

pub(in crate::probe) mod dense;
pub(crate) mod kernel;
pub(in crate::probe) mod stored;
