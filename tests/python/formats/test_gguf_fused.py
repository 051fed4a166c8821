"""GGUF sources of which the converter has fused projections: read, measured and quantized as the separate ones are."""

import hashlib

import gguf
import numpy as np
import pytest
import ramrs
from fixtures.gguf import CASES, FUSED, GATE_UP, QKV, header, recorded, write_fused
from fixtures.tiers import slow_but_for

MIXTURES = ["qwen2_moe"]


class Model:
    """A release, its GGUF file in the bits of the release, and the same with projections fused."""

    def __init__(self, name, folder, fusions):
        self.release = CASES[name].write(folder / "source")
        settings = {"header": header(name), "sensitivity": "weights"}
        self.separate = folder / "separate.gguf"
        ramrs.quantize(self.release, self.separate, budget=33, **settings)
        self.fused = write_fused(self.separate, folder / "fused.gguf", fusions)
        self.fusions = fusions

    def parts(self, name):
        """Return the names of the tensors that the fused one consists of."""
        layer, _, rest = name.rpartition(".")[0].rpartition(".")
        return [name.replace(f"{layer}.{rest}.", f"{layer}.{part}.") for part in self.fusions.get(rest, [rest])]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def model(name, fusions=QKV):
        key = name, *fusions
        if key not in made:
            made[key] = Model(name, tmp_path_factory.mktemp(name), fusions)
        return made[key]

    return model


@pytest.mark.parametrize("name", FUSED)
def test_the_converter_makes_the_same_file(name, models):
    found = {
        tensor.name: hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest()
        for tensor in gguf.GGUFReader(models(name).fused).tensors
    }
    assert found == {tensor["name"]: tensor["sha256"] for tensor in recorded(f"{name}.fused")["tensors"]}
    assert any("attn_qkv" in tensor for tensor in found)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_file_is_the_release(name, models):
    model = models(name)
    assert ramrs.eval(model.fused, reference=model.release, max_tokens=256).kl_mean < 1e-9


@pytest.mark.parametrize(("name", "fusions"), [(name, QKV) for name in FUSED] + [(name, GATE_UP) for name in MIXTURES])
def test_fused_matrices_cost_what_their_parts_cost(name, fusions, models):
    """The probe finds the gain of each row, and the importance of each column, in the one and in the other."""
    model = models(name, fusions)
    fused, separate = (ramrs.analyze(path, sample_bands=0) for path in (model.fused, model.separate))
    assert fused.settings.sensitivity == "probe"
    curves = {tensor.name: tensor.curve for tensor in separate.tensors}
    joined = [tensor for tensor in fused.tensors if model.parts(tensor.name) != [tensor.name] and tensor.curve]
    assert joined
    for tensor in joined:
        parts = [curves[part] for part in model.parts(tensor.name)]
        # Nearly the same: the importance of the columns is one for the rows of all parts.
        assert tensor.curve.signal == pytest.approx(sum(part.signal for part in parts), rel=2e-2)
        for at, point in enumerate(tensor.curve.points):
            assert point.loss == pytest.approx(sum(part.points[at].loss for part in parts), rel=2e-2)


@pytest.mark.parametrize("name", slow_but_for(["llama_bias"], FUSED))
def test_a_fused_file_is_quantized_and_verified(name, models, tmp_path):
    model, output = models(name), tmp_path / "out.gguf"
    report = ramrs.quantize(model.fused, output, budget=5.0, check=False)
    assert report.plan.settings.sensitivity == "probe"
    assert ramrs.verify(output, source=model.fused).ok
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(output).tensors}
    planned = {tensor.name: tensor.scheme for tensor in report.plan.tensors if "attn_qkv.weight" in tensor.name}
    assert planned
    assert {tensor: types[tensor] for tensor in planned} == planned
