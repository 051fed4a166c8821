"""Names of tensors in GGUF: those of the official converter, and of the package `gguf`."""

import re

import gguf
import pytest
from fixtures.gguf import CASES, recorded
from fixtures.gguf_names import GENERATED, NAMES, OUTER
from fixtures.models import RELEASES, VARIANTS


@pytest.mark.parametrize("model_type", NAMES)
def test_the_package_has_the_same_names(model_type):
    family = NAMES[model_type]
    (architecture,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, 2)
    for module, expected in family.layer.items():
        found = names.get_name(f"model.layers.1.{module}")
        assert found == f"blk.1.{expected}", module
    for module, expected in OUTER.items():
        assert names.get_name(module) == (None if expected == "output" and family.headless else expected), module


def source_tensors(config, made):
    """Return the tensors of a checkpoint, those of gpt-oss in halves, as the converter takes them apart."""
    model = RELEASES[made["release"]] if "release" in made else VARIANTS[made["variant"]]
    for name in model.shapes(config):
        # The last projections' biases have names of their own, and the matrices no `.weight`.
        spelt = re.sub(r"(experts\.\w+_proj)_bias$", r"\1.bias", name)
        if "experts.gate_up_proj" in spelt:
            yield from (spelt.replace("gate_up", half) for half in ("gate", "up"))
        else:
            yield spelt


@pytest.mark.parametrize("name", CASES)
def test_the_converter_has_the_same_names(name):
    document = recorded(name)
    family = NAMES[document["config"]["model_type"]]
    assert document["keys"]["general.architecture"]["value"] == family.architecture
    expected = {family.of(tensor) for tensor in source_tensors(document["config"], document["made"])}
    found = [tensor["name"] for tensor in document["tensors"]]
    assert len(found) == len(set(found))
    assert set(found) - set(GENERATED) == expected
