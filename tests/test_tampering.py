"""Honest releases of every kind are accepted; what is changed or slipped in is noticed, hashes forged or not."""

import csv
import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.models.choices import tuned_names
from dpldm.releasing import release
from dpldm.report.wording import guarantee_sentence
from dpldm.reporting import report
from dpldm.run import Run
from dpldm.sampling import sample
from dpldm.scanning.weights import Weights
from dpldm.train.finetune import finetune
from tiny_runs import tiny_settings, write_images

REFUSED, WRONG, TAINTED = 2, 1, 3
UNET = "model/unet/diffusion_pytorch_model.safetensors"
IMAGE = "synthetic/dark/000000.png"
BIAS = "mid_block.attentions.0.proj_out.bias"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> RunConfig:
    """A finished run whose units are 20 persons with two images each."""
    directory = tmp_path_factory.mktemp("grouped")
    images = write_images(directory / "images")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    rows = [(name, name.partition("/")[0], f"person {place // 2}") for place, name in enumerate(names)]
    with (images / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "patient"), *rows])
    settings = tiny_settings(directory, tiny_backbone, images)
    settings["data"]["group_column"] = "patient"
    settings["privacy"] |= {"unit": "group", "max_images_per_group": 2, "records": 20, "expected_batch_size": 10}
    config = RunConfig.model_validate(settings)
    list(finetune(config))
    list(sample(config))
    return config


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> RunConfig:
    """A finished run that tuned adapters, with every setting of learning and drawing that is not the default."""
    directory = tmp_path_factory.mktemp("adapted")
    settings = tiny_settings(directory, tiny_backbone, write_images(directory / "images"))
    settings["privacy"] |= {"class_means_noise": 30.0}
    settings["optimizer"] = {
        "decay": "cosine",
        "noise_correction": True,
        "average": "uniform",
        "warm_start_steps": 2,
        "timesteps": [[0.0, 0.5, 1.0], [0.5, 1.0, 3.0]],
        "min_snr": 5.0,
        "learning_rate": 0.3,  # so that half precision sees the updates
    }
    settings["sampling"] |= {"count": 12, "keep": 0.5}
    config = RunConfig.model_validate(settings | {"trainable": "lora-2"})
    list(finetune(config))
    list(sample(config))
    return config


@pytest.fixture(scope="module")
def honest(
    finished: RunConfig,
    answered: RunConfig,
    grouped: RunConfig,
    selected: RunConfig,
    adapted: RunConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A release of every kind; some with a report."""
    made: dict[str, Path] = {}
    kinds = {"data": finished, "model": finished, "both": finished, "group": grouped, "queries": answered}
    kinds |= {"selection": selected, "adapters": adapted}
    for kind, config in kinds.items():
        output = tmp_path_factory.mktemp(kind)
        shutil.copytree(config.runtime.output, output, dirs_exist_ok=True)
        moved = config.model_copy(update={"runtime": config.runtime.model_copy(update={"output": output})})
        what = {"model": "model", "both": "both", "selection": "both", "adapters": "both"}.get(kind, "data")
        made[kind] = release(moved, what)  # type: ignore[arg-type]
        if kind in ("both", "queries", "selection"):
            (Run(moved).private / "evaluation.json").write_text('{"utility": null, "distances": []}')
            report(Run(moved).directory)
    return made


@pytest.mark.parametrize("kind", ["data", "model", "both", "group", "queries", "selection", "adapters"])
def test_an_honest_release_is_accepted(
    kind: str, honest: dict[str, Path], tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(honest[kind], tmp_path / "elsewhere"))
    assert main(["verify", str(moved), "--backbone", str(tiny_backbone)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("The release is what it says.\n")
    assert "FAILED" not in shown
    assert ("ok      frozen weights: equal" in shown) == (kind in ("model", "both", "selection", "adapters"))


def test_released_adapters_changed_what_they_add_to_and_nothing_else(
    honest: dict[str, Path], tiny_backbone: Path
) -> None:
    """That `verify` accepts them would show little if nothing had changed."""
    ours, theirs = load_file(honest["adapters"] / UNET), load_file(tiny_backbone / UNET.removeprefix("model/"))
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == set(tuned_names(theirs, "lora-2"))


# --- what can be done to it -----------------------------------------------------------------------------------------


def rehash(directory: Path) -> None:
    """What a careful forger does last: every file is declared with the hash that it has now."""
    statement = json.loads((directory / "privacy.json").read_text())
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != "privacy.json"]
    statement["files"] = {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    card = directory / "model" / "backbone.json"
    if card.exists():
        content = json.loads(card.read_text())
        content["sha256"] = {name: statement["files"][f"model/{name}"] for name in content["sha256"]}
        card.write_text(json.dumps(content))
        statement["files"]["model/backbone.json"] = hashlib.sha256(card.read_bytes()).hexdigest()
    (directory / "privacy.json").write_text(json.dumps(statement))


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    """A JSON file changed by `change`."""

    def apply(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        change(content)
        (directory / name).write_text(json.dumps(content))

    return apply


def statement(change: Callable[[dict[str, Any]], Any]) -> Change:
    return edited("privacy.json", change)


def forged_plan(key: str, value: Any) -> Change:
    """A constant of the plan with the digest that belongs to it."""

    def change(s: dict[str, Any]) -> None:
        s["plan"][key] = value
        s["plan_digest"] = hashlib.sha256(json.dumps(s["plan"], sort_keys=True).encode()).hexdigest()

    return statement(change)


def forged_trial(key: str, value: Any, epsilon: float) -> Change:
    """A constant of a selection's trials with the digest that belongs to it, a claim, and cards that tell it."""

    def change(s: dict[str, Any]) -> None:
        s["plan"]["trial"][key] = value
        s["plan_digest"] = hashlib.sha256(json.dumps(s["plan"], sort_keys=True).encode()).hexdigest()
        s["guarantee"].update(epsilon=epsilon, epsilon_replace_one=epsilon)

    def apply(directory: Path) -> None:
        before = guarantee_sentence(json.loads((directory / "privacy.json").read_text()))
        statement(change)(directory)
        after = guarantee_sentence(json.loads((directory / "privacy.json").read_text()))
        for path in directory.rglob("*"):
            if path.suffix in (".md", ".html", ".json") and path.name != "privacy.json":
                path.write_text(path.read_text().replace(before, after))
        edited("model/backbone.json", lambda c: c["tuned"].update(epsilon=epsilon))(directory)

    return apply


def text(name: str, old: str, new: str) -> Change:
    def apply(directory: Path) -> None:
        before = (directory / name).read_text()
        assert old in before
        (directory / name).write_text(before.replace(old, new, 1))

    return apply


def first_image(directory: Path) -> Path:
    return min((directory / "synthetic").rglob("*.png"))


def chunk(kind: bytes, body: bytes) -> Change:
    """An image with one chunk more, before its end."""

    def apply(directory: Path) -> None:
        path = first_image(directory)
        data = path.read_bytes()
        extra = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        path.write_bytes(data[:-12] + extra + data[-12:])
        assert Image.open(path).size == (16, 16), "still an image"

    return apply


def in_the_pixels(extra: bytes, behind: bytes = b"") -> Change:
    """An image whose stream of pixels goes on, or has something behind its end. Viewers do not look there."""

    def apply(directory: Path) -> None:
        path = first_image(directory)
        data = path.read_bytes()
        at, body = data.index(b"IDAT") - 4, b""
        header, rest = data[:at], data[at:]
        while rest[4:8] == b"IDAT":
            length = int.from_bytes(rest[:4], "big")
            body, rest = body + rest[8 : 8 + length], rest[12 + length :]
        body = zlib.compress(zlib.decompress(body) + extra) + behind
        chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
        path.write_bytes(header + chunk + rest)
        assert Image.open(path).size == (16, 16)
        Image.open(path).load()  # still an image

    return apply


def own_checksum(directory: Path) -> None:
    path = first_image(directory)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"0.71")


def in_the_archive(directory: Path) -> None:
    """Bytes behind the end of an array's stream, and a directory that counts them as its own."""
    path = directory / "synthetic.npz"
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    real = zlib.compressobj

    class Longer:
        def __init__(self, *given: Any) -> None:
            self._real = real(*given)

        def compress(self, data: bytes) -> bytes:
            return self._real.compress(data)

        def flush(self, *given: Any) -> bytes:
            return self._real.flush(*given) + b"private"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zlib, "compressobj", Longer)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                with archive.open(name, "w", force_zip64=True) as file:
                    file.write(data)
    with np.load(path) as arrays:
        assert arrays["x"].shape[1:] == (16, 16, 1), "still an archive"


def saved_again(**options: Any) -> Change:
    """An image saved by a program that adds something of its own."""

    def apply(directory: Path) -> None:
        path = first_image(directory)
        image = Image.open(io.BytesIO(path.read_bytes()))
        image.save(path, **options)

    return apply


def comment() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Source", "/home/jane/patients/0001.dcm")
    return info


def exif() -> bytes:
    found = Image.Exif()
    found[0x010E] = "/home/jane/patients/0001.dcm"  # ImageDescription
    return found.tobytes()


def appended(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes() + data)


def added(name: str, data: bytes = b"x") -> Change:
    def apply(directory: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)

    return apply


def link(directory: Path) -> None:
    (directory / "images").symlink_to(directory / "synthetic", target_is_directory=True)


def link_in_place(directory: Path) -> None:
    aside = (directory / IMAGE).rename(directory.parent / "aside.png")
    (directory / IMAGE).symlink_to(aside)


def frozen_weight(directory: Path) -> None:
    """One bit of a tensor that was not to be tuned."""
    weights = Weights.open(directory / UNET)
    at = weights.start + weights.tensors["conv_in.weight"]["data_offsets"][0]
    data = bytearray((directory / UNET).read_bytes())
    data[at] ^= 1
    (directory / UNET).write_bytes(bytes(data))


def without_card(directory: Path) -> None:
    (directory / "model" / "backbone.json").unlink()


def other_weights_without_card(directory: Path) -> None:
    frozen_weight(directory)
    without_card(directory)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], metadata: dict[str, str] | None = None) -> Change:
    def apply(directory: Path) -> None:
        loaded = load_file(directory / UNET)
        change(loaded)
        save_file(loaded, directory / UNET, metadata={"format": "pt"} | (metadata or {}))

    return apply


def arrays(directory: Path) -> None:
    with np.load(directory / "synthetic.npz") as old:
        kept = dict(old)
    np.savez_compressed(directory / "synthetic.npz", real=kept["x"][:1], **kept)


def archive_comment(directory: Path) -> None:
    with zipfile.ZipFile(directory / "synthetic.npz", "a") as archive:
        archive.comment = b"seed 1234"


def column(directory: Path) -> None:
    path = directory / "synthetic" / "metadata.csv"
    with path.open(newline="") as file:
        rows = [[*row, "nearest" if place == 0 else "12.5"] for place, row in enumerate(csv.reader(file))]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def internal_report(directory: Path) -> None:
    for name in ("report.html", "report.json"):
        shutil.copy(directory.parent / "private" / name, directory / name)


def twice(directory: Path) -> None:
    """Readers differ in which of two equal keys they take."""
    path = directory / "privacy.json"
    path.write_text(path.read_text().replace('"updates":', '"updates": 1, "updates":', 1))


TAMPERED: dict[str, tuple[str, Change, int]] = {
    # claims
    "a smaller epsilon": ("data", statement(lambda s: s["guarantee"].update(epsilon=0.1)), WRONG),
    "a smaller epsilon for a group": ("group", statement(lambda s: s["guarantee"].update(epsilon=0.1)), WRONG),
    "a smaller epsilon for replacing": (
        "queries",
        statement(lambda s: s["guarantee"].update(epsilon_replace_one=0.1)),
        WRONG,
    ),
    "a smaller delta": ("both", statement(lambda s: s["guarantee"].update(delta=1e-9)), WRONG),
    "an image called a person": ("data", statement(lambda s: s["guarantee"].update(unit="group")), WRONG),
    "coverage of what is not covered": (
        "data",
        statement(lambda s: s["guarantee"].update(covers="everything that this hospital publishes")),
        WRONG,
    ),
    "a plan with less noise": ("data", forged_plan("noise_multiplier", 1.0), WRONG),
    "a query left out": ("queries", statement(lambda s: s["plan"]["queries"].pop()), WRONG),
    "a card with another epsilon": ("data", text("README.md", "(0.50, 0.001)", "(0.05, 0.001)"), WRONG),
    "a report with another epsilon": ("both", text("report.html", "(0.50, 0.001)", "(0.05, 0.001)"), WRONG),
    "a selection of more trials than are paid for": ("selection", forged_plan("mean_trials", 30.0), WRONG),
    "a selection whose noise is no number to reckon with": (
        "selection",
        forged_trial("noise_multiplier", 1e-160, 0.01),
        WRONG,
    ),
    "a start from class means that nobody asked for": (
        "data",
        statement(lambda s: s["declared_constants"]["optimizer"].update(warm_start_steps=100)),
        WRONG,
    ),
    "a metric for the number of plans": (
        "data",
        statement(lambda s: s["ledger"].update(plans_on_this_data_set=0.719)),
        TAINTED,
    ),
    "a selection stated as one trial": ("selection", statement(lambda s: s.update(plan=s["plan"]["trial"])), TAINTED),
    "a selection that covers its losers": (
        "selection",
        statement(lambda s: s["guarantee"].update(covers="all noised gradients and query answers of the run")),
        WRONG,
    ),
    "a report on a selection with a trial's epsilon": ("selection", text("report.html", "(1.00, ", "(0.50, "), WRONG),
    "a learning rate that was no candidate": (
        "selection",
        statement(lambda s: s["declared_constants"]["optimizer"].update(learning_rate=0.5)),
        WRONG,
    ),
    "tuned weights without their debt": ("model", edited("model/backbone.json", lambda c: c.pop("tuned")), WRONG),
    "tuned weights without their card": ("model", without_card, TAINTED),
    "other frozen weights without a card": ("both", other_weights_without_card, TAINTED),
    # the ledger
    "no ledger": ("data", statement(lambda s: s.pop("ledger")), REFUSED),
    "no head of the ledger": ("data", statement(lambda s: s["ledger"].pop("head")), REFUSED),
    "a ledger without its last lines": ("data", statement(lambda s: s["ledger"]["head"].update(seq=2)), WRONG),
    "a head that is no hash": ("data", statement(lambda s: s["ledger"]["head"].update(hash="seed 1234")), TAINTED),
    # the statement
    "a seed": ("data", statement(lambda s: s["declared_constants"].update(noise_seed=1234)), TAINTED),
    "a seed among the settings": (
        "data",
        statement(lambda s: s["declared_constants"]["optimizer"].update(seed=1234)),
        TAINTED,
    ),
    "scores among the candidates": (
        "selection",
        statement(lambda s: s["declared_constants"].update(learning_rates=[1e-3, 3e-3, "0.719"])),
        TAINTED,
    ),
    "the number of trials": ("selection", statement(lambda s: s["declared_constants"].update(trials=2)), TAINTED),
    "a loss for a decay": (
        "adapters",
        statement(lambda s: s["declared_constants"]["optimizer"].update(decay="loss 0.719")),
        TAINTED,
    ),
    "losses among the timesteps": (
        "adapters",
        statement(lambda s: s["declared_constants"]["optimizer"].update(timesteps=[[0.0, 1.0, 1.0, 0.719]])),
        TAINTED,
    ),
    "a state of the generator": ("data", statement(lambda s: s.update(rng_state="00ff")), TAINTED),
    "a private metric": ("data", statement(lambda s: s["guarantee"].update(accuracy=0.719)), TAINTED),
    "a metric for a version": ("data", statement(lambda s: s["software"].update(torch="accuracy 0.719")), TAINTED),
    "a path of the machine": (
        "data",
        statement(lambda s: s["declared_constants"].update(trainable="/home/jane/weights")),
        TAINTED,
    ),
    "a key that stands twice": ("data", twice, REFUSED),
    # images
    "a text in an image": ("data", chunk(b"tEXt", b"Source\0/home/jane/patients/0001.dcm"), TAINTED),
    "a text in an image, by Pillow": ("group", saved_again(format="PNG", pnginfo=comment()), TAINTED),
    "EXIF with a path in an image": ("queries", saved_again(format="PNG", exif=exif()), TAINTED),
    "a chunk of one's own": ("data", chunk(b"prVt", b"0.719"), TAINTED),
    "data in an image, below its last row": ("data", in_the_pixels(b"/home/jane/0001.dcm"), TAINTED),
    "data in an image, behind its pixels": ("data", in_the_pixels(b"", b"/home/jane/0001.dcm"), TAINTED),
    "a checksum that is a metric": ("data", own_checksum, TAINTED),
    "data in the archive, behind an array": ("data", in_the_archive, TAINTED),
    "data after an image": ("data", appended(IMAGE, b"private"), TAINTED),
    "a photograph instead of an image": ("data", saved_again(format="JPEG"), TAINTED),
    "an array of real images": ("data", arrays, TAINTED),
    "a comment in the archive": ("data", archive_comment, TAINTED),
    "data after the archive": ("data", appended("synthetic.npz", b"private"), TAINTED),
    "a column of distances": ("data", column, TAINTED),
    # weights
    "other frozen weights": ("both", frozen_weight, TAINTED),
    "a bias that no adapter adds to": ("adapters", tensors(lambda t: t[BIAS].add_(1)), TAINTED),
    "a smaller choice of adapters stated": (
        "adapters",
        statement(lambda s: s["declared_constants"].update(trainable="lora-2:attn1")),
        TAINTED,
    ),
    "a buffer that the public model has not": (
        "model",
        tensors(lambda t: t.update(running=torch.ones(3).half())),
        TAINTED,
    ),
    "the state of the optimizer": (
        "model",
        tensors(lambda t: t.update({"optimizer.conv_in.exp_avg": torch.ones(3).half()})),
        TAINTED,
    ),
    "a seed beside the weights": ("both", tensors(lambda t: None, {"seed": "1234"}), TAINTED),
    "data after the weights": ("model", appended(UNET, b"private"), TAINTED),
    "a metric on the model's card": (
        "model",
        edited("model/backbone.json", lambda c: c.update(test_accuracy=0.7)),
        TAINTED,
    ),
    "a state of the generator in the schedule": (
        "model",
        edited("model/scheduler/scheduler_config.json", lambda c: c.update(rng_state=[1, 2])),
        TAINTED,
    ),
    "a schedule that is not the public one": (
        "model",
        edited("model/scheduler/scheduler_config.json", lambda c: c.update(beta_end=0.5)),
        TAINTED,
    ),
    # texts
    "a model card with another epsilon": ("both", text("model/README.md", "(0.50, 0.001)", "(0.05, 0.001)"), WRONG),
    "a path in a card": ("data", appended("README.md", b"\nmade from /home/jane/patients\n"), TAINTED),
    "the internal report": ("both", internal_report, TAINTED),
    "a script in a report": ("both", text("report.html", "<main>", "<main><script>fetch('//x')</script>"), TAINTED),
    "a handler in a report": ("both", text("report.html", "<main>", '<main onclick="x()">'), TAINTED),
    "a report that looks elsewhere": (
        "both",
        text("report.html", '<a href="#odds">', '<a href="//example.org">'),
        TAINTED,
    ),
    "a report that goes elsewhere": (
        "both",
        text("report.html", "<title>", '<meta http-equiv="refresh" content="0;url=//x"><title>'),
        TAINTED,
    ),
    "a report without its policy": ("both", text("report.html", "default-src 'none'; ", ""), TAINTED),
    "a metric in the report's data": ("both", edited("report.json", lambda r: r.update(accuracy=0.719)), TAINTED),
    # files
    "another file": ("data", added("losses.csv"), TAINTED),
    "a hidden file": ("group", added(".real.png"), TAINTED),
    "a link to elsewhere": ("data", link, TAINTED),
    "a link in place of an image": ("data", link_in_place, WRONG),
    "an image less": ("data", lambda directory: (directory / IMAGE).unlink(), WRONG),
}  # fmt: skip
WITHOUT_FORGER = {"an image less", "a link to elsewhere"}
"""Fewer images are as private; a declared folder behind a link is the case of another file."""
CASES = [
    pytest.param(name, rehashed, id=f"{name}{', rehashed' if rehashed else ''}")
    for name, (_, _, code) in TAMPERED.items()
    for rehashed in (False, True)
    if not (rehashed and (name in WITHOUT_FORGER or code == REFUSED))
]


def exit_code(directory: Path, backbone: Path) -> int:
    return main(["verify", str(directory), "--backbone", str(backbone)])


@pytest.mark.parametrize(("name", "rehashed"), CASES)
def test_a_tampered_release_is_rejected(
    name: str,
    rehashed: bool,
    honest: dict[str, Path],
    tmp_path: Path,
    tiny_backbone: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, change, expected = TAMPERED[name]
    shutil.copytree(honest[kind].parent / "private", tmp_path / "private", ignore=shutil.ignore_patterns("*.safe*"))
    directory = Path(shutil.copytree(honest[kind], tmp_path / "release"))
    change(directory)
    if rehashed:
        rehash(directory)
    assert exit_code(directory, tiny_backbone) == expected
    shown = capsys.readouterr().out
    assert ("NOT DIFFERENTIALLY PRIVATE" in shown) == (expected == TAINTED)
    assert ("NOT VERIFIED" in shown) == (expected == WRONG)


def test_enough_is_tried() -> None:
    assert len(TAMPERED) >= 50


def test_all_of_it_is_checked_without_torch(honest: dict[str, Path], tiny_backbone: Path) -> None:
    words = ["verify", str(honest["both"]), "--backbone", str(tiny_backbone)]
    code = f"import sys, dpldm.cli; code = dpldm.cli.main({words!r}); print(sorted(sys.modules)); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for heavy in ("torch", "diffusers", "pydantic", "matplotlib", "jinja2", "safetensors"):
        assert f"'{heavy}'" not in done.stdout


def test_a_backbone_that_is_none_or_another_is_told(
    honest: dict[str, Path], tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(honest["model"], tmp_path) == REFUSED
    assert "is no backbone: give the directory of the public backbone" in capsys.readouterr().err
    other = Path(shutil.copytree(tiny_backbone, tmp_path / "other"))
    edited("backbone.json", lambda c: c["sha256"].update({"unet/diffusion_pytorch_model.safetensors": "0" * 64}))(other)
    assert exit_code(honest["model"], other) == WRONG
    assert "is not the backbone that the statement names" in capsys.readouterr().out
