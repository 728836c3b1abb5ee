"""What published sets are made of and where they come from.

The table is the only place where the package says these things: `dpldm public check` shows it, and docs/datasets.md is
tested against it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpldm.data.batches import CIFAR10, CIFAR100, IMAGENET, Batches
from dpldm.data.trees import EUROSAT_CLASSES
from dpldm.errors import UserError


@dataclass(frozen=True)
class Part:
    """Something that must be there, at one of several places (glob patterns from the folder that a user gives)."""

    what: str
    places: tuple[str, ...]
    needed: bool = True

    def lies_in(self, root: Path) -> bool:
        """Whether it is there."""
        return any(next(root.glob(place), None) is not None for place in self.places)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A set of the field, or a format in which sets are given away."""

    title: str
    parts: tuple[Part, ...]
    origin: str
    """Where to get it."""
    archives: str
    """What to get there, and what to do with it."""
    licence: str
    splits: Mapping[str, int] = field(default_factory=dict)
    """Published number of images of each part that `open_source` knows; of a format, none."""
    otherwise: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Numbers of images by other published lists of the same splits."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of a format, the arguments of `open_source` by which it is told from a folder of pictures."""
    told: str = ""
    """Classes, captions and persons, and how a config asks for them."""
    note: str = ""
    """What else a user must know."""
    large: tuple[str, ...] = ()
    """Splits that take minutes and gigabytes to open: a check looks at their files alone."""

    @property
    def layout(self) -> str:
        """The needed parts in words."""
        return ", ".join(part.what for part in self.parts if part.needed)

    @property
    def sizes(self) -> str:
        """The splits in words."""
        return ", ".join(f"{split} {count:,}" for split, count in self.splits.items()) or "by file names, if any"


def published(name: str) -> Published:
    """The entry of `SETS`.

    Raises:
        UserError: there is none.
    """
    if name not in SETS:
        raise UserError(f"There is no published set {name!r} known here: choose one of {', '.join(SETS)}.")
    return SETS[name]


def markdown() -> str:
    """The table of docs/datasets.md."""
    lines = ["| name | set | what must be there | images | classes, captions, persons | licence |", "|" + "---|" * 6]
    for name, entry in SETS.items():
        title = f"[{entry.title}]({entry.origin}): {entry.archives}"
        cells = (f"`{name}`", title, entry.layout, entry.sizes, entry.told, entry.licence)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def lines_of(name: str, entry: Published) -> Iterator[tuple[str, str]]:
    """What is known of an entry, as (heading, text) pairs."""
    yield "set", f"{name}: {entry.title}"
    yield "from", entry.origin
    yield "get", entry.archives
    yield "layout", entry.layout
    yield "split", entry.sizes
    if entry.told:
        yield "told", entry.told
    yield "licence", entry.licence
    if entry.note:
        yield "note", entry.note


# --- the table --------------------------------------------------------------------------------------------------------


def _at(*names: str, under: tuple[str, ...]) -> tuple[str, ...]:
    """Each name directly in the folder, and below each of the folders that archives make."""
    return tuple(f"{folder}{name}" for name in names for folder in ("", *(f"{folder}/" for folder in under)))


def _idx(prefix: str, under: tuple[str, ...]) -> tuple[Part, Part]:
    images, labels = (
        Part(f"{prefix}-{kind}-{axes}-ubyte(.gz)", _at(f"{prefix}-{kind}?{axes}-ubyte*", under=under))
        for kind, axes in (("images", "idx3"), ("labels", "idx1"))
    )
    return images, labels


def _batches(layout: Batches) -> tuple[Part, ...]:
    names = dict.fromkeys(name for split in layout.parts for name in layout.files(split))
    return tuple(Part(name, _at(name, under=layout.folders)) for name in names)


_CELEBA = ("celeba", "CelebA")
_HQ = ("CelebAMask-HQ", "celebahq", "CelebAHQ")

SETS: dict[str, Published] = {
    "mnist": Published(
        title="MNIST",
        parts=(*_idx("train", ("raw",)), *_idx("t10k", ("raw",))),
        origin="http://yann.lecun.com/exdb/mnist",
        archives="four `.gz` files",
        licence="CC BY-SA 3.0, as Keras states; its own page states none",
        splits={"train": 60_000, "test": 10_000},
        told="classes 0 to 9",
    ),
    "fashion-mnist": Published(
        title="Fashion-MNIST",
        parts=(*_idx("train", ("raw",)), *_idx("t10k", ("raw",))),
        origin="https://github.com/zalandoresearch/fashion-mnist",
        archives="four `.gz` files (Debian: dataset-fashion-mnist)",
        licence="MIT",
        splits={"train": 60_000, "test": 10_000},
        told="classes 0 to 9",
    ),
    "emnist-letters": Published(
        title="EMNIST letters",
        parts=(
            *_idx("emnist-letters-train", ("gzip", "raw")),
            *_idx("emnist-letters-test", ("gzip", "raw")),
            Part("emnist-letters-mapping.txt", _at("emnist-letters-mapping.txt", under=("gzip", "raw"))),
        ),
        origin="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        archives="`gzip.zip` (on the page, or www.itl.nist.gov/iaui/vip/cs_links/EMNIST); of its six sets, move "
        "`emnist-letters-*` into a folder of their own",
        licence="none stated (from NIST Special Database 19)",
        splits={"train": 124_800, "test": 20_800},
        told="classes A to Z, capitals and small letters together",
    ),
    "cifar10": Published(
        title="CIFAR-10",
        parts=_batches(CIFAR10),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        archives="`cifar-10-python.tar.gz`, the version for Python",
        licence="none stated; cite Krizhevsky 2009",
        splits={"train": 50_000, "test": 10_000},
        told="10 classes by name",
    ),
    "cifar100": Published(
        title="CIFAR-100",
        parts=_batches(CIFAR100),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        archives="`cifar-100-python.tar.gz`, the version for Python",
        licence="none stated; cite Krizhevsky 2009",
        splits={"train": 50_000, "test": 10_000},
        told="100 (fine) classes by name",
    ),
    "svhn": Published(
        title="SVHN, cropped digits",
        parts=tuple(
            Part(f"{split}_32x32.mat", (f"{split}_32x32.mat", f"*/{split}_32x32.mat")) for split in ("train", "test")
        ),
        origin="http://ufldl.stanford.edu/housenumbers",
        archives="`train_32x32.mat`, `test_32x32.mat` (format 2)",
        licence="non-commercial use only",
        splits={"train": 73_257, "test": 26_032},
        told="classes 0 to 9",
    ),
    "celeba": Published(
        title="CelebA",
        parts=(
            Part("img_align_celeba/", _at("img_align_celeba", "Img/img_align_celeba", under=_CELEBA)),
            Part("list_attr_celeba.txt", _at("list_attr_celeba.txt", "Anno/list_attr_celeba.txt", under=_CELEBA)),
            Part(
                "list_eval_partition.txt", _at("list_eval_partition.txt", "Eval/list_eval_partition.txt", under=_CELEBA)
            ),
            Part(
                "identity_CelebA.txt",
                _at("identity_CelebA.txt", "Anno/identity_CelebA.txt", under=_CELEBA),
                needed=False,
            ),
        ),
        origin="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        archives="`img_align_celeba.zip` and the lists as `.txt`",
        licence="non-commercial research only",
        splits={"train": 162_770, "val": 19_867, "test": 19_962},
        told="`label_column: Male` or another of 40 attributes; `group_column: identity`",
    ),
    "celebahq": Published(
        title="CelebA-HQ with MM-CelebA-HQ's captions",
        parts=(
            Part(
                "CelebA-HQ-img/ (or celeba_hq_256/, images/)",
                _at("CelebA-HQ-img", "celeba_hq_256", "images", under=_HQ),
            ),
            Part("celeba-caption/", _at("celeba-caption", "text/celeba-caption", under=_HQ), needed=False),
            Part("CelebAMask-HQ-attribute-anno.txt", _at("CelebAMask-HQ-attribute-anno.txt", under=_HQ), needed=False),
            Part(
                "lists of the split: *_filenames.pickle, or CelebA-HQ-to-CelebA-mapping.txt with CelebA's lists",
                _at(
                    "*_filenames.pickle",
                    "*/filenames.pickle",
                    "CelebA-HQ-to-CelebA-mapping.txt",
                    "image_list.txt",
                    under=_HQ,
                ),
                needed=False,
            ),
        ),
        origin="https://github.com/IIGROUP/MM-CelebA-HQ-Dataset",
        archives="images by number (any size; `CelebAMask-HQ.zip` has them) and `text.zip`",
        licence="non-commercial research only",
        splits={"train": 24_000, "test": 6_000},
        told="captions, the first of ten; `label_column: Male` or another attribute",
        otherwise={"train": (24_183, 30_000), "test": (2_824,)},
        note="by CelebA's partition train 24,183, val 2,993, test 2,824; without any list all 30,000 are for training",
    ),
    "camelyon17": Published(
        title="Camelyon17-WILDS",
        parts=(
            Part("metadata.csv", _at("metadata.csv", under=("camelyon17_v1.0",))),
            Part("patches/", _at("patches", under=("camelyon17_v1.0",))),
        ),
        origin="https://wilds.stanford.edu/datasets/#camelyon17",
        archives="`camelyon17_v1.0.tar.gz` (10 GB)",
        licence="CC0",
        splits={"train": 302_436, "val": 34_904, "test": 85_054},
        told="classes 1 (tumour) and 0; `group_column: patient`, or `center` for the hospital",
        note="val and test are hospitals of their own; WILDS' id_val, within the training hospitals, is left out",
    ),
    "imagenet-batches": Published(
        title="ImageNet at 32x32 or 64x64",
        parts=_batches(IMAGENET),
        origin="https://image-net.org/download-images",
        archives="`Imagenet32_train.zip` and `Imagenet32_val.zip`, or those of 64, in one folder",
        licence="ImageNet's terms: non-commercial research and education",
        splits={"train": 1_281_167, "val": 50_000},
        told="classes 1 to 1000",
        note="the training part needs 8 GB of memory at 32x32, 32 GB at 64x64",
        large=("train",),
    ),
    "imagenet": Published(
        title="ImageNet as folders",
        parts=(
            Part("train/n01440764/ and so on", ("train/n*", "*/train/n*", "ILSVRC/Data/CLS-LOC/train/n*")),
            Part("val/n01440764/ and so on", ("val/n*", "*/val/n*", "ILSVRC/Data/CLS-LOC/val/n*")),
        ),
        origin="https://image-net.org/download-images",
        archives="`ILSVRC2012_img_train.tar` and `_val.tar`, images sorted into folders by WordNet number",
        licence="ImageNet's terms: non-commercial research and education",
        splits={"train": 1_281_167, "val": 50_000},
        told="1,000 classes by WordNet number",
        large=("train",),
    ),
    "eurosat": Published(
        title="EuroSAT, colour images",
        parts=tuple(
            Part(f"{name}/", _at(name, under=("EuroSAT_RGB", "2750", "EuroSAT/2750"))) for name in EUROSAT_CLASSES
        ),
        origin="https://github.com/phelber/EuroSAT",
        archives="`EuroSAT_RGB.zip` (Zenodo, record 7711810), once `EuroSAT.zip`",
        licence="MIT",
        splits={"train": 27_000},
        told="10 classes by name",
        note="it has no split: keep a test part out in a folder of its own before training",
    ),
    "webdataset": Published(
        title="WebDataset shards",
        parts=(Part("00000.tar and so on: key.jpg, and key.txt, key.cls or key.json, in each", ("*.tar",)),),
        origin="https://github.com/webdataset/webdataset",
        archives="what img2dataset and other tools write, as LAION's subsets",
        licence="that of the images",
        told="captions from `.txt`, classes from `.cls`, other columns from `.json`",
    ),
    "huggingface": Published(
        title="Parquet with images, Hugging Face data sets",
        parts=(
            Part(
                "train-00000-of-00001.parquet and so on, or what save_to_disk wrote",
                ("*.parquet", "data/*.parquet", "default/*/*.parquet", "*.arrow", "*/*.arrow"),
            ),
        ),
        origin="https://huggingface.co/docs/datasets",
        archives="the repository's `data` folder",
        licence="that of the images",
        told="classes from `label`, captions from `caption` or `text`, others by `label_column` and so on",
        note="needs the extra parquet",
    ),
    "dicom": Published(
        title="DICOM",
        parts=(Part("*.dcm, or files without ending, in one folder or in class folders", ("*",)),),
        origin="https://www.dicomstandard.org",
        archives="an export of single-frame images",
        licence="your own",
        told="`group_column: PatientID`, `label_column` by another keyword of DICOM",
        columns={"group_column": "PatientID"},
        note="needs the extra dicom; grey values are shown by data.window, or by the window of each header",
    ),
}
