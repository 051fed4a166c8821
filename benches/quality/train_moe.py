"""Train the small mixture of experts of examples/qwen3-moe-5m on a CPU. The text is the Python documentation of Debian.

    python benches/quality/train_moe.py [--to examples/qwen3-moe-5m] [--text tests/data/text/python-docs.txt]

It needs Debian's ``apt-get`` and ``dpkg-deb``, and the Python packages listed below. The tests need none of them. An
interrupted run continues from its last state in ``--work``. The seed is fixed, but XLA's order of summation depends on
the processor: another machine gives a model of the same quality, not of the same bits.
"""

# /// script
# dependencies = ["jax[cpu]==0.10.2", "ml_dtypes", "numpy", "safetensors", "tokenizers==0.23.3"]
# ///

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PACKAGE = "python3.11-doc"
SOURCES = "usr/share/doc/python3.11/html/_sources"
SEED = 19
#: A file is held out when the CRC-32 of its name leaves this remainder.
HELD_OUT = (16, 0)
#: Characters of each held-out file, and of all, in the text to measure on.
EXCERPT, EXCERPTS = 2_300, 60_000
FIRST = "<|endoftext|>"

VOCABULARY, HIDDEN, LAYERS = 4096, 128, 6
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
EXPERTS, CHOSEN, WIDTH = 16, 2, 128
THETA, EPSILON = 10_000.0, 1e-6

WINDOW, BATCH, BLOCK = 256, 8, 64
PEAK, WARM_UP, COOL_DOWN, DECAY, CLIP = 2e-3, 200, 300, 0.1, 1.0
BETAS = (0.9, 0.98)
#: Weight of the loss that balances the experts, and how far above the mean an expert's share may be in training.
BALANCE, CAPACITY = 0.01, 1.5
SAVE_EVERY, SAY_EVERY = 200, 50

Tree = dict[str, Any]
Array = Any


def texts(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Fetch the package; its texts by name, those to train on and those held out."""
    package = work / "package"
    if not package.exists():
        subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True)
        archive = next(work.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(package)], check=True)
    train, held_out = {}, {}
    for path in sorted((package / SOURCES).rglob("*.txt")):
        name = path.relative_to(package / SOURCES).as_posix()
        divisor, remainder = HELD_OUT
        side = held_out if zlib.crc32(name.encode()) % divisor == remainder else train
        side[name] = path.read_text(encoding="utf-8")
    return train, held_out


def train_tokenizer(train: dict[str, str]) -> Tokenizer:
    """Learn a byte-level BPE whose only special token begins texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(FIRST, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(train.values(), trainer)
    return made


def encode(tokenizer: Tokenizer, documents: dict[str, str]) -> np.ndarray:
    """Join the documents' tokens, a first token before each."""
    first = tokenizer.token_to_id(FIRST)
    ids = [[first, *found.ids] for found in tokenizer.encode_batch(list(documents.values()))]
    return np.concatenate([np.asarray(each, np.int32) for each in ids])


def shapes() -> dict[str, tuple[int, ...]]:
    """Name the parameters of the model as the release does, experts of a layer stacked."""
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for at in range(LAYERS):
        layer = f"model.layers.{at}"
        named |= {
            f"{layer}.input_layernorm": (HIDDEN,),
            f"{layer}.post_attention_layernorm": (HIDDEN,),
            f"{layer}.self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            f"{layer}.self_attn.q_norm": (HEAD_DIM,),
            f"{layer}.self_attn.k_norm": (HEAD_DIM,),
            f"{layer}.mlp.gate": (EXPERTS, HIDDEN),
            f"{layer}.mlp.experts.gate_proj": (EXPERTS, WIDTH, HIDDEN),
            f"{layer}.mlp.experts.up_proj": (EXPERTS, WIDTH, HIDDEN),
            f"{layer}.mlp.experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
        }
    return named


def initial() -> Tree:
    """Draw the parameters; projections that add to the residual stream begin smaller."""
    draw = np.random.default_rng(SEED)
    params = {}
    for name, shape in shapes().items():
        if len(shape) == 1:
            params[name] = np.ones(shape, np.float32)
            continue
        scale = 0.02 if name.endswith(("embed_tokens", "mlp.gate")) else 0.05
        if name.endswith(("o_proj", "down_proj")):
            scale /= math.sqrt(2 * LAYERS)
        params[name] = draw.normal(0, scale, shape).astype(np.float32)
    return params


def norm(x: Array, gain: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON) * gain


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x: Array, of: Any) -> Array:  # noqa: ANN401
    batch, length, _ = x.shape
    angles = jnp.outer(jnp.arange(length), THETA ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cos, sin = jnp.cos(angles), jnp.sin(angles)

    def heads(name: str, count: int) -> Array:
        return (x.reshape(-1, HIDDEN) @ of(name).T).reshape(batch, length, count, HEAD_DIM).swapaxes(1, 2)

    q = rotate(norm(heads("self_attn.q_proj", HEADS), of("self_attn.q_norm")), cos, sin) / math.sqrt(HEAD_DIM)
    k = rotate(norm(heads("self_attn.k_proj", KV_HEADS), of("self_attn.k_norm")), cos, sin)
    k, v = (jnp.repeat(each, HEADS // KV_HEADS, 1) for each in (k, heads("self_attn.v_proj", KV_HEADS)))
    mixed = []
    # A block of queries needs no key after it, so blocks halve the work.
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        seen = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        scores = jnp.einsum("bhqd,bhkd->bhqk", q[:, :, start:end], k[:, :, :end]) + jnp.where(seen, 0.0, -1e30)
        mixed.append(jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), v[:, :, :end]))
    joined = jnp.concatenate(mixed, 2).swapaxes(1, 2)
    return (joined.reshape(-1, HEADS * HEAD_DIM) @ of("self_attn.o_proj").T).reshape(x.shape)


def rows(x: Array, at: Array) -> Array:
    """Take rows; one past the end is a row of zeros."""
    return jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])[at]


# Tokens and the slots of the experts point at each other, so both directions, and their derivatives, only gather rows.
@jax.custom_vjp
def dispatch(x: Array, pair_of: Array, slot_of: Array) -> Array:  # noqa: ARG001
    """Copy the rows of tokens to the slots of their experts."""
    return rows(x, pair_of // CHOSEN)


@jax.custom_vjp
def collect(y: Array, pair_of: Array, slot_of: Array) -> Array:  # noqa: ARG001
    """Copy the rows of slots back to pairs of a token and an expert."""
    return rows(y, slot_of)


dispatch.defvjp(
    lambda x, pair_of, slot_of: (dispatch(x, pair_of, slot_of), (slot_of,)),
    lambda kept, g: (rows(g, kept[0]).reshape(-1, CHOSEN, g.shape[1]).sum(1), None, None),
)
collect.defvjp(
    lambda y, pair_of, slot_of: (collect(y, pair_of, slot_of), (pair_of,)),
    lambda kept, g: (rows(g, kept[0]), None, None),
)


def mixture(x: Array, of: Any, capacity: float) -> tuple[Array, Array, Array, Array]:  # noqa: ANN401
    """Compute the experts that answer; also the balancing loss, the experts' loads and the share of pairs left out."""
    tokens = x.shape[0]
    odds = jax.nn.softmax(x @ of("mlp.gate").T, -1)
    weights, chosen = jax.lax.top_k(odds, CHOSEN)
    weights /= weights.sum(-1, keepdims=True)
    chosen = chosen.reshape(-1)
    counts = jax.nn.one_hot(chosen, EXPERTS, dtype=jnp.int32)
    load = counts.sum(0)
    slots = min(math.ceil(capacity * tokens * CHOSEN / EXPERTS), tokens)
    place = jnp.take_along_axis(jnp.cumsum(counts, 0), chosen[:, None], 1)[:, 0] - 1
    slot_of = jnp.where(place < slots, chosen * slots + place, EXPERTS * slots)
    order = jnp.argsort(chosen, stable=True)
    wanted = (jnp.cumsum(load) - load)[:, None] + jnp.arange(slots)
    filled = jnp.arange(slots) < load[:, None]
    pair_of = jnp.where(filled, order[jnp.minimum(wanted, tokens * CHOSEN - 1)], tokens * CHOSEN).reshape(-1)
    held = dispatch(x, pair_of, slot_of).reshape(EXPERTS, slots, HIDDEN)
    gate = jnp.einsum("ech,ewh->ecw", held, of("mlp.experts.gate_proj"))
    up = jnp.einsum("ech,ewh->ecw", held, of("mlp.experts.up_proj"))
    out = jnp.einsum("ecw,ehw->ech", jax.nn.silu(gate) * up, of("mlp.experts.down_proj"))
    pairs = collect(out.reshape(-1, HIDDEN), pair_of, slot_of).reshape(tokens, CHOSEN, HIDDEN)
    share = load / (tokens * CHOSEN)
    balance = EXPERTS * jnp.sum(jax.lax.stop_gradient(share) * odds.mean(0))
    return (pairs * weights[..., None]).sum(1), balance, share, jnp.mean(place >= slots)


def forward(params: Tree, ids: Array, capacity: float) -> tuple[Array, Array, Array, Array]:
    """Compute the logits, the balancing loss, the experts' loads (layer × expert) and the share left out."""
    x = params["model.embed_tokens"][ids]
    balances, loads, lost = [], [], []
    for at in range(LAYERS):

        def of(name: str, at: int = at) -> Array:
            return params[f"model.layers.{at}.{name}"]

        x = x + attention(norm(x, of("input_layernorm")), of)
        normed = norm(x, of("post_attention_layernorm")).reshape(-1, HIDDEN)
        out, balance, load, left = mixture(normed, of, capacity)
        x = x + out.reshape(x.shape)
        balances.append(balance)
        loads.append(load)
        lost.append(left)
    logits = norm(x, params["model.norm"]) @ params["model.embed_tokens"].T
    return logits, jnp.mean(jnp.stack(balances)), jnp.stack(loads), jnp.mean(jnp.stack(lost))


def losses(params: Tree, ids: Array, capacity: float) -> tuple[Array, tuple[Array, Array, Array]]:
    """Mean loss of the tokens after the first, the balancing loss with it; apart: the loss alone, loads, left out."""
    logits, balance, loads, lost = forward(params, ids[:, :-1], capacity)
    picked = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    loss = jnp.mean(jax.nn.logsumexp(logits, -1) - picked)
    return loss + BALANCE * balance, (loss, loads, lost)


@partial(jax.jit, donate_argnums=(0,))
def step(state: Tree, ids: Array, rate: Array) -> tuple[Tree, tuple[Array, Array, Array]]:
    """Update the state by AdamW; the gradient is clipped, gains do not decay."""
    gradient, found = jax.grad(losses, has_aux=True)(state["params"], ids, CAPACITY)
    count = state["count"] + 1
    size = jnp.sqrt(sum(jnp.sum(g * g) for g in gradient.values()))
    clip = jnp.minimum(1.0, CLIP / size)
    params, mean, square = {}, {}, {}
    for name, g in gradient.items():
        mean[name] = BETAS[0] * state["mean"][name] + (1 - BETAS[0]) * clip * g
        square[name] = BETAS[1] * state["square"][name] + (1 - BETAS[1]) * (clip * g) ** 2
        scale = jnp.sqrt(square[name] / (1 - BETAS[1] ** count)) + 1e-8
        move = mean[name] / (1 - BETAS[0] ** count) / scale
        decay = DECAY if g.ndim > 1 else 0.0
        params[name] = state["params"][name] - rate * (move + decay * state["params"][name])
    return {"params": params, "mean": mean, "square": square, "count": count}, found


def windows(ids: np.ndarray, first: int) -> np.ndarray:
    """Cut the tokens into windows that each begin with the first token."""
    body = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return np.concatenate([np.full((len(body), 1), first, np.int32), body], 1)


def batch(ids: np.ndarray, at: int, first: int) -> np.ndarray:
    """Take the batch of step ``at``; every epoch cuts and orders the windows in another way."""
    per_epoch = (len(ids) - WINDOW) // WINDOW // BATCH
    draw = np.random.default_rng([SEED, at // per_epoch])
    shift = draw.integers(WINDOW)
    order = draw.permutation(per_epoch * BATCH)
    chosen = order[at % per_epoch * BATCH :][:BATCH]
    starts = shift + chosen * WINDOW
    body = ids[starts[:, None] + np.arange(WINDOW)]
    return np.concatenate([np.full((BATCH, 1), first, np.int32), body], 1)


@jax.jit
def measured(params: Tree, ids: Array) -> tuple[Array, Array]:
    """Loss and loads where no expert's share is limited."""
    _, (loss, loads, _) = losses(params, ids, EXPERTS / CHOSEN)
    return loss, loads


def held_out_loss(params: Tree, ids: np.ndarray, first: int) -> tuple[float, np.ndarray]:
    """Mean loss over whole batches of held-out windows, and the loads of the experts."""
    cut = windows(ids, first)
    found = [measured(params, cut[at : at + BATCH]) for at in range(0, len(cut) - BATCH + 1, BATCH)]
    return float(np.mean([loss for loss, _ in found])), np.mean([loads for _, loads in found], 0)


def rate(at: int, steps: int) -> float:
    """Learning rate: it rises, stays, and falls over the last steps. Before them it is the same for any ``steps``."""
    return PEAK * min((at + 1) / WARM_UP, 1.0, 0.02 + 0.98 * (steps - at) / COOL_DOWN)


def saved(state: Tree, path: Path) -> None:
    """Replace the state on the disk at once."""
    held = {f"{part}/{name}": np.asarray(x) for part in ("params", "mean", "square") for name, x in state[part].items()}
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, count=np.asarray(state["count"]), **held)
    fresh.replace(path)


def opened(path: Path) -> Tree:
    """Read the state on the disk, or begin."""
    if not path.exists():
        params = initial()
        zeros = {name: np.zeros_like(x) for name, x in params.items()}
        return {"params": params, "mean": zeros, "square": dict(zeros), "count": np.int32(0)}
    held = np.load(path)
    state: Tree = {"params": {}, "mean": {}, "square": {}, "count": np.int32(held["count"])}
    for key in held.files:
        if "/" in key:
            part, _, name = key.partition("/")
            state[part][name] = held[key]
    return state


def train(ids: np.ndarray, held_out: np.ndarray, first: int, steps: int, path: Path) -> Tree:
    """Train to the last step; the parameters."""
    state = jax.device_put(opened(path))
    begun, least = time.monotonic(), int(state["count"])
    for at in range(least, steps):
        state, (loss, loads, lost) = step(state, batch(ids, at, first), np.float32(rate(at, steps)))
        if (at + 1) % SAY_EVERY == 0:
            pace = (time.monotonic() - begun) / (at + 1 - least)
            spread = f"loads {float(loads.min()):.3f}-{float(loads.max()):.3f}, left out {float(lost):.4f}"
            print(f"step {at + 1}: loss {float(loss):.4f}, {spread}, {pace:.3f} s a step", flush=True)
        if (at + 1) % SAVE_EVERY == 0 or at + 1 == steps:
            saved(state, path)
            print(f"step {at + 1}: held out {held_out_loss(state['params'], held_out, first)[0]:.4f}", flush=True)
    return state["params"]


def write(params: Tree, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint with a tensor for each expert, as releases have it, ``config.json`` last."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in params.items():
        layer, experts, module = name.partition(".experts.")
        held = np.asarray(value).astype(ml_dtypes.bfloat16)
        if experts:
            tensors |= {f"{layer}.experts.{at}.{module}.weight": each.copy() for at, each in enumerate(held)}
        else:
            tensors[f"{name}.weight"] = held
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    first = tokenizer.token_to_id(FIRST)
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": FIRST, "eos_token": FIRST}
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "moe_intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": BALANCE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": WINDOW,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_theta": THETA,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": first,
        "eos_token_id": first,
        "torch_dtype": "bfloat16",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(special, indent=1) + "\n", encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("examples/qwen3-moe-5m"))
    parser.add_argument("--text", type=Path, default=Path("tests/data/text/python-docs.txt"))
    parser.add_argument("--work", type=Path, default=Path("build/moe"))
    parser.add_argument("--steps", type=int, default=1700)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    documents, held_out = texts(options.work)
    tokenizer = train_tokenizer(documents)
    first = tokenizer.token_to_id(FIRST)
    ids, apart = encode(tokenizer, documents), encode(tokenizer, held_out)
    size = sum(len(text.encode()) for text in held_out.values())
    print(f"{len(documents)} files, {len(ids):,} tokens; held out {len(held_out)}, {len(apart):,} of {size:,} bytes")
    params = train(ids, apart, first, options.steps, options.work / "state.npz")
    rounded = {name: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in params.items()}
    loss, loads = held_out_loss(rounded, apart, first)
    bits = loss / math.log(2) * len(apart) / size
    print(f"in bfloat16: {loss:.4f} a token, {bits:.4f} bits a byte; loads {loads.min():.4f} to {loads.max():.4f}")
    for layer in loads:
        print(" ".join(f"{load:.3f}" for load in layer))
    write(params, tokenizer, options.to)
    excerpts = "".join(text[:EXCERPT].rpartition("\n")[0] + "\n" for text in held_out.values())
    options.text.write_text(excerpts[:EXCERPTS], encoding="utf-8")


if __name__ == "__main__":
    main()
