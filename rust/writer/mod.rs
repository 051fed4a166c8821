//! Writing what was planned: offsets first, then data, then the name.
//!
//! The size of everything is known before a byte is written ([`layout`]), so files are created at their length and
//! workers write disjoint ranges of them. All of it happens in `<out>.partial`, which gets its name when it is complete
//! and is removed when it is not ([`partial`]).

pub mod layout;
pub mod partial;
