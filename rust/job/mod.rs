//! A job that writes: from a plan to files on disk, in units of work.
//!
//! | module | what |
//! |---|---|
//! | [`conversion`] | the source and its mapping to a format |
//! | [`stored`] | stored tensors and sizes of an output |
//! | [`mod@unit`] [`encode`] [`source_digest`] [`unit_journal`] | units of work and their records; the pass that writes; digests of the source; units that are on disk |
//! | [`part`] | some of the units of a job, for one of several machines |
//! | [`place`] [`staging`] [`identity`] | checks of the output path; the directory of an incomplete output; whose it is |
//! | [`side_files`] [`model_card`] | files next to the weights |
//! | [`ledger`] | the fate of every source tensor |
//! | [`read_back`] [`decode`] [`rebuild`] | comparison of written bytes with their digests; decoding; encoding again |

pub(crate) mod conversion;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod feedback;
pub(crate) mod identity;
pub(crate) mod ledger;
pub(crate) mod model_card;
pub(crate) mod part;
pub(crate) mod place;
pub(crate) mod read_back;
pub(crate) mod rebuild;
pub(crate) mod side_files;
pub(crate) mod source_digest;
pub(crate) mod staging;
pub(crate) mod stored;
pub(crate) mod unit;
pub(crate) mod unit_journal;
