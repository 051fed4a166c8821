"""Tokenizers of GGUF files as ``tokenizer.json`` and ``tokenizer_config.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

#: Kinds of tokens in GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

#: How Qwen2 splits text into words.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Rows that fill up a matrix, and are no tokens.
PADDING = re.compile(r"\[PAD\d+\]")


def write(fields: dict[str, Any], out: Path) -> None:
    """Write the tokenizer that the fields of a GGUF file describe to the folder ``out``."""
    kind = (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre"))
    made = from_scores(fields) if kind[0] == "llama" else from_merges(fields, qwen2=kind[1] == "qwen2")
    made.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None}
    for name in ("bos", "eos"):
        # Qwen2 starts no text with a token, though its files name one.
        if name == "eos" or kind[1] != "qwen2":
            config[f"{name}_token"] = fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{name}_token_id"]]
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def from_merges(fields: dict[str, Any], *, qwen2: bool) -> Tokenizer:
    """Make a byte-level tokenizer: that of Qwen2 or that of SmolLM2."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: at for at, token in enumerate(tokens) if not PADDING.fullmatch(token)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split: list[Any]
    if qwen2:
        made.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
        split = [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.decoder = decoders.ByteLevel()
    whole(made, {token: kind for token, kind in zip(tokens, kinds, strict=True) if token in vocabulary})
    return made


def from_scores(fields: dict[str, Any]) -> Tokenizer:
    """Make Gemma's tokenizer: merges in the order of the scores of what they make."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    ids = {token: at for at, token in enumerate(tokens)}
    normal = [at for at, kind in enumerate(kinds) if kind == NORMAL and len(tokens[at]) > 1]
    merges: list[tuple[str, str]] = []
    for at in sorted(normal, key=lambda at: -fields["tokenizer.ggml.scores"][at]):
        token = tokens[at]
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges.extend(sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
    unknown = tokens[fields["tokenizer.ggml.unknown_token_id"]]
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    whole(made, dict(zip(tokens, kinds, strict=True)))
    at = fields["tokenizer.ggml.bos_token_id"]
    first = tokens[at]
    made.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, at)])
    return made


def whole(made: Tokenizer, kinds: dict[str, int]) -> None:
    """Keep tokens that no merge makes in one piece."""
    special = [token for token, kind in kinds.items() if kind in (UNKNOWN, CONTROL)]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    others = [token for token, kind in kinds.items() if kind == USER_DEFINED]
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
