//! The table of model families: conventions that only their code contains, the storage of matrices in their releases, and
//! the names that runtimes use. A new family is an entry in `table.rs`; a family like Llama is one word there.
//!
//! The probe and the output formats derive everything family-specific from this table. Names of tensors are
//! [patterns](super::pattern). In an entry, the first rule that matches a name applies. A tensor without a matching rule is
//! stored as it is used.

pub(crate) mod gguf;
mod table;

use super::pattern::{PatternMatch, matches};
use crate::checkpoint::View;
use table::{BUFFERS, FAMILIES};

/// A convention that the code of a family contains but its configuration does not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// Embeddings are multiplied by the square root of their width, rounded to their own type.
    ScaledEmbedding,
    /// That root is rounded to bfloat16, whatever type embeddings are stored in.
    RoundedScale,
    /// The activation is GELU in its tanh form, unless `hidden_activation` says otherwise; `hidden_act` is ignored.
    TanhGelu,
    /// The activation is GELU in its tanh form if the configuration names none.
    GeluByDefault,
    /// Attention and MLP both read the layer's input.
    Parallel,
    /// RoPE pairs are adjacent channels, not half a head apart.
    AdjacentPairs,
    /// Queries, keys and values are fused head by head.
    FusedByHead,
    /// The gate is clamped and sharpened, and `up` is clamped and shifted by one (gpt-oss).
    ClampedGate,
    /// Experts are scored by a sigmoid each, not by a softmax.
    SigmoidRouting,
    /// The weights of the chosen experts add up to one. The configuration is ignored.
    NormalisedShares,
    /// Every other layer, from the first on, has a sliding window.
    AlternateWindows,
}

/// The conversion of a stored tensor to one that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// It is used as it is stored.
    Same,
    /// It is matrix `#` of a stack.
    Expert,
    /// It is a matrix, or a stack of matrices.
    Matrices {
        /// Stored with a row for each input.
        input_major: bool,
        outputs: Outputs,
    },
    /// Every second element of each row, from this one on.
    Interleaved(u64),
    /// One is added to each element: norms that are stored minus one.
    PlusOne,
    /// The last two dimensions are swapped.
    SwappedAxes,
    /// Of keys and values of multi-head latent attention: the rows of the keys of each head, transposed.
    LatentKeys,
    /// Of keys and values of multi-head latent attention: the rows of the values of each head.
    LatentValues,
}

/// Outputs of a matrix that holds gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// All of them: it holds one thing only.
    All,
    /// The first half, or the second.
    Half(u64),
    /// Every second one, from this one on.
    Alternate(u64),
}

impl Outputs {
    /// These outputs of `matrix`, which has `rows` rows.
    #[must_use]
    pub(crate) fn of(self, matrix: View, rows: u64) -> View {
        match self {
            Self::All => matrix,
            Self::Half(half) => matrix.rows(half * rows / 2, 1, rows / 2),
            Self::Alternate(first) => matrix.rows(first, 2, rows / 2),
        }
    }
}

/// The storage of tensors whose names match a pattern.
#[derive(Debug)]
pub struct StorageRule {
    stored: &'static str,
    becomes: Becomes,
}

/// The use of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// Tensors that are used, by the pattern of their names.
    Used(&'static [(&'static str, Transform)]),
    /// Nothing: a buffer, computed from the configuration.
    Buffer,
    /// Nothing: a copy of the embedding, which is the head.
    TiedHead,
}

/// The form in which `mlx-lm` expects a family.
#[derive(Clone, Copy, Debug)]
pub struct MlxColumn {
    /// Prefixes of names, and their replacements in `mlx-lm`. The first match applies.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// Its name for `experts`, the module of stacked experts.
    pub experts: &'static str,
    /// Rules for tensors that it uses in another form than the release.
    pub rules: &'static [&'static [StorageRule]],
    /// Whether it adds one to gains that are stored minus one.
    pub plus_one: bool,
    /// Matrices that it holds outside of any module, and so cannot read quantized.
    pub raw: &'static [&'static str],
}

/// Models that share code.
#[derive(Debug)]
pub struct ModelFamily {
    types: &'static [&'static str],
    /// Conventions of their forward pass that their configuration does not state; `None` if their forward pass is unknown.
    pub quirks: Option<&'static [Quirk]>,
    storage: &'static [&'static [StorageRule]],
    pub mlx: MlxColumn,
}

/// The family of `model_type`.
#[must_use]
pub(crate) fn family(model_type: &str) -> Option<&'static ModelFamily> {
    FAMILIES.iter().find(|family| family.types.contains(&model_type))
}

/// Whether the tensor `name` is a buffer in any family.
#[must_use]
pub(crate) fn is_buffer(name: &str) -> bool {
    StorageRule::find(BUFFERS.iter(), name).is_some()
}

impl StorageRule {
    fn find(mut rules: impl Iterator<Item = &'static Self>, name: &str) -> Option<(Becomes, PatternMatch<'_>)> {
        rules.find_map(|rule| Some((rule.becomes, matches(rule.stored, name)?)))
    }
}

impl ModelFamily {
    /// The use of the tensor `name` of a release, if it is not used as it is stored.
    #[must_use]
    pub fn stored<'n>(&self, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        StorageRule::find(self.storage.iter().copied().chain([BUFFERS]).flatten(), name)
    }

    /// The use of the tensor `name` of a release in `mlx-lm` only.
    #[must_use]
    pub fn stored_for_mlx<'n>(&self, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        StorageRule::find(self.mlx.rules.iter().copied().flatten(), name)
    }

    /// The name in `mlx-lm` of the tensor that other runtimes use as `used`.
    #[must_use]
    pub fn mlx_name(&self, used: &str) -> String {
        let name = used.replacen(".experts.", &format!(".{}.", self.mlx.experts), 1);
        let renamed = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
        self.mlx.prefixes.iter().find_map(renamed).unwrap_or(name)
    }

    /// The pattern under which a release stores each expert of the stack `used`, with `#` for the expert.
    #[must_use]
    pub fn expert_pattern(&self, used: &str) -> String {
        let is_expert =
            |rule: &&StorageRule| matches!(rule.becomes, Becomes::Used([(of, Transform::Expert)]) if *of == used);
        match self.storage.iter().copied().flatten().find(is_expert) {
            Some(rule) => rule.stored.to_owned(),
            None => used.replacen(".experts.", ".experts.#.", 1),
        }
    }

    /// Whether the parts of the tensor `name` are matrices for which `is` holds.
    fn has_matrices(&self, name: &str, is: impl Fn(bool, Outputs) -> bool) -> bool {
        let Some((Becomes::Used(parts), _)) = self.stored(name) else { return false };
        parts.iter().any(|(_, transform)| match transform {
            Transform::Matrices { input_major, outputs } => is(*input_major, *outputs),
            _ => false,
        })
    }

    /// Whether the matrix or stack `name` is stored with a row for each input.
    #[must_use]
    pub fn is_input_major(&self, name: &str) -> bool {
        self.has_matrices(name, |input_major, _| input_major)
    }

    /// Whether gate and up alternate among the outputs of fused matrices; otherwise the gate comes first.
    #[must_use]
    pub fn interleaves(&self) -> bool {
        let parts = self.storage.iter().copied().flatten().filter_map(|rule| match rule.becomes {
            Becomes::Used(parts) => Some(parts),
            Becomes::Buffer | Becomes::TiedHead => None,
        });
        let alternates =
            |transform: &Transform| matches!(transform, Transform::Matrices { outputs: Outputs::Alternate(_), .. });
        parts.flatten().any(|(_, transform)| alternates(transform))
    }

    /// Whether the norm `name` is stored minus one.
    #[must_use]
    pub fn is_minus_one(&self, name: &str) -> bool {
        matches!(self.stored(name), Some((Becomes::Used([(_, Transform::PlusOne)]), _)))
    }

    /// Whether the tensor `name` is a buffer, which no forward pass reads.
    #[must_use]
    pub fn is_buffer(&self, name: &str) -> bool {
        matches!(self.stored(name), Some((Becomes::Buffer, _)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_type_is_in_two_families() {
        let mut types: Vec<&str> = FAMILIES.iter().flat_map(|family| family.types).copied().collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }

    #[test]
    fn facts_of_storage_are_those_of_the_rules() {
        let of = |model_type: &str| family(model_type).unwrap();
        assert!(of("gpt2").is_input_major("transformer.h.3.attn.c_attn.weight"));
        assert!(!of("gpt2").is_input_major("transformer.wte.weight"));
        assert!(of("gpt_oss").is_input_major("model.layers.0.mlp.experts.down_proj"));
        assert!(!of("gpt_oss").is_input_major("model.layers.0.mlp.experts.down_proj_blocks"));
        assert!(of("gpt_oss").interleaves() && !of("llama4").interleaves() && !of("llama").interleaves());
        assert!(of("gemma3_text").is_minus_one("model.layers.0.self_attn.q_norm.weight"));
        assert!(of("qwen3_next").is_minus_one("model.norm.weight"));
        assert!(!of("qwen3_next").is_minus_one("model.layers.0.linear_attn.norm.weight"));
        assert!(of("gpt_neox").is_buffer("gpt_neox.layers.0.attention.bias"));
        assert!(of("llama").is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq"));
        assert!(!of("llama").is_buffer("model.layers.0.attention.bias"));
    }
}
