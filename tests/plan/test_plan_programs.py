"""Precision in the programs that the compilers of TPUs and of GPUs make of a bfloat16 network."""

import re

import pytest
from compilers import printed

PROGRAM = """
import dataclasses, sys
import tiny
from ddpm_jax.experiment import image_spec_of
from ddpm_jax.plan import lower, topologies

config = tiny.get_config()
network = dataclasses.replace(
    config.network, dtype="bfloat16", attention_resolutions=(8,), heads=2
)
config = dataclasses.replace(config, network=network)
devices = topologies.devices(topologies.parse(sys.argv[1]))
print(lower.lower_step(config, devices, image_spec_of(config)).compile().as_text())
"""


def convolutions(text):
    """The dtypes of the two operands of each convolution of the network."""
    pairs = []
    for computation in re.split(r"\n(?=\S)", text):
        dtypes = dict(re.findall(r"%([\w.\-]+) = \(?(\w+)\[", computation))
        for line in computation.splitlines():
            found = re.search(r" (?:convolution|custom-call)\(%([\w.\-]+), %([\w.\-]+)", line)
            if found and re.search(r'op_name="[^"]*conv_general_dilated', line):
                pairs.append((dtypes[found[1]], dtypes[found[2]]))
    return pairs


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:2"])
def test_gradients_are_of_bfloat16_operands_and_averaged_in_float32(name):
    text = printed(name, PROGRAM)
    # 12 layers have an output, two gradients each, and nobody asks for that of the image.
    assert convolutions(text) == [("bf16", "bf16")] * (3 * 12 - 1)
    reductions = re.findall(r"%all-reduce(?:-start)?(?:\.\d+)? = (.*?) all-reduce", text)
    assert set(re.findall(r"(\w+)\[", " ".join(reductions))) == {"f32", "s32"}  # and the times
