//! Products of matrices in memory.
//!
//! | module | contents |
//! |---|---|
//! | `kernel` | the loops that fit the registers, and the order of every sum |
//! | `dense` | products of small matrices, of one window or one head |
//! | `symmetric` | symmetric matrices as sums of products, and their triangular factors |

pub(crate) mod dense;
pub(crate) mod kernel;
pub(crate) mod symmetric;
