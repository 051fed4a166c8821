//! Which tokens may stand in a window, and which comes first, as the tokenizer's files say.
//!
//! Special tokens stand for something else than text, and rows of the embedding beyond the tokenizer's are padding: both
//! are left out. Without a tokenizer only what `config.json` calls special is known.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileFault, Result};

/// Tokens of a vocabulary that may be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    allowed: Vec<u32>,
    first: Option<u32>,
}

/// `tokenizer.json`, as far as it matters.
#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Vocab,
}

/// How many entries a vocabulary has, whether it maps pieces to ids or lists them.
#[derive(Default)]
struct Vocab(usize);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Vocab;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocab, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Vocab(count))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vocab, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Vocab(count))
            }
        }
        from.deserialize_any(Counting)
    }
}

/// `tokenizer_config.json`, as far as it matters.
#[derive(Default, Deserialize)]
struct Settings {
    bos_token: Option<serde_json::Value>,
}

impl Vocabulary {
    /// That of `checkpoint`, whose embedding has `rows`.
    ///
    /// # Errors
    /// [`Error::File`] for a tokenizer that does not read as one, [`Error::Io`].
    pub fn of(checkpoint: &Checkpoint, rows: usize) -> Result<Self> {
        let tokenizer: Option<Tokenizer> = read(checkpoint, "tokenizer.json")?;
        let settings: Option<Settings> = read(checkpoint, "tokenizer_config.json")?;
        let mut special: BTreeSet<u32> = ["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"]
            .iter()
            .filter_map(|key| checkpoint.config_value(key))
            .flat_map(ids)
            .collect();
        let (mut most, mut named) = (rows, None);
        if let Some(tokenizer) = &tokenizer {
            special.extend(tokenizer.added_tokens.iter().filter(|added| added.special).map(|added| added.id));
            let last = tokenizer.added_tokens.iter().map(|added| added.id as usize + 1).max().unwrap_or(0);
            let known = tokenizer.model.vocab.0.max(last);
            most = if known > 0 { rows.min(known) } else { rows };
            let first = settings.as_ref().and_then(|settings| text(settings.bos_token.as_ref()?));
            named = first.and_then(|first| tokenizer.added_tokens.iter().find(|added| added.content == first));
        }
        // A tokenizer that names none has none, whatever the configuration says.
        let silent = tokenizer.is_some() && settings.is_some_and(|settings| settings.bos_token.is_none());
        let configured = || checkpoint.config_value("bos_token_id").and_then(|value| ids(value).first().copied());
        let first = named.map(|added| added.id).or_else(|| configured().filter(|_| !silent));
        let allowed: Vec<u32> = (0..most as u32).filter(|id| !special.contains(id)).collect();
        // A vocabulary of nothing but special tokens is one all the same.
        let allowed = if allowed.is_empty() { (0..rows as u32).collect() } else { allowed };
        Ok(Self { allowed, first: first.filter(|&id| (id as usize) < rows) })
    }

    /// Tokens that may be drawn, by id.
    #[must_use]
    pub fn allowed(&self) -> &[u32] {
        &self.allowed
    }

    /// The token that windows begin with, if there is one.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.first
    }
}

fn read<T: for<'de> Deserialize<'de>>(checkpoint: &Checkpoint, name: &'static str) -> Result<Option<T>> {
    let Some((path, text)) = checkpoint.text(name)? else { return Ok(None) };
    let fault = |fault: serde_json::Error| FileFault::Document { what: "tokenizer", reason: fault.to_string() };
    serde_json::from_str(&text).map(Some).map_err(|found| Error::file(&path, fault(found)))
}

/// A token's text, given as it is or with how it is matched.
fn text(token: &serde_json::Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// One id, or a list of them.
fn ids(value: &serde_json::Value) -> Vec<u32> {
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().map_or_else(|| id(value).into_iter().collect(), |list| list.iter().filter_map(id).collect())
}
