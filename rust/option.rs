//! The names of options, as errors and hints use them.
//!
//! The core does not know how a front end spells its options. It writes a mark into the text, `⟨min_bits⟩`, or
//! `⟨min_bits=2⟩` to suggest a value. A mark contains the name of the request's field. The front end replaces it by its own
//! spelling: `--min-bits 2` on the command line, `min_bits=2` in Python. `tests/rust/options.rs` checks every mark in the
//! sources against the list below. Texts of documents contain no marks.

use std::fmt;

macro_rules! options {
    ($($option:ident $name:literal,)*) => {
        /// An option that an error can be about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "each is named after a field of a request")]
        pub enum OptionName {
            $($option,)*
        }

        impl OptionName {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$option,)*];

            /// The name of the request's field.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$option => $name,)*
                }
            }
        }
    };
}

options! {
    Budget "budget",
    Check "check",
    ChunkBytes "chunk_bytes",
    Effort "effort",
    FloorDb "floor_db",
    Format "format",
    Generic "generic",
    Header "header",
    Keep "keep",
    MaxBits "max_bits",
    MaxMemory "max_memory",
    MaxTokens "max_tokens",
    MinBits "min_bits",
    Objective "objective",
    Output "output",
    Overwrite "overwrite",
    Part "part",
    Plan "plan",
    ProbeTokens "probe_tokens",
    RecordSeconds "record_seconds",
    Sample "sample",
    Schemes "schemes",
    Sensitivity "sensitivity",
    Source "source",
    Strict "strict",
    Target "target",
    Tensor "tensor",
    TensorParallel "tensor_parallel",
    Threads "threads",
    Tokens "tokens",
    Uniform "uniform",
    Window "window",
}

impl fmt::Display for OptionName {
    /// The mark without a value.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "⟨{}⟩", self.name())
    }
}
