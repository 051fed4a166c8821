//! Checkpoints that another program laid out under the names of a format.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Arrangement, Target};
use crate::name::{Name, Role};

/// What the program that laid a checkpoint out says of its modules, by their paths. Names do not always say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForeignLayout {
    /// The program, and its version.
    pub by: String,
    /// Modules whose weight is a stack of matrices.
    pub stacks: BTreeSet<String>,
    /// Modules whose output chooses experts.
    pub routers: BTreeSet<String>,
    /// Modules that the program has no quantized form of.
    pub unquantizable: BTreeSet<String>,
    /// What it changed so that the checkpoint fits, in sentences.
    pub notes: Vec<String>,
}

impl ForeignLayout {
    /// Marks the targets of `arrangement` that are stacks, or cannot be quantized.
    pub(crate) fn apply(&self, arrangement: &mut Arrangement) {
        for target in &mut arrangement.targets {
            let Name { module, is_weight, .. } = Name::parse(&target.name);
            if is_weight && self.unquantizable.contains(&module) {
                target.unquantizable = Some("the program that laid the model out has no quantized form of it");
            }
            if is_weight && self.stacks.contains(&module) {
                as_stack(target);
            }
        }
    }

    /// `name` with the role that the program gives it, if that is known.
    #[must_use]
    pub(crate) fn named(&self, name: Name) -> Name {
        let is_router = name.is_weight && self.routers.contains(&name.module);
        if is_router { Name { role: Role::Router, ..name } } else { name }
    }
}

/// Makes `target` a stack of matrices, if it has three dimensions.
pub(super) fn as_stack(target: &mut Target) {
    let &[count, _, _] = target.shape.as_slice() else { return };
    if target.stacked || target.shape.contains(&0) {
        return;
    }
    target.views = (0..count).map(|at| target.views[0].matrix_of(at, count)).collect();
    target.stacked = true;
}
