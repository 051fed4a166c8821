"""mlx-lm."""

from __future__ import annotations

import textwrap
from pathlib import Path

from ramrs.runtimes import Found

FORMAT = "mlx"
MODULES = ("mlx.core", "mlx_lm.utils")
PACKAGES = "'ramrs[mlx]'"


def version() -> str:
    """Return the version of the runtime."""
    from mlx_lm import __version__

    return f"mlx-lm {__version__}"


def run(output: Path, tokens: list[int]) -> Found:
    """Load an output strictly, and run it in float32 on the CPU."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model

    with mx.stream(mx.cpu):
        try:
            model, _ = load_model(output)
            model.set_dtype(mx.float32)
            found = np.array(model(mx.array([tokens]))[0].astype(mx.float32))
        except (Exception, SystemExit) as fault:  # of any kind: this is model code
            reason = textwrap.shorten(f"{type(fault).__name__}: {fault}", 300, placeholder=" …")
            return Found(None, [f"it does not load and run the output: {reason}"])
    return Found(found, [])
