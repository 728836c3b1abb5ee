"""Sets of the field as they are published: each in miniature, read, looked at, ingested; then cut, swapped, damaged."""

import gzip
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

import miniatures
from dpldm.data.ingest import ingest
from dpldm.data.inspect import inspect_source, render
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import Source, open_source
from dpldm.errors import UserError
from miniatures import ATTRIBUTES, CIFAR_NAMES, number_in, put


def attribute(name: str) -> Callable[[int], str]:
    """What the lists of `miniatures` say."""
    return lambda number: name if number % {"Male": 2, "Young": 3}[name] == (name == "Male") else f"not {name}"


@dataclass
class Published:
    """What must come out of a miniature."""

    make: Callable[..., Path]
    layout: str
    train: set[int]
    held_out: dict[str, set[int]]
    label: Callable[[int], str] | None = None
    caption: Callable[[int], str] | None = None
    group: Callable[[int], str] | None = None
    columns: dict[str, str] = field(default_factory=dict)


SETS: dict[str, Published] = {
    "mnist": Published(
        miniatures.mnist, "IDX", set(range(12)), {"test": set(range(12, 16))}, lambda number: str(number % 10)
    ),
    "emnist-letters": Published(
        miniatures.emnist_letters, "EMNIST", set(range(12)), {"test": set(range(12, 16))}, lambda n: chr(65 + n % 26)
    ),
    "cifar10": Published(
        miniatures.cifar10, "CIFAR-10", set(range(20)), {"test": set(range(20, 24))}, lambda n: CIFAR_NAMES[n % 10]
    ),
    "cifar100": Published(
        miniatures.cifar100,
        "CIFAR-100",
        set(range(12)),
        {"test": set(range(12, 16))},
        lambda number: ["apple", "fish", "baby"][number % 3],
    ),
    "imagenet-batches": Published(
        miniatures.imagenet_batches, "ImageNet", set(range(20)), {"val": {20, 21}}, lambda number: str(1 + number)
    ),
    "svhn": Published(
        miniatures.svhn, "SVHN", set(range(12)), {"test": set(range(12, 16))}, lambda number: str(number % 10)
    ),
    "celeba": Published(
        miniatures.celeba,
        "CelebA",
        set(range(1, 13)),
        {"val": {13}, "test": {14, 15, 16}},
        attribute("Male"),
        group=lambda number: str(1000 + number // 2),
        columns={"label_column": "Male", "group_column": "identity"},
    ),
    "celebahq": Published(
        miniatures.celebahq,
        "CelebA-HQ with captions",
        set(range(12)),
        {"test": {12, 13}},
        attribute("Young"),
        caption=lambda number: f"She is person {number}.",
        columns={"label_column": "Young"},
    ),
    "camelyon17": Published(
        miniatures.camelyon17,
        "Camelyon17-WILDS",
        set(range(14)),
        {"val": {15}, "test": {16, 17}},
        lambda number: str(number % 2),
        group=lambda number: f"{number // 2:03d}",
        columns={"group_column": "patient"},
    ),
    "eurosat": Published(
        miniatures.eurosat, "EuroSAT", set(range(20)), {}, lambda number: miniatures.EUROSAT.split()[number % 10]
    ),
    "imagenet-folders": Published(
        miniatures.imagenet_folders,
        "ImageNet",
        set(range(12)),
        {"val": set(range(12, 16))},
        lambda number: ("n01440764", "n01443537")[number % 2],
    ),
    "webdataset": Published(
        miniatures.webdataset, "WebDataset", set(range(12)), {}, caption=lambda number: f"thing {number}"
    ),
    "huggingface": Published(
        miniatures.huggingface,
        "parquet",
        set(range(12)),
        {"test": set(range(12, 16))},
        lambda number: ["benign", "malign"][number % 2],
        lambda number: f"first {number}",
        lambda number: f"p{number // 2}",
        {"caption_column": "captions", "group_column": "patient"},
    ),
    "saved-to-disk": Published(
        miniatures.saved_to_disk,
        "on disk",
        set(range(12)),
        {"test": set(range(12, 16))},
        lambda number: ["benign", "malign"][number % 2],
        group=lambda number: f"p{number // 2}",
        columns={"group_column": "patient"},
    ),
}


def column(values: list[str] | None, expected: Callable[[int], str] | None, numbers: list[int]) -> None:
    assert values == (None if expected is None else [expected(number) for number in numbers])


@pytest.mark.parametrize("name", SETS)
def test_every_record_has_its_image_and_what_belongs_to_it(name: str, tmp_path: Path) -> None:
    expected = SETS[name]
    path = expected.make(tmp_path / "set")
    for split, numbers in {"train": expected.train, **expected.held_out}.items():
        source = open_source(path, split=split, **expected.columns)
        found = [number_in(source.image(index)) for index in range(len(source))]
        assert set(found) == numbers
        assert len(found) == len(numbers)
        assert source.keys == sorted(set(source.keys))
        assert expected.layout in source.layout
        assert source.split == (split if expected.held_out else None)
        column(source.labels, expected.label, found)
        column(source.captions, expected.caption, found)
        column(source.groups, expected.group, found)
        contents = {source.content(index) for index in range(len(source))}
        assert len(contents) == len(numbers)


@pytest.mark.parametrize("name", SETS)
def test_each_goes_from_inspect_to_ingest(name: str, tmp_path: Path) -> None:
    expected = SETS[name]
    path = expected.make(tmp_path / "set")
    columns = expected.columns
    looked = inspect_source(path, **columns)
    assert render(looked).startswith("INTERNAL")
    assert (looked.records, looked.readable) == (len(expected.train), len(expected.train))
    channels = 1 if set(looked.modes) == {"L"} else 3
    found = ingest(
        open_source(path, **columns), Preprocessing(image_size=8, channels=channels), tuple(looked.labels or ())
    )
    assert found.pixels.shape == (len(expected.train), 8, 8, channels)
    assert not found.null.any()
    assert (found.labels >= 0).all() == (expected.label is not None)


def test_dicom_goes_from_inspect_to_ingest(tmp_path: Path) -> None:
    path = miniatures.dicom(tmp_path / "set")
    looked = inspect_source(path, group_column="PatientID")
    assert (looked.records, looked.readable, looked.bit_depth, looked.groups) == (12, 12, 16, 6)
    assert looked.modes == {"I": 12}
    assert looked.ignored == ["DICOMDIR"]
    source = open_source(path, group_column="PatientID", label_column="Modality")
    found = ingest(source, Preprocessing(image_size=8, channels=1), ("CT",), images_per_group=1)
    assert not found.null.any()
    assert (found.units >= 0).sum() == 6
    with pytest.raises(UserError, match="DICOM has no element 'Patient'"):
        open_source(path, group_column="Patient")


# --- the same set, otherwise unpacked ---------------------------------------------------------------------------------


def numbers(source: Source) -> set[int]:
    return {number_in(source.image(index)) for index in range(len(source))}


@pytest.mark.parametrize(
    ("make", "inner"),
    [(miniatures.cifar10, "cifar-10-batches-py"), (miniatures.camelyon17, "camelyon17_v1.0")],
)
def test_a_set_is_found_in_its_folder_and_above_it(make: Callable[[Path], Path], inner: str, tmp_path: Path) -> None:
    path = make(tmp_path / "set")
    assert numbers(open_source(path)) == numbers(open_source(path / inner))


def test_a_collection_of_sets_is_no_set(tmp_path: Path) -> None:
    miniatures.cifar10(tmp_path)
    miniatures.celeba(tmp_path / "celeba")
    with pytest.raises(UserError, match=r"several sets \(celeba, cifar-10-batches-py\): give the folder of one"):
        open_source(tmp_path)
    assert "CIFAR-10" in open_source(tmp_path / "cifar-10-batches-py").layout
    assert open_source(tmp_path / "celeba").layout == "CelebA"


@pytest.mark.parametrize("place", ["EuroSAT_RGB", "2750", "EuroSAT/2750"])
def test_eurosat_under_each_of_its_names(place: str, tmp_path: Path) -> None:
    made = miniatures.eurosat(tmp_path / "made") / "EuroSAT_RGB"
    (tmp_path / "set" / place).parent.mkdir(parents=True)
    made.rename(tmp_path / "set" / place)
    assert numbers(open_source(tmp_path / "set")) == set(range(20))
    assert numbers(open_source(tmp_path / "set" / place)) == set(range(20))


def test_celeba_as_the_drive_folders_have_it(tmp_path: Path) -> None:
    made = miniatures.celeba(tmp_path / "made")
    root = tmp_path / "set"
    for place, name in (
        ("Img", "img_align_celeba"),
        ("Anno", "list_attr_celeba.txt"),
        ("Eval", "list_eval_partition.txt"),
    ):
        (root / place).mkdir(parents=True)
        (made / name).rename(root / place / name)
    source = open_source(root, label_column="Young")
    assert numbers(source) == set(range(1, 13))
    with pytest.raises(UserError, match="no column 'identity'"):
        open_source(root, group_column="identity")


def test_celeba_twice_in_a_folder_of_its_name(tmp_path: Path) -> None:
    root = miniatures.celeba(tmp_path / "set")
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba" / "img_align_celeba")
    assert numbers(open_source(root)) == set(range(1, 13))


def test_celebahq_by_the_authors_names_and_celebas_partition(tmp_path: Path) -> None:
    """img00000000.png, the mapping to CelebA, and CelebA's own lists: image 3 comes from CelebA's image 14, a test
    image."""
    celeba = miniatures.celeba(tmp_path / "celeba")
    root = tmp_path / "set"
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"):
        shutil.copy(celeba / name, put(root / name, ""))
    originals = {0: 2, 1: 1, 2: 7, 3: 14}
    header = "idx    orig_idx    orig_file    proc_md5\n"
    lines = "".join(f"{number} {original - 1} {original:06d}.jpg abc\n" for number, original in originals.items())
    put(root / "image_list.txt", header + lines)
    for number in originals:
        put(root / "images" / f"img{number:08d}.png", miniatures.png(number))
        put(root / "celeba-caption" / f"{number}.txt", f"\nPerson {number}\nSecond\n")
    train = open_source(root, label_column="Male", group_column="identity")
    assert numbers(train) == {0, 1, 2}
    assert train.labels == ["not Male", "Male", "Male"]
    assert train.groups == ["1001", "1000", "1003"]
    assert train.captions == ["Person 0", "Person 1", "Person 2"]
    assert numbers(open_source(root, split="test")) == {3}


def test_images_and_captions_of_celebahq_are_joined_by_number(tmp_path: Path) -> None:
    """Sorted as text, 10 comes before 2: joined by place, captions would go to others' faces."""
    source = open_source(miniatures.celebahq(tmp_path / "set"))
    assert source.keys.index("CelebA-HQ-img/10.jpg") < source.keys.index("CelebA-HQ-img/2.jpg")
    assert source.captions is not None
    for index, caption in enumerate(source.captions):
        assert caption == f"She is person {number_in(source.image(index))}."


def test_lists_of_celeba_in_any_order_are_joined_by_name(tmp_path: Path) -> None:
    root = miniatures.celeba(tmp_path / "set")
    before = open_source(root, label_column="Male")
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    put(root / "list_attr_celeba.txt", "\n".join([*lines[:2], *sorted(lines[2:], key=lambda line: line[::-1])]))
    after = open_source(root, label_column="Male")
    assert (before.keys, before.labels) == (after.keys, after.labels)
    assert set(before.unused_columns) == {*ATTRIBUTES, "partition", "identity"} - {"Male"}


def test_a_missing_image_of_a_list_is_a_null_record(tmp_path: Path) -> None:
    root = miniatures.celeba(tmp_path / "set")
    (root / "img_align_celeba" / "000005.jpg").unlink()
    put(root / "img_align_celeba" / "000006.jpg", b"\xff\xd8 cut off")
    found = ingest(open_source(root, label_column="Male"), Preprocessing(8, 3), ("Male", "not Male"))
    assert np.flatnonzero(found.null).tolist() == [4, 5]
    assert not found.pixels[found.null].any()
    assert len(found.labels) == 12


def test_emnist_is_upright(tmp_path: Path) -> None:
    source = open_source(miniatures.emnist_letters(tmp_path / "set"))
    assert np.array_equal(np.asarray(source.image(5)), miniatures.picture(5, 28, 1)[..., 0])


def test_colours_of_batches_and_svhn_are_in_place(tmp_path: Path) -> None:
    for path, side in ((miniatures.cifar10(tmp_path / "a"), 32), (miniatures.svhn(tmp_path / "b"), 32)):
        assert np.array_equal(np.asarray(open_source(path).image(1)), miniatures.picture(1, side))
    source = open_source(miniatures.imagenet_batches(tmp_path / "c", side=64))
    assert np.array_equal(np.asarray(source.image(0)), miniatures.picture(0, 64))


# --- wrong and partial layouts ----------------------------------------------------------------------------------------


def remove(*names: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for name in names:
            for path in [root / name] if (root / name).exists() else root.rglob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def write(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda root: put(root / name, data) and None


def mat(**arrays: Any) -> Callable[[Path], None]:
    return lambda root: scipy.io.savemat(root / "train_32x32.mat", arrays)


CIFAR = "cifar-10-batches-py"
BATCH = pickle.dumps({"labels": [0], "data": np.zeros((1, 3072), np.uint8)})


@pytest.mark.parametrize(
    ("make", "damage", "split", "message"),
    [
        (miniatures.cifar10, remove("data_batch_3", "batches.meta"), "train", "lacks data_batch_3, batches.meta"),
        (miniatures.cifar10, remove("test_batch"), "test", "lacks test_batch of CIFAR-10: unpack cifar-10-python"),
        (miniatures.cifar10, write(f"{CIFAR}/data_batch_2", b"\x80\x04junk"), "train", "not a pickle of arrays"),
        (miniatures.cifar10, write(f"{CIFAR}/data_batch_2", b""), "train", "not a pickle of arrays"),
        (miniatures.cifar10, write(f"{CIFAR}/data_batch_2", pickle.dumps([BATCH])), "train", "rows of pixels"),
        (
            miniatures.cifar10,
            write(f"{CIFAR}/data_batch_2", pickle.dumps({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)})),
            "train",
            "with a label each",
        ),
        (
            miniatures.cifar10,
            write(f"{CIFAR}/data_batch_2", pickle.dumps({"labels": [11], "data": np.zeros((1, 3072), np.uint8)})),
            "train",
            "label without a name",
        ),
        (
            miniatures.cifar10,
            write(f"{CIFAR}/data_batch_2", pickle.dumps({"labels": [1], "data": np.zeros((1, 3000), np.uint8)})),
            "train",
            "no square colour images",
        ),
        (
            miniatures.cifar10,
            write(f"{CIFAR}/data_batch_2", pickle.dumps({"labels": [1], "data": np.zeros((1, 768), np.uint8)})),
            "train",
            "images of several sizes",
        ),
        (miniatures.cifar10, write(f"{CIFAR}/batches.meta", pickle.dumps({})), "train", "has no label_names"),
        (miniatures.cifar10, lambda root: None, "val", "no split 'val': choose train or test"),
        (miniatures.cifar100, remove("train"), "train", "lacks train of CIFAR-100"),
        (miniatures.imagenet_batches, remove("train_data_batch_10"), "train", "lacks train_data_batch_10"),
        (miniatures.svhn, remove("test_32x32.mat"), "test", "no file of SVHN's split 'test'"),
        (miniatures.svhn, write("train_32x32.mat", b"MATLAB 7.3 MAT-file"), "train", "not a MATLAB v5 file"),
        (miniatures.svhn, mat(X=np.zeros((32, 32, 3, 2), np.uint8)), "train", "not a MATLAB v5 file with X and y"),
        (miniatures.svhn, mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=[1]), "train", "a label each"),
        (miniatures.svhn, mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=[1, 11]), "train", "no digits"),
        (miniatures.mnist, remove("t10k-images-idx3-ubyte.gz"), "test", "no IDX images of the split 'test'"),
        (miniatures.emnist_letters, write("emnist-letters-mapping.txt", "x"), "train", "list of classes"),
        (miniatures.emnist_letters, write("emnist-letters-mapping.txt", "1 65"), "train", "does not name"),
        (
            miniatures.emnist_letters,
            write("emnist-digits-train-images-idx3-ubyte.gz", gzip.compress(b"")),
            "train",
            "holds emnist-digits, emnist-letters: give the file of images of one",
        ),
        (miniatures.celeba, remove("img_align_celeba"), "train", "unpack img_align_celeba.zip"),
        (miniatures.celeba, remove("list_attr_celeba.txt"), "train", "lacks list_attr_celeba.txt: get"),
        (miniatures.celeba, remove("list_eval_partition.txt"), "train", "lacks list_eval_partition.txt: get"),
        (miniatures.celeba, write("list_eval_partition.txt", "000001.jpg 0\n"), "train", "do not list the same images"),
        (miniatures.celeba, write("list_eval_partition.txt", "000001.jpg\n"), "train", "not a file name and a number"),
        (miniatures.celeba, write("list_attr_celeba.txt", "1\nMale\n000001.jpg 2\n"), "train", "1 or -1"),
        (miniatures.celebahq, remove("CelebA-HQ-img"), "train", "lacks CelebA-HQ's images"),
        (miniatures.celebahq, remove("celeba-caption/5.txt"), "train", "no caption for one of the images"),
        (miniatures.celebahq, remove("test_filenames.pickle"), "test", "does not tell CelebA-HQ's split 'test'"),
        (miniatures.celebahq, write("train_filenames.pickle", pickle.dumps(["x"])), "train", "not a list of CelebA-HQ"),
        (
            miniatures.celebahq,
            write("CelebAMask-HQ-attribute-anno.txt", "1\nMale\n0.jpg 1\n"),
            "train",
            "does not list every image",
        ),
        (miniatures.camelyon17, remove("patches"), "train", "lacks the folder patches"),
        (miniatures.eurosat, remove("River", "SeaLake"), "train", "lacks EuroSAT's River, SeaLake"),
        (miniatures.eurosat, write("EuroSAT_RGB/Forest/Forest_9.tif", b""), "train", "13 bands"),
        (miniatures.imagenet_folders, remove("val"), "val", "no folder val of ImageNet"),
        (
            miniatures.imagenet_folders,
            lambda root: (remove("val")(root), put(root / "val" / "ILSVRC2012_val_00000001.JPEG", b""))[0],
            "val",
            "unsorted",
        ),
        (miniatures.webdataset, write("00001.tar", b"no tar" * 200), "train", "no plain tar file"),
        (miniatures.webdataset, write("00002.tar.gz", b""), "train", "compressed tar files"),
        (
            miniatures.webdataset,
            lambda root: put(root / "00001.tar", (root / "00001.tar").read_bytes()[:5000]) and None,
            "train",
            "cut off",
        ),
        (
            miniatures.webdataset,
            lambda root: miniatures.tar(root / "00001.tar", {"a.png": b"x", "a.jpg": b"y"}) and None,
            "train",
            "two images under one key",
        ),
        (miniatures.huggingface, remove("test-00000-of-00001.parquet"), "test", "no files of the split 'test'"),
        (miniatures.huggingface, write("data/train-00001-of-00002.parquet", b"PAR1"), "train", "damaged parquet"),
        (miniatures.saved_to_disk, write("train/data-00000-of-00001.arrow", b"ARROW1"), "train", "damaged parquet"),
        (miniatures.saved_to_disk, remove("*.arrow"), "train", "lacks the .arrow files"),
    ],
)
def test_what_is_wrong_or_missing_is_told_in_a_sentence(
    make: Callable[[Path], Path], damage: Callable[[Path], None], split: str, message: str, tmp_path: Path
) -> None:
    root = make(tmp_path / "set")
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        open_source(root, split=split)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["data_batch_1.bin"], "CIFAR-10 in another version"),
        (["train_data_batch_1.npz"], "ImageNet in another version"),
        (["train/digitStruct.mat", "train/1.png"], "full numbers"),
        (["list_eval_partition.txt"], "lacks list_attr_celeba.txt and the folder img_align_celeba"),
        (["cifar-10-python.tar.gz"], "compressed tar files"),
    ],
)
def test_other_versions_of_a_set_are_named(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        put(tmp_path / name, b"")
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["img_align_celeba.zip", "cifar-10-python.tar.gz"])
def test_an_archive_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is packed: unpack it"):
        open_source(put(tmp_path / name, b""))
