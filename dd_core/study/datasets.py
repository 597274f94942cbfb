"""The data sets by name: shape, classes and sizes. Needs nothing but Python."""

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}


IMAGE_SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}


NUM_TRAIN = {"digits": 1797, "cifar10": 50_000, "cifar100": 50_000}


NUM_OFFICIAL_TEST = {"digits": 0, "cifar10": 10_000, "cifar100": 10_000}
