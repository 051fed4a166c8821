//! Ways of storing rows in fewer bits, one file or folder each.

pub mod affine;
pub mod encoder;
