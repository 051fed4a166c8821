//! The role prior: the gain of a matrix from its role and depth, a small table measured once on other models.
//!
//! An entry is the loss, in nats per token, of an error as large as the matrix's own output: the gain of a matrix is
//! `r = 2 · prior / Σ_ij k_j w_ij²`, so that `L = prior · (noise energy ÷ signal energy at its output)`.
//!
//! `docs/method.md` ("The role prior") describes the measurement. It was not made on the model to be quantized:
//! [`Prior::None`] disables the prior, and gains from a sensitivity file or from the probe replace it.

use std::str::FromStr;

use crate::name::Role;

/// Version of the table. A change of any number is a new version.
pub(crate) const VERSION: u32 = 1;

/// Nats per token for an error as large as the output, in the middle of a model.
const BY_ROLE: [(Role, f64); 13] = [
    (Role::Embedding, 3.0),
    (Role::Head, 5.3),
    (Role::Query, 0.046),
    (Role::Key, 0.046),
    (Role::Value, 0.2),
    (Role::QueryKeyValue, 0.15),
    (Role::Output, 0.095),
    (Role::Gate, 0.17),
    (Role::Up, 0.22),
    (Role::GateUp, 0.2),
    (Role::Down, 0.33),
    (Role::Router, 1.0),
    (Role::Other, 0.2),
];

/// Factors of the first layers.
const AT_THE_START: [f64; 3] = [2.4, 1.6, 1.2];

/// Factor of the last layer.
const AT_THE_END: f64 = 2.5;

/// Whether the table is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// By role and depth.
    #[default]
    Roles,
    /// Every matrix has the same prior.
    None,
}

impl FromStr for Prior {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "roles" => Ok(Self::Roles),
            "none" => Ok(Self::None),
            _ => Err("is neither `roles` nor `none`".to_owned()),
        }
    }
}

impl Prior {
    /// Nats per token for an error as large as the output of a matrix of `role`, in `layer` of `layers`.
    #[must_use]
    pub fn of(self, role: Role, layer: Option<usize>, layers: usize) -> f64 {
        if self == Self::None {
            return 1.0;
        }
        let by_role = BY_ROLE.iter().find(|(of, _)| *of == role).or(BY_ROLE.last()).map_or(1.0, |(_, loss)| *loss);
        let by_depth = match layer {
            Some(layer) if layer + 1 == layers => AT_THE_END,
            Some(layer) => AT_THE_START.get(layer).copied().unwrap_or(1.0),
            None => 1.0,
        };
        by_role * by_depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_count_more_and_none_counts_alike() {
        let of = |layer, layers| Prior::Roles.of(Role::Down, Some(layer), layers);
        let middle = of(4, 8);
        assert_eq!(of(5, 8), middle);
        assert!(of(0, 8) > of(1, 8) && of(1, 8) > of(2, 8) && of(2, 8) > middle);
        assert!(of(7, 8) > of(0, 8));
        // The only layer is the last one.
        assert_eq!(of(0, 1), of(7, 8));
        assert!(Prior::Roles.of(Role::Query, Some(4), 8) < middle);
        assert!(Prior::Roles.of(Role::Head, None, 8) > middle);
        assert_eq!(Prior::None.of(Role::Down, Some(0), 8), Prior::None.of(Role::Query, Some(3), 8));
    }

    #[test]
    fn every_matrix_has_an_entry_above_zero() {
        assert!(BY_ROLE.iter().all(|(_, loss)| *loss > 0.0));
        assert_eq!(BY_ROLE.last().map(|(role, _)| *role), Some(Role::Other), "the last one is for all others");
    }
}
