"""Tokenizers of GGUF files, from their key-values.

A file names the rule that splits texts into words, and llama.cpp's code has the rules. Here are those that many models
share; other files are refused, since a text in other tokens measures something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ramrs._core import call
from ramrs.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["NORMAL", "Vocabulary", "of_model"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Kinds of tokens. Those of kind 6 are bytes."""


class Vocabulary(msgspec.Struct, frozen=True):
    """What a GGUF file says of its tokenizer."""

    model: str | None
    """`gpt2`: merges of bytes; `llama`: pieces with scores."""
    pre: str | None
    """The name of the rule that splits texts into words."""
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    unknown: int | None
    adds_space: bool | None
    removes_spaces: bool | None
    normalizer: int
    """Bytes of a rule of its own that normalises texts."""


@dataclass(frozen=True)
class _Rule:
    """How texts are split into words before merges."""

    splits: tuple[str, ...]
    """Patterns: each splits what the ones before it have left. What lies in between is a word, too."""
    composes: bool = False
    """Whether accents and their letters become one character (NFC)."""
    whole_words: bool = False
    """Whether a word that is a token is one, whatever merges there are."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    """Return the pattern of words of newer models, which differ in how many ``digits`` a word has."""
    letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_DIGIT_BY_DIGIT = _Rule((r"\p{N}", _GPT2))
_LLAMA3 = _Rule((_words(r"\p{N}{1,3}"),), whole_words=True)

_RULES = {
    "gpt-2": _Rule((_GPT2,)),
    "smollm": _DIGIT_BY_DIGIT,
    "starcoder": _DIGIT_BY_DIGIT,
    "refact": _DIGIT_BY_DIGIT,
    "qwen2": _Rule((_words(r"\p{N}"),), composes=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "default": _Rule((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def of_model(model: Path) -> Tokenizer | None:
    """Return the tokenizer in a GGUF file, or in a folder with one; nothing if there is none.

    Raises:
        CheckpointError: It is not known.
    """
    found = call("gguf_tokenizer", {"model": str(model)}, Vocabulary)
    if not found.tokens:
        return None
    if len(found.types) != len(found.tokens):
        raise _refused(model, f"its key-values have {len(found.tokens)} tokens, and kinds of {len(found.types)}")
    if found.model == "gpt2":
        rule = _RULES.get(found.pre or "")
        if rule is None:
            named = f"`{found.pre}`" if found.pre else "one that it does not name"
            raise _refused(model, f"its tokenizer splits texts by {named}, and known are {', '.join(_RULES)}")
        return _with_whole_tokens(_of_merges(found, rule), found)
    if found.model == "llama":
        if found.removes_spaces or found.normalizer or len(found.scores) != len(found.tokens):
            raise _refused(model, "its tokenizer changes texts by rules of its own")
        return _with_whole_tokens(_of_scores(found), found)
    raise _refused(model, f"its tokenizer is of the kind `{found.model}`, and known are gpt2 and llama")


def _refused(model: Path, reason: str) -> CheckpointError:
    hint = "give token ids with ⟨tokens=FILE.npy⟩, as the tokenizer of the release makes them"
    return CheckpointError(f"{model}: {reason}", slug="no-tokenizer", hint=hint, path=str(model))


def _ids(found: Vocabulary) -> dict[str, int]:
    """Return the ids of tokens that stand for something."""
    kinds = enumerate(zip(found.tokens, found.types, strict=True))
    return {token: at for at, (token, kind) in kinds if kind != UNUSED}


def _of_merges(found: Vocabulary, rule: _Rule) -> Tokenizer:
    """Make a tokenizer that merges bytes."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    merges = [(first, second) for first, _, second in (merge.partition(" ") for merge in found.merges)]
    made = Tokenizer(models.BPE(vocab=_ids(found), merges=merges, ignore_merges=rule.whole_words))
    if rule.composes:
        made.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return made


def _of_scores(found: Vocabulary) -> Tokenizer:
    """Make a tokenizer that merges pieces to the one with the highest score, and takes bytes where it has no piece."""
    from tokenizers import Tokenizer, models, normalizers

    ids = _ids(found)
    silent = {UNKNOWN, CONTROL, UNUSED}
    pieces = [token for token, at in ids.items() if found.types[at] not in silent and len(token) > 1]
    pieces.sort(key=lambda token: -found.scores[ids[token]])
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges.extend(sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
    unknown = None if found.unknown is None else found.tokens[found.unknown]
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    begins = found.adds_space is not False
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if begins else spaces
    return made


def _with_whole_tokens(made: Tokenizer, found: Vocabulary) -> Tokenizer:
    """Find tokens that no merge makes in the text itself."""
    from tokenizers import AddedToken

    kinds = list(zip(found.tokens, found.types, strict=True))
    special = [token for token, kind in kinds if kind in (UNKNOWN, CONTROL)]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    others = [token for token, kind in kinds if kind == USER_DEFINED]
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    return made
