"""An importance matrix of a text, in llama-imatrix's format, from a checkpoint that transformers runs.

    P=build/runtimes/transformers/bin/python
    $P benches/quality/imatrix.py MODEL IMATRIX.gguf --text FILE [--tokens 4096] [--bos ID] [--ids FILE.npy]

For each linear layer of a dense model, the sums over tokens of the squares of its inputs, and the number of tokens.
As with llama-imatrix, embedding and head have none. It runs in the environment that `make runtimes` makes, and needs
the package gguf, which knows both spellings of names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
"""Tokens of a window, the first one included."""


def windows_of(options: argparse.Namespace) -> list[list[int]]:
    """Return the windows to run, the first tokens of the text."""
    if options.ids:
        ids = np.load(options.ids).tolist()
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
        text = options.text.read_text(encoding="utf-8")[: 16 * options.tokens]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = [] if options.bos is None else [options.bos]
    step = WINDOW - len(before)
    return [before + ids[at : at + step] for at in range(0, options.tokens // WINDOW * step, step)]


def names_of(model: Any) -> gguf.TensorNameMap:  # noqa: ANN401
    """Return the names that GGUF gives to the modules of a model."""
    kind = {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    return gguf.get_tensor_name_map(number, model.config.num_hidden_layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path)
    source.add_argument("--ids", type=Path, help="tokens, an array of NumPy")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--bos", type=int, help="token to begin each window with")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True).eval()
    names, sums = names_of(model), {}

    def watch(name: str) -> Any:  # noqa: ANN401
        def before(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + (rows * rows).sum(0)

        return before

    for path, module in model.named_modules():
        name = names.get_name(path)
        if isinstance(module, torch.nn.Linear) and name and name.startswith("blk."):
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    windows = windows_of(options)
    with torch.no_grad():
        for ids in windows:
            model(torch.tensor([ids]))
    count = sum(map(len, windows))

    writer = gguf.GGUFWriter(options.output, arch="")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [str((options.text or options.ids).name)])
    writer.add_uint32("imatrix.chunk_count", len(windows))
    writer.add_uint32("imatrix.chunk_size", WINDOW)
    for name, total in sums.items():
        writer.add_tensor(f"{name}.in_sum2", total.numpy().astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{options.output}: {len(sums)} layers, {count} tokens")


if __name__ == "__main__":
    main()
