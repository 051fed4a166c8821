//! The tokens that may be drawn, and the token that begins a text, from the tokenizer's files.
//!
//! Special tokens do not stand for text, and rows of the embedding beyond the tokenizer's are padding: neither is drawn.
//! Without a tokenizer only the special tokens of `config.json` are known.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::arch::gguf::SILENT_TOKEN_IDS;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileFault, Result};

/// Tokens of a vocabulary that may be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vocabulary {
    allowed: Vec<u32>,
    first: Option<u32>,
}

/// The fields of `tokenizer.json` that are used.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerModel {
    #[serde(default)]
    vocab: VocabularySize,
}

/// The number of entries of a vocabulary, which maps pieces to ids or lists them.
#[derive(Default)]
struct VocabularySize(usize);

impl<'de> Deserialize<'de> for VocabularySize {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = VocabularySize;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<VocabularySize, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(VocabularySize(count))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<VocabularySize, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(VocabularySize(count))
            }
        }
        from.deserialize_any(Counting)
    }
}

/// The fields of `tokenizer_config.json` that are used.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<serde_json::Value>,
}

impl Vocabulary {
    /// The vocabulary of `checkpoint`, whose embedding has `rows` rows.
    ///
    /// # Errors
    /// [`Error::File`] for a tokenizer that does not parse, [`Error::Io`].
    pub(crate) fn of(checkpoint: &Checkpoint, rows: usize) -> Result<Self> {
        let tokenizer: Option<TokenizerFile> = read(checkpoint, "tokenizer.json")?;
        let config: Option<TokenizerConfig> = read(checkpoint, "tokenizer_config.json")?;
        let special = ["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", SILENT_TOKEN_IDS];
        let mut special: BTreeSet<u32> =
            special.iter().filter_map(|key| checkpoint.config_value(key)).flat_map(ids).collect();
        let (mut most, mut named) = (rows, None);
        if let Some(tokenizer) = &tokenizer {
            special.extend(tokenizer.added_tokens.iter().filter(|added| added.special).map(|added| added.id));
            let last = tokenizer.added_tokens.iter().map(|added| added.id as usize + 1).max().unwrap_or(0);
            let known = tokenizer.model.vocab.0.max(last);
            most = if known > 0 { rows.min(known) } else { rows };
            let first = config.as_ref().and_then(|config| text(config.bos_token.as_ref()?));
            named = first.and_then(|first| tokenizer.added_tokens.iter().find(|added| added.content == first));
        }
        // A tokenizer without a first token has none, whatever config.json says.
        let silent = tokenizer.is_some() && config.is_some_and(|config| config.bos_token.is_none());
        let configured = || checkpoint.config_value("bos_token_id").and_then(|value| ids(value).first().copied());
        let first = named.map(|added| added.id).or_else(|| configured().filter(|_| !silent));
        let allowed: Vec<u32> = (0..most as u32).filter(|id| !special.contains(id)).collect();
        // With nothing but special tokens, all may be drawn.
        let allowed = if allowed.is_empty() { (0..rows as u32).collect() } else { allowed };
        Ok(Self { allowed, first: first.filter(|&id| (id as usize) < rows) })
    }

    /// Tokens that may be drawn, by id.
    #[must_use]
    pub(crate) fn allowed(&self) -> &[u32] {
        &self.allowed
    }

    /// The token that windows begin with, if any.
    #[must_use]
    pub(crate) fn first(&self) -> Option<u32> {
        self.first
    }
}

fn read<T: for<'de> Deserialize<'de>>(checkpoint: &Checkpoint, name: &'static str) -> Result<Option<T>> {
    let Some((path, text)) = checkpoint.text(name)? else { return Ok(None) };
    let fault = |fault: serde_json::Error| FileFault::Document { what: "tokenizer", reason: fault.to_string() };
    serde_json::from_str(&text).map(Some).map_err(|found| Error::file(&path, fault(found)))
}

/// The text of a token: a string, or an object with its `content`.
fn text(token: &serde_json::Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// One id, or a list of them.
fn ids(value: &serde_json::Value) -> Vec<u32> {
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().map_or_else(|| id(value).into_iter().collect(), |list| list.iter().filter_map(id).collect())
}
