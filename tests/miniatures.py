"""Published sets in miniature, in the formats in which they really lie on disk; written without the package's own code.

Each function writes what an archive unpacks to into a folder, and returns the folder. Image number n of any set has the
value `level(n)` in its first pixel, or about that in a JPEG, so that `number_in` tells which image it is.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image


def level(number: int) -> int:
    """Value of the first pixel of image `number`."""
    return (3 + 7 * number) % 256


def number_in(image: Image.Image) -> int:
    """The number of a picture."""
    return round((int(np.asarray(image).flat[0]) - 3) / 7)


def picture(number: int, side: int = 8, channels: int = 3) -> np.ndarray:
    """A noisy image (side, side, channels) that begins with `level(number)`."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, channels), dtype=np.uint8)
    pixels[0, 0] = level(number)
    return pixels


def png(number: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number, side)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(number: int, side: int = 8) -> bytes:
    """One value all over, which a JPEG keeps."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level(number),) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- pickled batches --------------------------------------------------------------------------------------------------


def rows(numbers: range, side: int = 32) -> np.ndarray:
    """(N, 3 * side * side): all red values of an image, then all green, then all blue."""
    return np.stack([picture(number, side).transpose(2, 0, 1).reshape(-1) for number in numbers])


def python2_pickle(entries: dict[str, Any]) -> bytes:
    """As cPickle of Python 2 wrote it (protocol 2): texts are byte strings, arrays come from numpy.core.multiarray."""

    def binary(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING
        return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)  # BININT

    def plain(value: Any) -> bytes:
        if isinstance(value, str):
            return binary(value.encode())
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(plain, value)) + b"e"
        return array(value)

    def array(value: np.ndarray) -> bytes:
        shape = b"(" + b"".join(map(number, value.shape)) + b"t"
        made = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + binary(b"b") + b"\x87R"
        )
        kind = b"cnumpy\ndtype\n" + binary(value.dtype.str[1:].encode()) + number(0) + number(1) + b"\x87R"
        kind += b"(" + number(3) + binary(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
        return made + b"(" + number(1) + shape + kind + b"\x89" + binary(value.tobytes()) + b"tb"

    items = b"".join(binary(key.encode()) + plain(value) for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(folder: Path, each: int = 4) -> Path:
    root = folder / "cifar-10-batches-py"
    for batch in range(6):
        numbers = range(batch * each, batch * each + each)
        entries = {
            "batch_label": f"batch {batch}",
            "labels": [number % 10 for number in numbers],
            "data": rows(numbers),
            "filenames": [f"thing_s_{number:06d}.png" for number in numbers],
        }
        put(root / ("test_batch" if batch == 5 else f"data_batch_{batch + 1}"), python2_pickle(entries))
    meta = {"num_cases_per_batch": each, "label_names": CIFAR_NAMES, "num_vis": 3072}
    put(root / "batches.meta", python2_pickle(meta))
    put(root / "readme.html", "<p>CIFAR-10</p>")
    return folder


def cifar100(folder: Path) -> Path:
    root = folder / "cifar-100-python"
    for name, numbers in (("train", range(12)), ("test", range(12, 16))):
        fine = [number % 3 for number in numbers]
        entries = {"fine_labels": fine, "coarse_labels": [0] * len(fine), "data": rows(numbers)}
        put(root / name, python2_pickle(entries))
    names = {"fine_label_names": ["apple", "fish", "baby"], "coarse_label_names": ["things"]}
    put(root / "meta", python2_pickle(names))
    return folder


def imagenet_batches(folder: Path, side: int = 32) -> Path:
    """Python 3 wrote these. Classes count from 1."""
    for batch in range(11):
        numbers = range(2 * batch, 2 * batch + 2)
        entries = {
            "data": rows(numbers, side),
            "labels": [1 + number % 1000 for number in numbers],
            "mean": np.zeros(3 * side * side),
        }
        put(folder / ("val_data" if batch == 10 else f"train_data_batch_{batch + 1}"), pickle.dumps(entries))
    return folder


# --- other arrays -----------------------------------------------------------------------------------------------------


def svhn(folder: Path) -> Path:
    """Digit 0 has the label 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (("train", range(12)), ("test", range(12, 16))):
        images = np.stack([picture(number, 32) for number in numbers], axis=-1)
        labels = np.array([[(number % 10) or 10] for number in numbers], dtype=np.uint8)
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return folder


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def grey(numbers: range, side: int = 28) -> np.ndarray:
    return np.stack([picture(number, side, 1)[..., 0] for number in numbers])


def mnist(folder: Path, end: int = 16) -> Path:
    for prefix, numbers in (("train", range(12)), ("t10k", range(12, end))):
        put(folder / f"{prefix}-images-idx3-ubyte.gz", idx(grey(numbers)))
        put(folder / f"{prefix}-labels-idx1-ubyte.gz", idx(np.array([n % 10 for n in numbers], dtype=np.uint8)))
    return folder


def emnist_letters(folder: Path) -> Path:
    """Rows and columns are exchanged; classes count from 1; the list gives the codes of capital and small letter."""
    for part, numbers in (("train", range(12)), ("test", range(12, 16))):
        name = f"emnist-letters-{part}"
        put(folder / f"{name}-images-idx3-ubyte.gz", idx(grey(numbers).transpose(0, 2, 1)))
        labels = np.array([1 + number % 26 for number in numbers], dtype=np.uint8)
        put(folder / f"{name}-labels-idx1-ubyte.gz", idx(labels))
    lines = "".join(f"{number + 1} {65 + number} {97 + number}\n" for number in range(26))
    put(folder / "emnist-letters-mapping.txt", lines)
    return folder


# --- folders with lists -----------------------------------------------------------------------------------------------

ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Young"]


def attribute_lines(files: dict[str, int]) -> str:
    """`Male` where the number is odd, `Young` where it is a multiple of 3."""
    lines = [str(len(files)), " ".join(ATTRIBUTES) + " "]
    for file, number in files.items():
        values = [-1, 1 if number % 2 else -1, 1 if number % 3 == 0 else -1]
        lines.append(f"{file} " + " ".join(f"{value:2d}" for value in values))
    return "\n".join(lines) + "\n"


def celeba(folder: Path, end: int = 17) -> Path:
    """Images 1 to 12 for training, 13 for validation, the others for testing; the lists are not in the same order."""
    files = {f"{number:06d}.jpg": number for number in range(1, end)}
    for file, number in files.items():
        put(folder / "img_align_celeba" / file, jpeg(number))
    part = {file: 0 if number <= 12 else 1 if number == 13 else 2 for file, number in files.items()}
    put(folder / "list_attr_celeba.txt", attribute_lines(dict(reversed(files.items()))))
    put(folder / "list_eval_partition.txt", "".join(f"{file} {value}\n" for file, value in part.items()))
    put(folder / "identity_CelebA.txt", "".join(f"{file} {1000 + number // 2}\n" for file, number in files.items()))
    return folder


def celebahq(folder: Path, end: int = 14) -> Path:
    """CelebA-HQ at 256 with MM-CelebA-HQ's captions: numbers without leading zeros, ten captions an image."""
    for number in range(end):
        put(folder / "CelebA-HQ-img" / f"{number}.jpg", jpeg(number))
        captions = [f"She is person {number}.", *(f"Sentence {other} about {number}." for other in range(9))]
        put(folder / "celeba-caption" / f"{number}.txt", "\n".join(captions) + "\n")
    lines = attribute_lines({f"{number}.jpg": number for number in range(end)})
    put(folder / "CelebAMask-HQ-attribute-anno.txt", lines)
    put(folder / "train_filenames.pickle", pickle.dumps([str(number) for number in range(12)]))
    put(folder / "test_filenames.pickle", pickle.dumps([str(number) for number in range(12, end)]))
    return folder


def camelyon17(folder: Path, end: int = 18) -> Path:
    """Centre 1 is WILDS' validation, 2 its test hospital; of the others, split 1 is validation within training."""
    root = folder / "camelyon17_v1.0"
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number in range(end):
        center = 2 if number >= 16 else 1 if number == 15 else 0 if number % 2 else 3
        split = 1 if number == 14 else 0
        patient, node, x, y = f"{number // 2:03d}", number % 5, 32 * number, 64
        lines.append(f"{number},{patient},{node},{x},{y},{number % 2},{number // 3},{center},{split}")
        name = f"patient_{patient}_node_{node}"
        put(root / "patches" / name / f"patch_{name}_x_{x}_y_{y}.png", png(number))
    put(root / "metadata.csv", "\n".join(lines) + "\n")
    put(root / "RELEASE_v1.0.txt", "")
    return folder


EUROSAT = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"


def eurosat(folder: Path) -> Path:
    for number, name in enumerate([*EUROSAT.split(), *EUROSAT.split()]):
        put(folder / "EuroSAT_RGB" / name / f"{name}_{1 + number // 10}.jpg", jpeg(number))
    return folder


def imagenet_folders(folder: Path) -> Path:
    for number in range(16):
        part, name = ("train" if number < 12 else "val"), ("n01440764", "n01443537")[number % 2]
        put(folder / part / name / f"{name}_{number}.JPEG", jpeg(number))
    return folder


# --- shards, parquet, DICOM -------------------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def webdataset(folder: Path) -> Path:
    """As img2dataset writes LAION: image, caption, and JSON with both and more."""
    for shard in range(2):
        members: dict[str, bytes | str] = {}
        for number in range(6 * shard, 6 * shard + 6):
            key = f"{shard:05d}{number:04d}"
            entries = {
                "url": "https://example.org/x.jpg",
                "caption": f"thing {number}",
                "status": "success",
                "sha": None,
            }
            members |= {f"{key}.jpg": jpeg(number), f"{key}.txt": f"thing {number}", f"{key}.json": json.dumps(entries)}
        tar(folder / f"{shard:05d}.tar", members)
        put(folder / f"{shard:05d}_stats.json", "{}")
    return folder


def features(names: list[str]) -> dict[bytes, bytes]:
    """What Hugging Face's library notes in a file."""
    described = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    }
    return {b"huggingface": json.dumps({"info": {"features": described}}).encode()}


def arrow_table(numbers: range) -> Any:
    import pyarrow

    return pyarrow.table(
        {
            "image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
            "label": [number % 2 for number in numbers],
            "captions": [[f"first {number}", f"second {number}"] for number in numbers],
            "patient": [f"p{number // 2}" for number in numbers],
        }
    ).replace_schema_metadata(features(["benign", "malign"]))


def huggingface(folder: Path) -> Path:
    """A data set of the hub: parquet files named after splits, with small row groups."""
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    for name, numbers in (
        ("train-00000-of-00002", range(7)),
        ("train-00001-of-00002", range(7, 12)),
        ("test-00000-of-00001", range(12, 16)),
    ):
        pyarrow.parquet.write_table(arrow_table(numbers), folder / "data" / f"{name}.parquet", row_group_size=3)
    put(folder / "README.md", "---\n---\n")
    return folder


def saved_to_disk(folder: Path) -> Path:
    """What `DatasetDict.save_to_disk` writes: Arrow streams."""
    import pyarrow
    import pyarrow.ipc

    put(folder / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    for name, numbers in (("train", range(12)), ("test", range(12, 16))):
        put(folder / name / "state.json", "{}")
        put(folder / name / "dataset_info.json", "{}")
        table = arrow_table(numbers)
        with pyarrow.ipc.new_stream(str(folder / name / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    return folder


def dicom_bytes(pixels: np.ndarray, **elements: Any) -> bytes:
    """An explicit little-endian DICOM file of one grey image (or RGB), with further elements by keyword."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3.4"
    bits = 8 * pixels.dtype.itemsize
    colour = pixels.ndim == 3
    settings: dict[str, Any] = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if colour else {}),
        **elements,
    }
    for name, value in settings.items():
        setattr(file, name, value)
    file.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(folder: Path) -> Path:
    """CT in Hounsfield units, two slices a patient; the names of some files say nothing."""
    for number in range(12):
        stored = picture(number, 8, 1)[..., 0].astype(np.int16) * 8
        data = dicom_bytes(
            stored,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            WindowCenter=[40, 300],
            WindowWidth=[400, 2000],
            PatientID=f"p{number // 2}",
            Modality="CT",
        )
        put(folder / (f"IM{number:04d}" if number % 3 == 0 else f"{number:04d}.dcm"), data)
    put(folder / "DICOMDIR", b"\0" * 128 + b"DICM")
    return folder


# --- what rows of `dpldm reproduce` read ------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Path], Path]] = {
    "mnist": lambda folder: mnist(folder, 24),
    "emnist-letters": emnist_letters,
    "cifar10": lambda folder: cifar10(folder, 12),
    "imagenet32": imagenet_batches,
    "imagenet64": lambda folder: imagenet_batches(folder, 64),
    "celeba": lambda folder: celeba(folder, 26),
    "camelyon17": lambda folder: camelyon17(folder, 28),
    "celebahq": lambda folder: celebahq(folder, 24),
    "fashion-mnist": lambda folder: mnist(folder, 24),  # the same format
}
"""Name of the folder -> maker, with the ten test images that an evaluation needs."""


def write_all(folder: Path) -> None:
    for name, make in ROWS.items():
        make(folder / name)
