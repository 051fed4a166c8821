//! Codes with a scale and a bias for each group.

pub mod channels;
pub mod clip_grid;
pub mod grid;
pub mod mlx_rule;
pub mod pack;
pub mod search;

pub use channels::Channels;
pub use clip_grid::{CLIP_GRID, CLIP_GRID as TRIALS};
pub use grid::{GroupBuffers, GroupBuffers as Rows, MAX_SCHEMES, RowError, error, ranges};
pub use mlx_rule::{encode_plain, plain_errors};
pub use search::{encode_search, search_errors};
