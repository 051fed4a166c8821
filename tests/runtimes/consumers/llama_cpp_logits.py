"""Compute logits with llama.cpp, and generate: runs in an environment of its own, with ramrs' package beside it.

    python llama_cpp_logits.py JOB.json

The job is ``{"tokens": [...], "runs": [{"checkpoint": GGUF, "output": PATH, "dtype": "stored"}, ...]}``. A run writes
the logits ``[tokens, vocabulary]`` to OUTPUT.npy in float32, and what happened to OUTPUT.json: ``loaded`` and the
tokens ``generated`` greedily, or the type and message of the error. With the dtype ``float32`` all weights are decoded
before, so that the kernels round nothing: then the logits are those of exact arithmetic.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from ramrs.runtimes.llama_cpp import opened

GENERATED = 8
"""Tokens to generate."""


def write_decoded(source: Path, output: Path) -> Path:
    """Write a GGUF with the same keys, and all its tensors in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(output, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def run(tokens: list[int], checkpoint: str, output: str, dtype: str) -> None:
    """Write the logits of a checkpoint, or why there are none."""
    began = time.monotonic()
    try:
        file = Path(checkpoint)
        if dtype == "float32":
            file = write_decoded(file, Path(f"{output}.gguf"))
        with opened(file, len(tokens) + GENERATED) as model:
            np.save(f"{output}.npy", model.logits(tokens))
            report: dict[str, Any] = {"loaded": True, "generated": model.generate(tokens, GENERATED)}
    except Exception as error:  # whatever the runtime raises is its answer
        report = {"loaded": False, "type": type(error).__name__, "message": str(error)}
    report["seconds"] = round(time.monotonic() - began, 2)
    Path(f"{output}.json").write_text(json.dumps(report), encoding="utf-8")


def main() -> None:
    """Run a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    for item in job["runs"]:
        run(job["tokens"], **item)


if __name__ == "__main__":
    main()
