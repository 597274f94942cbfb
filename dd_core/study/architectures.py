"""The architectures: what each is called and costs. Needs no torch."""


def forward_flops(architecture: str, k: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """FLOPs of one image's forward pass.

    Args:
        architecture: as in a study file.
        k: width multiplier.
        image_shape: height, width, channels.
        num_classes: of the output.

    Raises:
        KeyError: no such architecture (a validated study cannot name one).
    """
    if architecture == "cnn5":
        return _cnn5(k, image_shape, num_classes)
    return _preact_resnet(k, {"preact_resnet18": 2, "preact_resnet10": 1}[architecture], image_shape, num_classes)


def _convolution(height: int, width: int, inputs: int, outputs: int, kernel: int) -> int:
    """Of a convolution whose output is ``height`` x ``width``."""
    return 2 * height * width * inputs * outputs * kernel**2


def _cnn5(k: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    height, width, channels = image_shape
    flops = 0
    for stage in range(4):
        flops += _convolution(height, width, channels, k * 2**stage, 3)
        channels = k * 2**stage
        if stage:
            height, width = height // 2, width // 2
    return flops + 2 * channels * num_classes


def _preact_resnet(k: int, blocks_per_stage: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    height, width, channels = image_shape
    flops = _convolution(height, width, channels, k, 3)
    channels = k
    for stage in range(4):
        for block in range(blocks_per_stage):
            outputs = k * 2**stage
            if stage and block == 0:
                height, width = -(-height // 2), -(-width // 2)
            flops += _convolution(height, width, channels, outputs, 3) + _convolution(
                height, width, outputs, outputs, 3
            )
            if channels != outputs:
                flops += _convolution(height, width, channels, outputs, 1)
            channels = outputs
    return flops + 2 * channels * num_classes
