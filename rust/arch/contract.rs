//! The contract: what a runtime's model of the checkpoint's type must have, against what the checkpoint has.
//!
//! A runtime that loads strictly rejects a missing tensor, a name too many and another shape; one that does not computes
//! something else. [`fulfil`] compares a release with its [blueprint](super::blueprint) before any work. It corrects the
//! configuration where the tensors leave one possible reading, marks tensors that no language model needs, and refuses the
//! rest.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::blueprint::{Blueprint, Dimension, HeadTie, blueprint};
use super::families::{Becomes, ModelFamily, Outputs, Transform, family, is_buffer};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::name::{Name, Role};

/// Beginnings and parts of names that a language model does not need, and what they are.
const UNNEEDED: [(&str, &str); 14] = [
    ("v_head.", VALUE_HEAD),
    ("value_head.", VALUE_HEAD),
    ("ilql_heads.", VALUE_HEAD),
    ("critic_head.", VALUE_HEAD),
    ("reward_head.", VALUE_HEAD),
    ("optimizer.", STATE),
    ("optimizer_state.", STATE),
    ("lr_scheduler.", STATE),
    ("ema.", STATE),
    ("ema_model.", STATE),
    ("medusa_head.", DRAFT),
    ("medusa_heads.", DRAFT),
    ("eagle.", DRAFT),
    ("draft_model.", DRAFT),
];
const VALUE_HEAD: &str = "a value head of training, which no language model has";
const STATE: &str = "state of training, which no language model has";
const DRAFT: &str = "a head that drafts tokens, which the language model does not need";
const BUFFER: &str = "a buffer that runtimes compute themselves";

/// Parts of names of adapters that were not merged.
const ADAPTERS: [&str; 8] = [
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".base_layer.",
    ".ia3_l",
    ".oft_r.",
];

/// Heads of other tasks, and what a model with one is.
const OTHER_HEADS: [(&str, &str); 6] = [
    ("score.", "a classifier or reward model"),
    ("classifier.", "a classifier"),
    ("regression_head.", "a reward model"),
    ("qa_outputs.", "a model that answers by a span of the text"),
    ("reward_model.", "a reward model"),
    ("embedding_head.", "an embedding model"),
];

/// Checks `checkpoint` against the tensors that a model of its type must have, and corrects what has one possible reading.
///
/// # Errors
/// [`Error::Mismatch`], and those of reading the head where it is compared with the embedding.
pub(crate) fn fulfil(checkpoint: &mut Checkpoint) -> Result<()> {
    if let Some(tensor) = checkpoint.tensors.iter().find(|tensor| is_adapter(&tensor.name)) {
        let reason = "belongs to an adapter that was not merged".to_owned();
        return Err(mismatch(checkpoint, Some(tensor), &tensor.name, reason, MERGE));
    }
    let Some(family) = checkpoint.model_type().and_then(family) else {
        // The head of another task says what it is, whatever the type.
        let found = checkpoint.tensors.iter().find_map(|tensor| Some((tensor, other_head(&tensor.name)?)));
        return found.map_or(Ok(()), |(tensor, what)| Err(of_another_task(checkpoint, tensor, what)));
    };
    let Some(expected) = blueprint_of(checkpoint, family) else { return Ok(()) };
    settle_layers(checkpoint, &expected);
    settle_vocabulary(checkpoint, &expected);
    settle_head(checkpoint, &expected)?;
    // The configuration may have changed.
    let Some(expected) = blueprint_of(checkpoint, family) else { return Ok(()) };
    let unneeded = Found::of(checkpoint, family, &expected)?.unneeded;
    for (at, why) in unneeded {
        checkpoint.tensors[at].unneeded = Some(why);
    }
    Ok(())
}

/// The blueprint of the model under the names that the checkpoint has: those of a release, those of `mlx-lm`, or those of a
/// GGUF file.
fn blueprint_of(checkpoint: &Checkpoint, family: &ModelFamily) -> Option<Blueprint> {
    let blueprint = blueprint(checkpoint)?;
    Some(match checkpoint.is_gguf() {
        true => blueprint.with_fusions(checkpoint),
        false if checkpoint.is_laid_out_for_mlx() => blueprint.for_mlx(family, checkpoint),
        false => blueprint,
    })
}

/// Writes the number of layers into a configuration that does not state it.
fn settle_layers(checkpoint: &mut Checkpoint, expected: &Blueprint) {
    let key = if checkpoint.model_type() == Some("gpt2") { "n_layer" } else { "num_hidden_layers" };
    if expected.layers > 0 || checkpoint.config_value(key).is_some() {
        return;
    }
    let layers = checkpoint.tensors.iter().filter_map(|tensor| expected.layer_of(&tensor.name)).max();
    let Some(count) = layers.map(|last| last + 1) else { return };
    checkpoint.notes.push(format!("config.json does not say {key}: it is written as {count}"));
    set(checkpoint, key, count.into());
}

const MERGE: &str = "merge it into its base model first, such as with PEFT's `merge_and_unload`; ⟨generic=true⟩ writes the \
                     tensors as they are";

/// Whether `name` belongs to an adapter that was not merged.
fn is_adapter(name: &str) -> bool {
    ADAPTERS.iter().any(|part| name.contains(part))
}

fn mismatch(
    checkpoint: &Checkpoint,
    tensor: Option<&Tensor>,
    name: &str,
    reason: String,
    hint: impl Into<String>,
) -> Error {
    let file =
        tensor.map_or_else(|| checkpoint.dir.join("config.json"), |tensor| checkpoint.file_of(tensor).to_owned());
    let stored = tensor.map_or(name, |tensor| checkpoint.parts[tensor.part].stored_name());
    Error::Mismatch { file, tensor: stored.to_owned(), reason, hint: hint.into() }
}

/// Sets `key` of the configuration, within the part that states it.
fn set(checkpoint: &mut Checkpoint, key: &str, value: Value) {
    let Some(config) = &mut checkpoint.config else { return };
    if !config.contains_key(key)
        && let Some(Value::Object(text)) = config.get_mut("text_config")
    {
        text.insert(key.to_owned(), value);
        return;
    }
    if let Some(Value::Object(text)) = config.get_mut("text_config")
        && text.contains_key(key)
    {
        text.insert(key.to_owned(), value.clone());
    }
    config.insert(key.to_owned(), value);
}

/// Raises `vocab_size` if the embedding has more rows, and the head as many.
fn settle_vocabulary(checkpoint: &mut Checkpoint, expected: &Blueprint) {
    let rows = |name: &str| checkpoint.tensor(name).and_then(|tensor| tensor.shape.first().copied());
    let stated = checkpoint.config_size("vocab_size");
    let more = |rows: &u64| *rows > stated.unwrap_or(0);
    let Some(found) = rows(&expected.embedding).filter(more) else { return };
    if rows(&expected.head[0].0).is_some_and(|head| head != found) {
        return;
    }
    let said = stated.map_or("does not say".to_owned(), |stated| format!("says {stated}"));
    checkpoint
        .notes
        .push(format!("the embedding has {found} rows and config.json {said}: vocab_size is written as {found}"));
    set(checkpoint, "vocab_size", found.into());
}

/// Decides whether the head is the embedding, and says so in the configuration.
fn settle_head(checkpoint: &mut Checkpoint, expected: &Blueprint) -> Result<()> {
    let (name, _) = &expected.head[0];
    let is_tied = expected.tie.holds(checkpoint);
    let Some(head) = checkpoint.tensor(name) else {
        if is_tied {
            return Ok(());
        }
        if expected.tie == HeadTie::Never || checkpoint.tensor(&expected.embedding).is_none() {
            return Err(missing(checkpoint, name, 1));
        }
        if checkpoint.is_tied() == Some(false) {
            let reason = "is missing, and config.json says that the head is not the embedding \
                          (tie_word_embeddings = false)";
            let hint = "fetch the file that holds it; if the model has no head, as embedding models do, set \
                        tie_word_embeddings to true in config.json: the embedding stands in for the head";
            return Err(mismatch(checkpoint, None, name, reason.to_owned(), hint));
        }
        checkpoint.notes.push(format!(
            "`{name}` is missing, and config.json does not say whether it is the embedding: the output says \
             tie_word_embeddings = true"
        ));
        set(checkpoint, "tie_word_embeddings", true.into());
        return Ok(());
    };
    if !is_tied {
        return Ok(());
    }
    let Some(embedding) = checkpoint.tensor(&expected.embedding) else { return Ok(()) };
    if checkpoint.has_same_elements(head, embedding)? {
        set(checkpoint, "tie_word_embeddings", true.into());
        return Ok(());
    }
    if expected.tie == HeadTie::Always {
        let reason = format!(
            "differs from `{}`, and every runtime's model of type `{}` uses the embedding as the head",
            expected.embedding,
            checkpoint.model_type().unwrap_or_default()
        );
        return Err(mismatch(
            checkpoint,
            Some(head),
            name,
            reason,
            "remove the head, or give it to a type that has one",
        ));
    }
    checkpoint.notes.push(format!(
        "`{name}` differs from the embedding, though config.json ties them: both are kept, and the output says \
         tie_word_embeddings = false"
    ));
    set(checkpoint, "tie_word_embeddings", false.into());
    Ok(())
}

/// The tensors of a checkpoint under the names of its blueprint.
struct Found<'a> {
    checkpoint: &'a Checkpoint,
    family: &'static ModelFamily,
    expected: &'a Blueprint,
    /// The blueprint's tensors that are there. Of stacks with a tensor for each matrix: the numbers that are there.
    seen: BTreeMap<String, BTreeSet<usize>>,
    /// Tensors that no language model needs, and why.
    unneeded: Vec<(usize, &'static str)>,
    /// Whether layers beyond those that the configuration counts predict several tokens at once.
    predicts_more: bool,
}

/// Whether layers of `checkpoint` predict several tokens at once.
fn predicts_more(checkpoint: &Checkpoint) -> bool {
    let marks = [".eh_proj.", ".enorm.", ".hnorm.", ".shared_head."];
    checkpoint.config_size("num_nextn_predict_layers").unwrap_or(0) > 0
        || checkpoint.tensors.iter().any(|tensor| marks.iter().any(|mark| tensor.name.contains(mark)))
}

/// A tensor under the name and the shape of the blueprint.
struct Canonical {
    name: String,
    shape: Vec<u64>,
    /// The number of the matrix in a stack.
    number: Option<usize>,
}

impl<'a> Found<'a> {
    fn of(checkpoint: &'a Checkpoint, family: &'static ModelFamily, expected: &'a Blueprint) -> Result<Self> {
        let (seen, unneeded) = Default::default();
        let predicts_more = predicts_more(checkpoint);
        let mut found = Self { checkpoint, family, expected, seen, unneeded, predicts_more };
        let mut extra: Vec<&Tensor> = Vec::new();
        for (at, tensor) in checkpoint.tensors.iter().enumerate() {
            if !found.add(at, tensor)? {
                extra.push(tensor);
            }
        }
        found.check_layers(&extra)?;
        found.check_missing(&extra)?;
        match extra.first() {
            None => Ok(found),
            Some(first) => Err(found.left_over(first, extra.len())),
        }
    }

    /// Places `tensor`. Returns whether it has a place, or is known to be unneeded.
    fn add(&mut self, at: usize, tensor: &'a Tensor) -> Result<bool> {
        let name = tensor.weight_name();
        if self.is_of_other_parts(name) {
            return Ok(true);
        }
        if let Some((_, shape)) = self.expected.head.iter().find(|(head, _)| head == name) {
            if !self.is_tied() {
                self.check_shape(tensor, &tensor.shape, shape)?;
                self.seen.entry(name.to_owned()).or_default();
            }
            return Ok(true);
        }
        let Some(parts) = self.canonical(tensor, name) else {
            self.unneeded.push((at, BUFFER));
            return Ok(true);
        };
        for Canonical { name: canonical, shape, number } in parts {
            let Some(expected) = self.expected.tensors.get(&canonical) else {
                let Some(why) = unneeded(name) else { return Ok(false) };
                self.unneeded.push((at, why));
                return Ok(true);
            };
            let expected = if number.is_some() { &expected[1..] } else { expected };
            self.check_shape(tensor, &shape, expected)?;
            let numbers = self.seen.entry(canonical).or_default();
            numbers.extend(number);
        }
        Ok(true)
    }

    /// Whether a tensor belongs to a tower, or predicts several tokens at once: formats decide about these.
    fn is_of_other_parts(&self, name: &str) -> bool {
        let Name { role, layer, .. } = Name::parse(name);
        let is_beyond = layer.is_some_and(|layer| layer as u64 >= self.expected.layers)
            && name.starts_with(&self.expected.layer_prefix);
        matches!(role, Role::Tower | Role::MultiToken) || (is_beyond && self.predicts_more)
    }

    fn is_tied(&self) -> bool {
        self.expected.tie.holds(self.checkpoint)
    }

    /// The tensors of the blueprint that `tensor` holds; `None` for a buffer.
    fn canonical(&self, tensor: &Tensor, name: &str) -> Option<Vec<Canonical>> {
        let shape = tensor.shape.clone();
        let is_release = self.checkpoint.is_release();
        let stored = self.family.stored(name).filter(|(becomes, _)| is_release || *becomes == Becomes::Buffer);
        let Some((becomes, matched)) = stored else {
            return Some(vec![Canonical { name: name.to_owned(), shape, number: None }]);
        };
        let Becomes::Used(parts) = becomes else { return None };
        let part = |&(pattern, transform): &(&str, Transform)| {
            let mut shape = shape.clone();
            if let Transform::Matrices { input_major, outputs } = transform
                && let [.., rows, cols] = shape.as_mut_slice()
            {
                if input_major {
                    std::mem::swap(rows, cols);
                }
                if outputs != Outputs::All {
                    *rows /= 2;
                }
            }
            if let (Transform::Interleaved(_), Some(last)) = (transform, shape.last_mut()) {
                *last /= 2;
            }
            Canonical { name: pattern.replacen('*', matched.beginning, 1), shape, number: matched.number }
        };
        Some(parts.iter().map(part).collect())
    }

    fn check_shape(&self, tensor: &Tensor, shape: &[u64], expected: &[Dimension]) -> Result<()> {
        let fits = shape.len() == expected.len() && shape.iter().zip(expected).all(|(length, size)| size.is(*length));
        if fits {
            return Ok(());
        }
        let name = &tensor.name;
        if tensor.elements() == 0 {
            let reason =
                format!("is empty ({:?}): its weights were not gathered when the model was saved", tensor.shape);
            let hint = "save it again with the weights gathered, such as by DeepSpeed's zero_to_fp32.py";
            return Err(mismatch(self.checkpoint, Some(tensor), name, reason, hint));
        }
        let written: Vec<String> =
            expected.iter().map(|size| size.0.map_or_else(|| "?".to_owned(), |size| size.to_string())).collect();
        let of = if shape == tensor.shape { String::new() } else { format!(", which makes {shape:?}") };
        let reason = format!("is {:?}{of}, and config.json makes it [{}]", tensor.shape, written.join(", "));
        let hint = "the configuration is of another model, or the tensor is damaged: fetch both again";
        Err(mismatch(self.checkpoint, Some(tensor), name, reason, hint))
    }

    /// Refuses another number of layers than the configuration's.
    fn check_layers(&self, extra: &[&Tensor]) -> Result<()> {
        let prefix = &self.expected.layer_prefix;
        let layer_of = |name: &str| self.expected.layer_of(name);
        let expected = self.expected.layers;
        let there: BTreeSet<u64> = self.seen.keys().filter_map(|name| layer_of(name)).collect();
        let beyond: BTreeSet<u64> =
            extra.iter().filter_map(|tensor| layer_of(&tensor.name)).filter(|layer| *layer >= expected).collect();
        let (Some(first), total) = (
            (0..expected).find(|layer| !there.contains(layer)).or(beyond.first().copied()),
            there.len() + beyond.len(),
        ) else {
            return Ok(());
        };
        let is_numbered = there.iter().chain(&beyond).copied().eq(0..total as u64);
        let hint = if is_numbered {
            format!(
                "if the model was pruned or merged to {total} layers, set num_hidden_layers (and lists of layers) in \
                 config.json; otherwise fetch the missing files"
            )
        } else {
            "the checkpoint is incomplete: fetch the missing files".to_owned()
        };
        let reason = format!("config.json counts {expected} layers, and the checkpoint has {total}");
        let tensor = extra.iter().copied().find(|tensor| layer_of(&tensor.name).is_some_and(|layer| layer == first));
        let name = tensor.map_or_else(|| format!("{prefix}{first}"), |tensor| tensor.name.clone());
        Err(mismatch(self.checkpoint, tensor, &name, reason, hint))
    }

    /// Refuses tensors and experts that are missing.
    fn check_missing(&self, extra: &[&Tensor]) -> Result<()> {
        if let Some((tensor, what)) = extra.iter().find_map(|tensor| Some((*tensor, other_head(&tensor.name)?)))
            && !self.is_tied()
            && !self.seen.contains_key(&self.expected.head[0].0)
        {
            return Err(of_another_task(self.checkpoint, tensor, what));
        }
        let heads = self.expected.head.iter().filter(|_| !self.is_tied());
        let names = self.expected.tensors.keys().chain(heads.map(|(name, _)| name));
        let missing_names: Vec<&String> = names.filter(|name| !self.seen.contains_key(*name)).collect();
        if let Some(first) = missing_names.first() {
            return Err(missing(self.checkpoint, first, missing_names.len()));
        }
        for (name, numbers) in &self.seen {
            let (Some(last), Some(count)) = (numbers.last(), self.expected.tensors.get(name).map(|shape| shape[0]))
            else {
                continue;
            };
            let counted = count.0.unwrap_or(numbers.len() as u64);
            if numbers.len() as u64 == counted && *last as u64 + 1 == counted {
                continue;
            }
            let absent = (0..counted).find(|number| !numbers.contains(&(*number as usize)));
            let which = absent.map_or(String::new(), |absent| format!(", and expert {absent} is missing"));
            let reason = format!("config.json counts {counted} experts, and the layer has {}{which}", numbers.len());
            let hint =
                "the checkpoint is incomplete, or its experts were pruned: fetch it again, or correct config.json";
            return Err(mismatch(self.checkpoint, None, name, reason, hint));
        }
        Ok(())
    }

    /// The error for tensors without a place, the first of which is `tensor`.
    fn left_over(&self, tensor: &Tensor, count: usize) -> Error {
        if let Some(what) = other_head(&tensor.name) {
            return of_another_task(self.checkpoint, tensor, what);
        }
        let more = if count > 1 { format!(" ({count} such tensors)") } else { String::new() };
        let reason = format!(
            "has no place in a model of type `{}`{more}: a runtime would reject it, or compute without it",
            self.checkpoint.model_type().unwrap_or_default()
        );
        let hint = "correct model_type and config.json, or remove the tensor; ⟨generic=true⟩ writes it all the same";
        mismatch(self.checkpoint, Some(tensor), &tensor.name, reason, hint)
    }
}

fn of_another_task(checkpoint: &Checkpoint, tensor: &Tensor, what: &str) -> Error {
    let reason = format!("is the head of {what}: this is not a language model");
    let hint = "ramrs writes models that predict tokens; ⟨generic=true⟩ writes the tensors as they are";
    mismatch(checkpoint, Some(tensor), &tensor.name, reason, hint)
}

/// The error for `count` missing tensors, the first of which is `name`.
fn missing(checkpoint: &Checkpoint, name: &str, count: usize) -> Error {
    let more = if count > 1 { format!(" ({count} tensors are)") } else { String::new() };
    let model_type = checkpoint.model_type().unwrap_or_default();
    let reason = format!("is missing{more}, and a model of type `{model_type}` with this config.json needs it");
    let hint = "the checkpoint is incomplete, or model_type is wrong: fetch the missing files, or correct config.json";
    mismatch(checkpoint, None, name, reason, hint)
}

/// Why no language model needs the tensor `name`, if that is known.
pub(crate) fn unneeded(name: &str) -> Option<&'static str> {
    let known =
        UNNEEDED.iter().find(|(beginning, _)| name.starts_with(beginning) || name.contains(&format!(".{beginning}")));
    known.map(|(_, why)| *why).or_else(|| is_buffer(name).then_some(BUFFER))
}

/// What a model with the head `name` is, if it is the head of another task.
fn other_head(name: &str) -> Option<&'static str> {
    OTHER_HEADS.iter().find(|(beginning, _)| name.starts_with(beginning)).map(|(_, what)| *what)
}
