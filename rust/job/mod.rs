//! A job that writes: from a plan to files on disk, in units of work.
//!
//! | module | what |
//! |---|---|
//! | [`conversion`] | the source, and what a format makes of it |
//! | [`stored`] | what is stored for tensors in their schemes, and how large that is |
//! | [`unit`] [`encode`] [`source_digest`] | units of work and their records; the pass that writes; digests of the source |
//! | [`place`] [`staging`] | where an output may go; the directory until it is complete |
//! | [`side_files`] [`model_card`] | files beside the weights |
//! | [`ledger`] | what became of what |
//! | [`read_back`] [`decode`] | is every byte what was written; what it decodes to |

pub mod conversion;
pub mod decode;
pub mod encode;
pub mod ledger;
pub mod model_card;
pub mod place;
pub mod read_back;
pub mod side_files;
pub mod source_digest;
pub mod staging;
pub mod stored;
pub mod unit;
