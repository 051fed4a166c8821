"""How fast other programs quantize the same matrices, beside ramrs, in processor time.

    python benches/synthetic.py /tmp/2gb --gigabytes 2
    OPENBLAS_NUM_THREADS=1 python benches/peers.py /tmp/2gb [--rounds 3] [--llama-quantize BIN]

Of llama.cpp the program that `--llama-quantize` names, or else its library, where llama-cpp-python is installed. Every
round runs each once: `cargo bench --bench speed` over the checkpoint; `mx.quantize` on the CPU, NumPy and llama.cpp
over its first layer, embedding and head, and the slowest two over one matrix. Rates are bytes of bfloat16 source for a
second of processor, of all threads together. MLX and NumPy start from memory; ramrs and llama.cpp read a file in the
page cache, and the latter also writes to `/dev/null`.

HQQ's optimization (Badri and Shaji 2023: half-quadratic, p = 0.7, β = 10 growing by 1 % a step, at most 20 steps) and
the four scores of SWAN (concentration of singular values, excess kurtosis, amplified noise, error of 4 bits) are
written here from their published formulas, in NumPy: what the mathematics costs, not what those programs do.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP, BITS = 64, 4
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "self_attn.q_proj": "blk.0.attn_q",
    "self_attn.k_proj": "blk.0.attn_k",
    "self_attn.v_proj": "blk.0.attn_v",
    "self_attn.o_proj": "blk.0.attn_output",
    "mlp.gate_proj": "blk.0.ffn_gate",
    "mlp.up_proj": "blk.0.ffn_up",
    "mlp.down_proj": "blk.0.ffn_down",
}
RIVALS = ["curves", "fast", "normal"]


def read(checkpoint: Path) -> dict[str, np.ndarray]:
    """Matrices of the first layer, the embedding and the head, by their names in GGUF: bits of bfloat16."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            name = re.sub(r"^model\.layers\.0\.", "", name).removesuffix(".weight")
            if name in GGUF_NAMES:
                start, shape = 8 + size + entry["data_offsets"][0], tuple(entry["shape"])
                found[GGUF_NAMES[name]] = np.array(np.memmap(path, "<u2", "r", start, shape))
    return found


def widened(matrix: np.ndarray) -> np.ndarray:
    return (matrix.astype(np.uint32) << 16).view(np.float32)


def rtn(values: np.ndarray, group: int = GROUP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and biases of round-to-nearest between the least and the greatest of each group."""
    groups = values.reshape(-1, group)
    bias = groups.min(1, keepdims=True)
    scale = np.maximum((groups.max(1, keepdims=True) - bias) / np.float32(2**BITS - 1), np.float32(1e-12))
    return np.clip(np.rint((groups - bias) / scale), 0, 2**BITS - 1), scale, bias


def rtn_packed(matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    codes, scale, bias = rtn(widened(matrix))
    codes = codes.astype(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale.astype(np.float16), bias.astype(np.float16)


def hqq(matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """Half-quadratic search of the zero point ``z``: least ``|w − (q − z)/s|^p``, ``s`` as round-to-nearest has it."""
    p, beta, growth, steps = 0.7, 10.0, 1.01, 20
    weights = widened(matrix).reshape(-1, GROUP)
    _, scale, bias = rtn(weights)
    scale = 1 / scale
    zero, best = -bias * scale, np.inf
    for _ in range(steps):
        codes = np.clip(np.rint(weights * scale + zero), 0, 2**BITS - 1)
        decoded = (codes - zero) / scale
        off = weights - decoded
        size = np.abs(off)
        error = float(size.mean())
        if error >= best:
            break
        best = error
        shrunk = np.sign(off) * np.maximum(size - (size + np.float32(1e-12)) ** np.float32(p - 1) / np.float32(beta), 0)
        zero = (codes - (weights - shrunk) * scale).mean(1, keepdims=True)
        beta *= growth
    codes = np.clip(np.rint(weights * scale + zero), 0, 2**BITS - 1).astype(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale, zero


def swan(matrix: np.ndarray) -> tuple[float, ...]:
    """Its four scores before they are scaled; singular values by a randomized range of rank 256."""
    rank, probes, random = 256, 32, np.random.default_rng(0)
    weights = widened(matrix)
    sketch, _ = np.linalg.qr(weights @ random.standard_normal((weights.shape[1], rank), np.float32))
    squares = np.linalg.svd(sketch.T @ weights, compute_uv=False) ** 2
    concentration = squares[: rank // 10].sum() / squares.sum()
    centred = weights - weights.mean()
    second = np.square(centred)
    kurtosis = np.square(second).mean() / second.mean() ** 2 - 3
    inputs = random.standard_normal((weights.shape[1], probes), np.float32)
    inputs /= np.linalg.norm(inputs, axis=0)
    noise = (random.random(weights.shape, np.float32) - np.float32(0.5)) * (np.ptp(weights) / np.float32(16))
    amplified = np.linalg.norm(noise @ inputs) / np.linalg.norm(weights @ inputs)
    codes, scale, bias = rtn(weights, 128)
    error = np.linalg.norm(codes * scale + bias - weights.reshape(-1, 128)) / np.linalg.norm(weights)
    return float(concentration), float(kurtosis), float(amplified), float(error)


def write_gguf(path: Path, matrices: dict[str, np.ndarray], config: dict[str, int]) -> None:
    """A llama of one layer with these matrices in float16, and no vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    vocabulary, width = matrices["token_embd"].shape
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(matrices["blk.0.ffn_up"].shape[0])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for name, matrix in matrices.items():
        writer.add_tensor(f"{name}.weight", widened(matrix).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_process(matrices: list[np.ndarray], quantize: Callable[[np.ndarray], object]) -> float:
    """GB/s of ``quantize`` over ``matrices``."""
    start = time.process_time()
    for matrix in matrices:
        quantize(matrix)
    return sum(matrix.nbytes for matrix in matrices) / (time.process_time() - start) / 1e9


def mlx(matrices: list[np.ndarray], bits: int) -> float:
    weights = [mx.array(matrix).view(mx.bfloat16) for matrix in matrices]
    mx.eval(weights)
    start = time.process_time()
    for weight in weights:
        mx.eval(mx.quantize(weight, group_size=GROUP, bits=bits))
    return sum(weight.nbytes for weight in weights) / (time.process_time() - start) / 1e9


THROUGH_PYTHON = """
import ctypes, sys, llama_cpp
*flags, source, out, kind, threads = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.nthread, options.ftype = int(threads), getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
options.pure = "--pure" in flags
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(options)))
"""
"""What `llama-quantize` does, with the same arguments."""


def llama_quantize(program: Path | None) -> list[str] | None:
    """The command that takes the arguments of `llama-quantize`, if there is one."""
    if program:
        return [str(program)]
    return [sys.executable, "-c", THROUGH_PYTHON] if importlib.util.find_spec("llama_cpp") else None


def llama_cpp(weights: int, command: list[str]) -> float:
    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start = used()
    subprocess.run(command, check=True, capture_output=True)
    return 2 * weights / (used() - start) / 1e9


def ramrs(checkpoint: Path) -> dict[str, float]:
    command = [
        "cargo",
        "bench",
        "--quiet",
        "--locked",
        "--bench",
        "speed",
        "--",
        str(checkpoint.resolve()),
        "1",
        "--json",
    ]
    root = Path(__file__).parent.parent
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} [{min(values):.4g} .. {max(values):.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-quantize", type=Path, metavar="BIN")
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    by_name = read(options.checkpoint)
    matrices, weights = list(by_name.values()), sum(matrix.size for matrix in by_name.values())
    square = by_name["blk.0.attn_q"]
    print(
        f"{len(matrices)} matrices of {weights / 1e6:.1f} million weights; HQQ 1024 rows and SWAN all of {square.shape}"
    )
    tasks: dict[str, Callable[[], float]] = {
        f"mx.quantize {bits}g{GROUP}": lambda bits=bits: mlx(matrices, bits) for bits in (4, 8, 3)
    }
    tasks |= {
        "NumPy, 4g64, rounded and packed": lambda: in_process(matrices, rtn_packed),
        "HQQ's optimization, 4g64 (formulas)": lambda: in_process([square[:1024]], hqq),
        "SWAN's four scores (formulas)": lambda: in_process([square], swan),
    }
    with tempfile.TemporaryDirectory() as scratch:
        if program := llama_quantize(options.llama_quantize):
            source = Path(scratch) / "f16.gguf"
            write_gguf(source, by_name, json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8")))
            for kind, flags in (("Q4_0", ["--pure"]), ("Q4_K_M", [])):
                command = [*program, *flags, str(source), "/dev/null", kind, "1"]
                title = " ".join(["llama.cpp", *flags, kind])
                tasks[title] = lambda command=command: llama_cpp(weights, command)
        else:
            print("no llama.cpp: give --llama-quantize BIN, or install llama-cpp-python")
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            rates = ramrs(options.checkpoint) | {title: task() for title, task in tasks.items()}
            for title, rate in rates.items():
                found.setdefault(title, []).append(rate)
    print(
        f"| | GB/s and core | {' | '.join(f'ramrs {rival} is faster by' for rival in RIVALS)} |\n|---|---|---|---|---|"
    )
    for title, rates in found.items():
        times = [spread([ours / theirs for ours, theirs in zip(found[rival], rates, strict=True)]) for rival in RIVALS]
        print(f"| {f'ramrs {title}' if title not in tasks else title} | {spread(rates)} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
