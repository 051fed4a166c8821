//! A job that writes: from a plan to files on disk, in units of work.
//!
//! | module | what |
//! |---|---|
//! | [`conversion`] | the source, and what a format makes of it |
//! | [`stored`] | what is stored for tensors in their schemes, and how large that is |
//! | [`mod@unit`] [`encode`] [`source_digest`] | units of work and their records; the pass that writes; digests of the source |
//! | [`place`] [`staging`] | where an output may go; the directory until it is complete |
//! | [`side_files`] [`model_card`] | files beside the weights |
//! | [`ledger`] | what became of what |
//! | [`read_back`] [`decode`] | is every byte what was written; what it decodes to |

pub(crate) mod conversion;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod ledger;
pub(crate) mod model_card;
pub(crate) mod place;
pub(crate) mod read_back;
pub(crate) mod side_files;
pub(crate) mod source_digest;
pub(crate) mod staging;
pub(crate) mod stored;
pub(crate) mod unit;
