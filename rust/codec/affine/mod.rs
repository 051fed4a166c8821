//! Codes with a scale and a bias for each group.

pub mod channels;
pub mod codes;
pub mod grid;
pub mod mlx_rule;
pub mod pack;
pub mod search;

pub use channels::Channels;
pub use grid::{MAX_SCHEMES, RowError, Rows, error, ranges};
pub use mlx_rule::{encode_plain, plain_errors};
pub use search::{TRIALS, encode_search, search_errors};
