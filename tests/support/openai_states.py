"""Names and shapes of the state dicts that improved-diffusion and guided-diffusion save."""

import numpy as np


def shapes(
    *,
    channels=32,
    mult=(1, 2),
    blocks=1,
    attention=(1,),
    classes=0,
    image=3,
    out=3,
    scale_shift=True,
    halving="op",
):
    """Of `UNetModel`, as its code builds it.

    Args:
        attention: levels, from 0, that have it.
        halving: "op", a convolution; "block", a residual block; or "pool", an average.
    """
    found, time = {}, 4 * channels

    def layer(name, *shape):
        found[f"{name}.weight"] = shape
        found[f"{name}.bias"] = shape[:1]

    def block(name, before, after):
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", after * (1 + scale_shift), time)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attend(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    def resample(name, conv, width):
        if halving == "op":
            layer(f"{name}.{conv}", width, width, 3, 3)
        elif halving == "block":
            block(name, width, width)

    layer("time_embed.0", time, channels)
    layer("time_embed.2", time, time)
    if classes:
        found["label_emb.weight"] = (classes, time)
    widths = [int(m * channels) for m in mult]
    layer("input_blocks.0.0", widths[0], image, 3, 3)
    width, number, skips = widths[0], 1, [widths[0]]
    for level, after in enumerate(widths):
        for _ in range(blocks):
            block(f"input_blocks.{number}.0", width, after)
            if level in attention:
                attend(f"input_blocks.{number}.1", after)
            width, number = after, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            resample(f"input_blocks.{number}.0", "op", width)
            number += 1
            skips.append(width)
    block("middle_block.0", width, width)
    attend("middle_block.1", width)
    block("middle_block.2", width, width)
    number = 0
    for level, after in reversed([*enumerate(widths)]):
        for index in range(blocks + 1):
            block(f"output_blocks.{number}.0", width + skips.pop(), after)
            if level in attention:
                attend(f"output_blocks.{number}.1", after)
            if level and index == blocks:
                resample(f"output_blocks.{number}.{1 + (level in attention)}", "conv", after)
            width, number = after, number + 1
    layer("out.0", width)
    layer("out.2", out, width, 3, 3)
    return found


def random_state(seed=0, **options):
    """Random float32 tensors of these shapes."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(**options).items()
    }
