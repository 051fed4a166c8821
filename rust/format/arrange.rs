//! The tensors of a runtime that holds the experts of a layer as one stack, from those of a checkpoint: applies the table of
//! [families](crate::arch::families).

use std::collections::BTreeMap;

use crate::arch::families::{Becomes, ModelFamily, Transform};
use crate::arch::pattern::PatternMatch;
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::format::readable::{check_names, is_beyond_layers, matrices, tied_head};
use crate::format::{Arrangement, Disposition, Target};
use crate::name::{Name, Role};

/// Why a runtime does not read a tensor.
#[derive(Debug)]
pub(super) struct DropReasons {
    /// Of another part than the language model.
    pub tower: &'static str,
    /// Of a head that predicts several tokens at once.
    pub several_tokens: &'static str,
    /// Beyond the layers that the configuration counts.
    pub beyond_layers: &'static str,
    /// A buffer.
    pub buffer: &'static str,
}

/// What one runtime makes of the tensors of a family.
pub(super) trait Rules {
    /// Its name, for messages.
    fn reader(&self) -> &'static str;

    /// Why it does not read tensors that no model of it has.
    fn reasons(&self) -> &'static DropReasons;

    /// Rules for tensors that it uses in another form than other runtimes do.
    fn stored<'n>(&self, family: &'static ModelFamily, name: &'n str) -> Option<(Becomes, PatternMatch<'n>)> {
        family.stored(name)
    }

    /// Its name of the tensor that is used as `used`; `None` if it has none.
    fn name(&self, family: &'static ModelFamily, used: &str) -> Option<String>;

    /// Whether it adds one to gains that are stored minus one.
    fn adds_one(&self, family: &'static ModelFamily) -> bool;

    /// The form of `target` that it reads.
    ///
    /// # Errors
    /// The reason, if the target has no such form.
    fn formed(&self, family: &'static ModelFamily, target: Target) -> std::result::Result<Target, String>;
}

/// The tensors that the runtime of `rules` reads, and what becomes of each tensor of `checkpoint`.
///
/// # Errors
/// [`Error::Layout`].
pub(super) fn arrange(checkpoint: &Checkpoint, family: &'static ModelFamily, rules: &dyn Rules) -> Result<Arrangement> {
    let mut arranging = Arranging { checkpoint, family, rules, targets: Vec::new(), stacks: BTreeMap::new() };
    let mut dispositions = Vec::with_capacity(checkpoint.tensors.len());
    for at in 0..checkpoint.tensors.len() {
        dispositions.push(arranging.tensor(at)?);
    }
    let arrangement = Arrangement { targets: arranging.finish()?, dispositions };
    check_names(checkpoint, &arrangement, rules.reader())?;
    Ok(arrangement)
}

/// A stack of experts under construction: its target, and the matrix of each expert so far.
struct Stack {
    target: usize,
    matrices: BTreeMap<usize, View>,
}

struct Arranging<'a> {
    checkpoint: &'a Checkpoint,
    family: &'static ModelFamily,
    rules: &'a dyn Rules,
    targets: Vec<Target>,
    stacks: BTreeMap<String, Stack>,
}

/// A tensor that is used, and how it is made of one of the source.
struct UsedAs {
    /// Its name in the table of families.
    name: String,
    transform: Transform,
    /// Number of the expert that it is.
    expert: Option<usize>,
}

/// What becomes of tensors that are left out in all families: other towers, extra layers, tied heads.
pub(super) fn left_out(checkpoint: &Checkpoint, tensor: &Tensor, reasons: &DropReasons) -> Option<Disposition> {
    let Name { role, layer, .. } = Name::parse(&tensor.name);
    if let Some(why) = tensor.unneeded {
        return Some(Disposition::Drop(why));
    }
    match role {
        Role::Tower => Some(Disposition::Drop(reasons.tower)),
        Role::MultiToken => Some(Disposition::Drop(reasons.several_tokens)),
        _ if is_beyond_layers(checkpoint, layer) => Some(Disposition::Drop(reasons.beyond_layers)),
        _ => tied_head(checkpoint, tensor),
    }
}

impl Arranging<'_> {
    /// Adds the targets of tensor `at`, and returns what becomes of it.
    fn tensor(&mut self, at: usize) -> Result<Disposition> {
        let tensor = &self.checkpoint.tensors[at];
        let name = tensor.weight_name();
        if let Some(disposition) = left_out(self.checkpoint, tensor, self.rules.reasons()) {
            return Ok(disposition);
        }
        let Some((becomes, found)) = self.rules.stored(self.family, name) else {
            self.add(at, UsedAs { name: name.to_owned(), transform: Transform::Same, expert: None })?;
            return Ok(Disposition::Write);
        };
        let parts = match becomes {
            Becomes::Used(parts) => parts,
            Becomes::Buffer => return Ok(Disposition::Drop(self.rules.reasons().buffer)),
            Becomes::TiedHead => return Ok(Disposition::Drop("the embedding is the head")),
        };
        for &(pattern, transform) in parts {
            let name = pattern.replacen('*', found.beginning, 1);
            let is_added = transform == Transform::PlusOne && self.rules.adds_one(self.family);
            let transform = if is_added { Transform::Same } else { transform };
            self.add(at, UsedAs { name, transform, expert: found.number })?;
        }
        Ok(Disposition::Write)
    }

    /// Adds the target that tensor `at` is used as, or the matrix of a stack that it is.
    fn add(&mut self, at: usize, UsedAs { name: used, transform, expert }: UsedAs) -> Result<()> {
        let checkpoint = self.checkpoint;
        let tensor = &checkpoint.tensors[at];
        let name = self.rules.name(self.family, &used).ok_or_else(|| {
            let reason = format!("{} has no name for it that is known", self.rules.reader());
            Error::Layout { file: checkpoint.file_of(tensor).to_owned(), tensor: tensor.name.clone(), reason }
        })?;
        let misfit = |reason: &str| self.misfit(tensor, format!("is {:?}: {reason}", tensor.shape));
        if transform != Transform::Same && (Float::of(tensor.dtype).is_none() || tensor.elements() == 0) {
            return Err(misfit(&format!("{} without elements, or not of a type that is computed with", tensor.dtype)));
        }
        let same = Target { name, ..Target::same(checkpoint, at) };
        let whole = same.views[0];
        let target = match transform {
            Transform::Same => same,
            Transform::PlusOne => Target { plus_one: true, ..same },
            Transform::Expert => return self.expert(at, &same, expert.unwrap_or_default()),
            Transform::SwappedAxes => {
                let &[channels, inputs, taps] = same.shape.as_slice() else {
                    return Err(misfit("a convolution has three dimensions"));
                };
                // With one input channel, exchanging the axes moves no element.
                let channel = |at| whole.matrix_of(at, channels).transposed();
                let views = if inputs == 1 { same.views } else { (0..channels).map(channel).collect() };
                Target { shape: vec![channels, taps, inputs], views, ..same }
            }
            Transform::Interleaved(first) => {
                let width = whole.cols / 2;
                let view = View { offset: first, cols: width, row_stride: whole.cols, col_stride: 2, ..whole };
                let mut shape = same.shape.clone();
                if !whole.cols.is_multiple_of(2) || shape.pop().is_none() {
                    return Err(misfit("it does not divide into two"));
                }
                shape.push(width);
                Target { shape, views: vec![view], ..same }
            }
            Transform::Matrices { input_major, outputs } => {
                let (count, rows) = match *same.shape.as_slice() {
                    [count, rows, _] => (Some(count), rows),
                    [rows, _] => (None, rows),
                    _ => return Err(misfit("it is no matrix, and no stack of them")),
                };
                let whole_stack = (count.unwrap_or(1), rows);
                let views = matrices(whole, whole_stack, (input_major, outputs)).map_err(misfit)?;
                let matrix = views.first().map_or([0, 0], |view| [view.rows, view.cols]);
                Target { shape: count.into_iter().chain(matrix).collect(), views, stacked: count.is_some(), ..same }
            }
            Transform::LatentKeys | Transform::LatentValues => self.latent(tensor, same, transform)?,
        };
        self.targets.push(self.formed(target)?);
        Ok(())
    }

    /// `target` in the form that the runtime reads.
    fn formed(&self, target: Target) -> Result<Target> {
        let tensor = &self.checkpoint.tensors[target.views[0].tensor];
        self.rules.formed(self.family, target).map_err(|reason| self.misfit(tensor, reason))
    }

    /// The keys or values of `target`, head by head.
    fn latent(&self, tensor: &Tensor, target: Target, transform: Transform) -> Result<Target> {
        let size = |key: &str| self.checkpoint.config_size(key);
        let sizes = (size("num_attention_heads"), size("qk_nope_head_dim"), size("v_head_dim"));
        let (Some(heads), Some(keys), Some(values)) = sizes else {
            let reason = "config.json does not say num_attention_heads, qk_nope_head_dim and v_head_dim".to_owned();
            return Err(self.misfit(tensor, reason));
        };
        let whole = target.views[0];
        if heads == 0 || heads.checked_mul(keys.saturating_add(values)) != Some(whole.rows) || tensor.shape.len() != 2 {
            let expected = format!("is {:?}, and should have {heads} heads of {keys} + {values} rows", tensor.shape);
            return Err(self.misfit(tensor, expected));
        }
        let head = |at: u64| {
            let head = whole.matrix_of(at, heads);
            if transform == Transform::LatentKeys {
                head.rows(0, 1, keys).transposed()
            } else {
                head.rows(keys, 1, values)
            }
        };
        let views: Vec<View> = (0..heads).map(head).collect();
        let shape = vec![heads, views[0].rows, views[0].cols];
        Ok(Target { shape, views, stacked: true, ..target })
    }

    /// Adds `one` as matrix `number` of its stack.
    fn expert(&mut self, at: usize, one: &Target, number: usize) -> Result<()> {
        let tensor = &self.checkpoint.tensors[at];
        let target = if let Some(stack) = self.stacks.get(&one.name) {
            stack.target
        } else {
            self.stacks.insert(one.name.clone(), Stack { target: self.targets.len(), matrices: BTreeMap::new() });
            let stack = Target { stacked: true, ..one.clone() };
            self.targets.push(self.formed(stack)?);
            self.targets.len() - 1
        };
        let first = &self.targets[target];
        if tensor.shape.len() != 2 || (&first.shape, first.dtype) != (&one.shape, one.dtype) {
            let reason = format!(
                "is {} {:?}, and another expert of its stack {} {:?}",
                one.dtype, one.shape, first.dtype, first.shape
            );
            return Err(self.misfit(tensor, reason));
        }
        let stack = self.stacks.get_mut(&one.name);
        match stack.and_then(|stack| stack.matrices.insert(number, one.views[0])) {
            None => Ok(()),
            Some(other) => {
                let reason =
                    format!("it and `{}` are both expert {number}", self.checkpoint.tensors[other.tensor].name);
                Err(self.misfit(tensor, reason))
            }
        }
    }

    /// The targets. Checks that all stacks are complete.
    fn finish(mut self) -> Result<Vec<Target>> {
        let keys = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];
        let counted = keys.iter().find_map(|key| self.checkpoint.config_size(key));
        for Stack { target, matrices } in std::mem::take(&mut self.stacks).into_values() {
            let count = matrices.len();
            let missing = (0..count).find(|expert| !matrices.contains_key(expert));
            let tensor = &self.checkpoint.tensors[self.targets[target].views[0].tensor];
            if let Some(missing) = missing {
                return Err(self.misfit(tensor, format!("expert {missing} of its layer is missing")));
            }
            if let Some(counted) = counted.filter(|counted| *counted != count as u64) {
                let reason = format!("its layer has {count} experts, and config.json counts {counted}");
                return Err(self.misfit(tensor, reason));
            }
            let target = &mut self.targets[target];
            target.shape.insert(0, count as u64);
            target.views = matrices.into_values().collect();
        }
        Ok(self.targets)
    }

    fn misfit(&self, tensor: &Tensor, reason: String) -> Error {
        Error::Layout { file: self.checkpoint.file_of(tensor).to_owned(), tensor: tensor.name.clone(), reason }
    }
}
