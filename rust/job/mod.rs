//! A job that writes: from a plan to files on disk, in units of work.
//!
//! | module | what |
//! |---|---|
//! | [`conversion`] | the source and its mapping to a format |
//! | [`stored`] | stored tensors and sizes of an output |
//! | [`mod@unit`] [`encode`] [`source_digest`] | units of work and their records; the pass that writes; digests of the source |
//! | [`place`] [`staging`] | checks of the output path; the directory of an incomplete output |
//! | [`side_files`] [`model_card`] | files next to the weights |
//! | [`ledger`] | the fate of every source tensor |
//! | [`read_back`] [`decode`] | comparison of written bytes with their digests; decoding |

pub(crate) mod conversion;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod feedback;
pub(crate) mod ledger;
pub(crate) mod model_card;
pub(crate) mod place;
pub(crate) mod read_back;
pub(crate) mod side_files;
pub(crate) mod source_digest;
pub(crate) mod staging;
pub(crate) mod stored;
pub(crate) mod unit;
