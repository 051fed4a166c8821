"""Tokenizers of GGUF files: the ids of a text are those of the release's own tokenizer."""

import json
import random
from itertools import pairwise

import gguf
import numpy as np
import pytest
import ramrs
from fixtures.gguf import CASES, TOKENS, header
from fixtures.paths import DATA
from oracles.gguf_converter import write_bpe
from ramrs.evaluation import gguf_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ODD = (
    "It's we'll THEY'VE i'M 12 1234567 3,14 ½ Ⅷ ٣٤ x²\t tabs\t\tand   spaces \n\n\r\n  lines \u00a0nbsp \u3000 wide. "
    "café cafe\u0301 Straße ΟΔΟΣ привет мир 你好，世界 日本語のテキスト 한국어 עברית العربية हिन्दी ไทย "
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \u200b\ufeff … — «» “” C++ a_b CamelCase http://x.y/z?a=b&c=%20 <|user|>hi<|endoftext|> "
    "if (x != 0) { return $y[0] ^ ~z; }  \n\n\n\n end   "
)
"""Contractions, digits, scripts, joined signs, line ends and runs of blanks."""

TEXT = (DATA / "text" / "python-docs.txt").read_text(encoding="utf-8")[:6000] + ODD

SPECIAL = ["<|endoftext|>", "<|user|>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def of_llama3(digits):
    """Return how Llama 3 and Qwen 2 split: as in their `tokenizer.json`."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated", False), BYTES])


RELEASES = {
    "gpt-2": (GPT2, None, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None, False),
    "starcoder": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None, False),
    "qwen2": (of_llama3(r"\p{N}"), normalizers.NFC(), False),
    "llama-bpe": (of_llama3(r"\p{N}{1,3}"), None, True),
}
"""By llama.cpp's names: words and normalisation of releases, and whether words that are tokens stay whole."""


def write_vocabulary(path, model, tokens, types, **fields):
    """Write a GGUF file with a tokenizer, and no tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if "pre" in fields:
        writer.add_tokenizer_pre(fields["pre"])
    if "merges" in fields:
        writer.add_token_merges(fields["merges"])
    if "scores" in fields:
        writer.add_token_scores(fields["scores"])
        writer.add_unk_token_id(fields["unknown"])
    if "adds_space" in fields:
        writer.add_add_space_prefix(fields["adds_space"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def trained(name):
    """Return a tokenizer as a release has it, trained on the text."""
    words, normalizer, whole = RELEASES[name]
    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.pre_tokenizer, made.decoder = words, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def written(name, tokenizer, path, pre=None):
    """Write a trained tokenizer as a GGUF file."""
    described = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(at) for at in range(tokenizer.get_vocab_size())]
    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    # The converter fills the list up to the rows of the embedding.
    tokens += [f"[PAD{at}]" for at in range(len(tokens), len(tokens) + 5)]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in described["merges"]]
    return write_vocabulary(path, "gpt2", tokens, types + [UNUSED] * 5, pre=pre or name, merges=merges)


@pytest.mark.parametrize("name", RELEASES)
def test_ids_are_those_of_the_release(name, tmp_path):
    release = trained(name)
    found = gguf_tokenizer.of_model(written(name, release, tmp_path / "vocabulary.gguf"))
    assert ids(found, TEXT) == ids(release, TEXT)
    assert len(set(ids(found, TEXT))) > 300
    draw = random.Random(20)
    for _ in range(300):
        text = "".join(draw.choices(ODD, k=40))
        assert ids(found, text) == ids(release, text), text


def test_rules_differ(tmp_path):
    """The text tells all rules apart: otherwise the test above says little."""
    release = trained("gpt-2")
    made = [*RELEASES, "default"]
    found = {
        name: tuple(ids(gguf_tokenizer.of_model(written("gpt-2", release, tmp_path / f"{name}.gguf", name)), TEXT))
        for name in made
    }
    assert len(set(found.values())) == len(made) - 1, "smollm and starcoder are one rule"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_ids_of_the_converter_s_files_are_those_of_the_fixtures(name, tmp_path):
    write_bpe(tmp_path, TOKENS)
    release = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ids(gguf_tokenizer.of_model(header(name)), TEXT) == ids(release, TEXT)


def merged(text, pieces, unknown):
    """Return the ids of a text by SentencePiece's BPE: the best pair first, of equal ones the first in the text.

    ``pieces`` are ids and scores. A character without a piece is its bytes.
    """
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(pieces[one + two][1], -at) for at, (one, two) in enumerate(pairwise(parts)) if one + two in pieces]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        if part in pieces:
            found.append(pieces[part][0])
        else:
            found.extend(pieces.get(f"<0x{byte:02X}>", (unknown,))[0] for byte in part.encode())
    return found


@pytest.mark.parametrize("adds_space", [False, True])
def test_pieces_are_merged_by_score(adds_space, tmp_path):
    draw = np.random.default_rng(20)
    text = TEXT[-1500:].replace("\n", " ")
    spans = {text.replace(" ", "▁")[at : at + size] for size in (2, 3, 4) for at in draw.integers(0, 1500, 400)}
    letters = sorted({letter for letter in text.replace(" ", "▁") if letter.isascii() or letter == "▁"})
    # Of real vocabularies each character of a piece is one, too.
    longer = sorted(span for span in spans if len(span) > 1 and set(span) <= set(letters))
    draw.shuffle(longer)
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *longer, *letters]
    types = [UNKNOWN, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(longer) + len(letters))
    scores = [0.0] * 258 + [-float(at) for at in range(len(longer) + len(letters))]
    settings = {"scores": scores, "unknown": 0, "adds_space": adds_space}
    found = gguf_tokenizer.of_model(write_vocabulary(tmp_path / "pieces.gguf", "llama", tokens, types, **settings))
    pieces = {token: (at, scores[at]) for at, token in enumerate(tokens) if types[at] in (NORMAL, BYTE)}
    expected = merged(" " * adds_space + text, pieces, 0)
    assert ids(found, text) == expected
    assert len(expected) < 0.9 * len(text)


REFUSED = {
    "an unknown rule": ({"model": "gpt2", "pre": "tekken", "merges": ["a b"]}, "splits texts by `tekken`, and known"),
    "no rule": ({"model": "gpt2", "merges": ["a b"]}, "one that it does not name"),
    "another kind": ({"model": "bert"}, "is of the kind `bert`"),
    "pieces without scores": ({"model": "llama"}, "rules of its own"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_with_the_way_out(what, tmp_path):
    fields, message = REFUSED[what]
    path = write_vocabulary(tmp_path / "odd.gguf", fields.pop("model"), ["a", "b", "ab"], [NORMAL] * 3, **fields)
    with pytest.raises(ramrs.CheckpointError, match=message) as fault:
        gguf_tokenizer.of_model(path)
    assert fault.value.slug == "no-tokenizer"
    assert "tokens" in fault.value.hint


def test_a_gguf_file_is_evaluated_on_a_text(tmp_path):
    source, text = CASES["llama"].write(tmp_path / "source"), tmp_path / "text.txt"
    write_bpe(source, TOKENS)
    text.write_text(TEXT, encoding="utf-8")
    path = tmp_path / "plain.gguf"
    ramrs.quantize(source, path, header=header("llama"), budget=33, sensitivity="weights")
    settings = {"text": text, "max_tokens": 600, "window": 100, "bos": "none"}
    by_file, by_folder = (ramrs.eval(path, reference=reference, **settings) for reference in (path, source))
    assert by_file.tokens == by_folder.tokens > 500
    assert by_file.perplexity_mean == pytest.approx(by_folder.perplexity_mean, rel=1e-6)
    assert by_file.kl_mean == 0
    with pytest.raises(ramrs.CheckpointError, match=r"no tokenizer\.json"):
        (source / "tokenizer.json").unlink()
        ramrs.eval(path, reference=source, **settings)
