"""The data sets by name, a record each: a new one is one record here, and a reader if its files have a new form.

Everything that others ask of a data set is a key of its record. Needs nothing but Python, so that study files are read
before NumPy or torch are there; a reader is named as ``module:function`` and imported when images are asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetRecord:
    """What is known of a data set without its files.

    Attributes:
        name: as in a study file.
        title: for figures.
        image_shape: height, width, channels (1 or 3).
        num_classes: labels run from 0 to one less.
        num_train: images for training; where there is no official test set, all images.
        num_test: of the official test set; 0 where there is none, and what a split leaves over is tested on.
        rarest: images of the rarest class for training, and in the official test set; None: unknown.
        reader: ``module:function``; it takes this record and the folder of its files and returns uint8 images
            (N, height, width, channels), training images first, and int64 labels (N,).
        citation: who is to be cited.
        licence: as its authors state it.
        highest: largest raw pixel value.
        is_ink: whether high values are dark, for figures.
        taken_for: by label the class that it is taken for where wrong labels are asymmetric; empty: nobody says.
        class_names: for figures, by label; empty: labels are shown as numbers.
        folder: of its files, below ``DD_DATASETS``; empty where a package brings them.
        source: what belongs into that folder, for people.
        files: the official MD5 sums of its files by name, in the order they are read; those of unpacked files where a
            reader takes packed ones too.
        torchvision: the class that can download it; empty where there is none.
        download_options: its arguments for each part that is to be downloaded.
        download_folder: below ``DD_DATASETS``, what that class calls its root.
        examples: images, or graphs, of which ``image_shape`` is (1, 1, features of a node) and a study says how many.
    """

    name: str
    title: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    reader: str
    rarest: tuple[int, int] | None = None
    citation: str = ""
    licence: str = ""
    highest: int = 255
    is_ink: bool = False
    taken_for: Mapping[int, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    folder: str = ""
    source: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    torchvision: str = ""
    download_options: tuple[Mapping[str, object], ...] = ({},)
    download_folder: str = ""
    examples: str = "images"

    @property
    def has_images(self) -> bool:
        """Whether its examples are images."""
        return self.examples == "images"


# Patrini et al. 2017, section 5: digits that look alike; truck to automobile, bird to airplane, deer to horse, cat to
# dog and back; and in CIFAR-100 each class to the next of its superclass, the last to the first.
_LIKE_DIGITS = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
_LIKE_OBJECTS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
# The superclass (coarse label) of each class of CIFAR-100, as its files say.
CIFAR100_SUPERCLASSES = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
)


def _next_within(groups: tuple[int, ...]) -> dict[int, int]:
    """For each class the next of its group, for the last of a group the first."""
    members = {group: [label for label, own in enumerate(groups) if own == group] for group in groups}
    return {
        own: other for labels in members.values() for own, other in zip(labels, labels[1:] + labels[:1], strict=True)
    }


_RECORDS = (
    DatasetRecord(
        name="digits",
        title="scikit-learn digits",
        image_shape=(8, 8, 1),
        num_classes=10,
        num_train=1797,
        num_test=0,
        reader="dd_core.data.readers.digits:read",
        rarest=(174, 0),
        citation="E. Alpaydin, C. Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), test set",
        licence="CC BY 4.0",
        taken_for=_LIKE_DIGITS,
        highest=16,
        is_ink=True,
    ),
    DatasetRecord(
        name="cifar10",
        title="CIFAR-10",
        image_shape=(32, 32, 3),
        num_classes=10,
        num_train=50_000,
        num_test=10_000,
        reader="dd_core.data.readers.cifar:read",
        rarest=(5000, 1000),
        citation="A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        licence="none stated",
        taken_for=_LIKE_OBJECTS,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        folder="cifar-10-batches-py",
        source="the official Python version of cifar10",
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        torchvision="CIFAR10",
    ),
    DatasetRecord(
        name="cifar100",
        title="CIFAR-100",
        image_shape=(32, 32, 3),
        num_classes=100,
        num_train=50_000,
        num_test=10_000,
        reader="dd_core.data.readers.cifar:read",
        rarest=(500, 100),
        citation="A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        licence="none stated",
        taken_for=_next_within(CIFAR100_SUPERCLASSES),
        folder="cifar-100-python",
        source="the official Python version of cifar100",
        files={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        torchvision="CIFAR100",
    ),
    DatasetRecord(
        name="mnist",
        title="MNIST",
        image_shape=(28, 28, 1),
        num_classes=10,
        num_train=60_000,
        num_test=10_000,
        reader="dd_core.data.readers.idx:read",
        rarest=(5421, 892),
        citation="Y. LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition",
        licence="CC BY-SA 3.0",
        taken_for=_LIKE_DIGITS,
        folder="MNIST/raw",
        source="the four files of mnist, packed with gzip or not,",
        files={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        torchvision="MNIST",
    ),
    DatasetRecord(
        name="fashion_mnist",
        title="Fashion-MNIST",
        image_shape=(28, 28, 1),
        num_classes=10,
        num_train=60_000,
        num_test=10_000,
        reader="dd_core.data.readers.idx:read",
        rarest=(6000, 1000),
        citation="H. Xiao, K. Rasul, R. Vollgraf 2017, Fashion-MNIST (arXiv:1708.07747)",
        licence="MIT",
        class_names=(
            *("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
        folder="FashionMNIST/raw",
        source="the four files of fashion_mnist, packed with gzip or not,",
        files={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        torchvision="FashionMNIST",
    ),
    DatasetRecord(
        name="svhn",
        title="SVHN",
        image_shape=(32, 32, 3),
        num_classes=10,
        num_train=73_257,
        num_test=26_032,
        reader="dd_core.data.readers.svhn:read",
        rarest=(4659, 1595),
        citation="Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng 2011, Reading Digits in Natural Images",
        licence="non-commercial use only",
        folder="svhn",
        source="the files train_32x32.mat and test_32x32.mat of svhn",
        files={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        torchvision="SVHN",
        download_options=({"split": "train"}, {"split": "test"}),
        download_folder="svhn",
    ),
    DatasetRecord(
        name="tiny_imagenet",
        title="Tiny ImageNet",
        image_shape=(64, 64, 3),
        num_classes=200,
        num_train=100_000,
        num_test=10_000,
        reader="dd_core.data.readers.tiny_imagenet:read",
        rarest=(500, 50),
        citation="Y. Le, X. Yang 2015, Tiny ImageNet Visual Recognition Challenge (Stanford CS 231N)",
        licence="that of ImageNet: non-commercial research",
        folder="tiny-imagenet-200",
        source="the official archive tiny-imagenet-200.zip of tiny_imagenet",
    ),
    DatasetRecord(
        name="nsm",
        title="NSM problems",
        image_shape=(1, 1, 64),
        num_classes=2,
        num_train=0,
        num_test=0,
        reader="",
        citation="the generators of research-developer/nsm, a domain for every variant",
        licence="none needed: made from the study's seed",
        examples="graphs",
    ),
)

DATASETS: dict[str, DatasetRecord] = {record.name: record for record in _RECORDS}
