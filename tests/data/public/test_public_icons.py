import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpldm.data.public.icon_sets import select_icons
from dpldm.data.public.icons import make_icons
from dpldm.errors import MissingExtra, UserError

GREY_NAMES = {"good box", "good triangle", "good disc filled", "good wide filled", "red", "blue"}


def test_selection_keeps_the_usable_and_counts_the_rest(icon_package: Path) -> None:
    chosen = select_icons(icon_package, multicolour_only=False)
    kept = {(icon.family, icon.name) for icon in chosen.kept}
    assert kept == {
        *(("plain", name) for name in ("good-box", "good-triangle", "good-triangle-copy", "blank", "broken")),
        *(("sized", name) for name in ("good-disc-filled", "good-wide-filled")),
        *(("palette", name) for name in ("red", "blue")),
    }
    assert {icon.name for icon in chosen.digits} == {"calendar", "number-circle", "box-3d", "letter"}
    assert chosen.package == ("@iconify/json", "9.9.9")
    assert chosen.dropped == {
        "licence CC-BY-SA-4.0": 1,
        "set of logos": 1,
        "brand in the name": 1,
        "hidden or skin-tone variant": 1,
        "other size of a kept icon": 2,
        "thing that carries digits": 2,
        "digit in the name": 1,
        "text in the drawing": 1,
    }


@pytest.mark.parametrize("licence", ["GPL-3.0", "MPL-2.0", "CC-BY-NC-4.0", "CC-BY-SA-3.0", "Unlicense", None])
def test_other_licences_are_refused(icon_package: Path, licence: str | None) -> None:
    path = icon_package / "collections.json"
    about = json.loads(path.read_text())
    about["plain"]["license"] = {"title": "some", **({"spdx": licence} if licence else {})}
    path.write_text(json.dumps(about))
    chosen = select_icons(icon_package, multicolour_only=False)
    assert "plain" not in chosen.sets
    assert chosen.dropped[f"licence {licence}"] >= about["plain"]["total"]
    assert {icon.family for icon in chosen.kept} == {"sized", "palette"}


def test_each_distinct_icon_is_drawn_before_any_is_drawn_again(icon_package: Path) -> None:
    once = make_icons(icon_package, image_size=32, channels=1, count=6, seed=0)
    # The copy of the triangle looks the same, so either of the two may be the one that is kept.
    assert {name.removesuffix(" copy") for name in once.names} == GREY_NAMES
    thrice = make_icons(icon_package, image_size=32, channels=1, count=18, seed=0)
    assert sorted(np.unique(thrice.names, return_counts=True)[1]) == [3] * 6
    assert len({image.tobytes() for image in thrice.images}) == 18
    dropped = thrice.provenance["icons_dropped"]
    assert dropped["near copy of a kept icon"] == 1
    assert dropped["blank or not drawable"] == 2
    assert thrice.provenance["icons_distinct"] == 6


def test_grey_images_show_the_shape(icon_package: Path) -> None:
    made = make_icons(icon_package, image_size=32, channels=1, count=240, seed=0, shaded_fraction=0)
    assert made.images.shape == (240, 32, 32, 1)
    assert made.label_names == ("icon",)
    assert not made.labels.any()
    disc = made.images[made.names == "good disc filled", ..., 0].astype(int)
    assert len(disc) == 40
    centre, corner = disc[:, 14:18, 14:18].mean(axis=(1, 2)), disc[:, 0, 0]
    assert (np.abs(centre - corner) > 40).all()
    ink = np.abs(disc - corner[:, None, None]) > 0.5 * np.abs(centre - corner)[:, None, None]
    rows = ink.any(axis=2).sum(axis=1)
    columns = ink.any(axis=1).sum(axis=1)
    # A disc placed in its bounding box covers pi / 4 of it, however it was stretched.
    np.testing.assert_allclose(ink.sum(axis=(1, 2)) / (rows * columns), np.pi / 4, atol=0.12)
    assert (np.maximum(rows, columns) >= 18).all()


def test_the_shaded_share_has_texture(icon_package: Path) -> None:
    def share(fraction: float) -> float:
        made = make_icons(icon_package, image_size=32, channels=1, count=200, seed=0, shaded_fraction=fraction)
        disc = made.images[made.names == "good disc filled", 14:18, 14:18, 0]
        return float((disc.std(axis=(1, 2)) > 1).mean())

    assert share(0) < 0.1
    assert share(1) > 0.7
    assert 0.3 < share(0.5) < 0.7


def test_three_channels_draw_the_multicolour_sets_in_their_colours(icon_package: Path) -> None:
    made = make_icons(icon_package, image_size=24, channels=3, count=40, seed=0)
    assert made.images.shape == (40, 24, 24, 3)
    assert set(made.names) == {"red", "blue"}
    colours = {"red": [255, 0, 0], "blue": [0, 0, 255]}
    for name, image in zip(made.names, made.images, strict=True):
        assert (image == colours[name]).all(axis=-1).sum() > 60


def test_equal_arguments_give_equal_bytes_and_name_no_folder(icon_package: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        make_icons(icon_package, image_size=16, channels=1, count=12, seed=seed).save(tmp_path / name)
    contents = [(tmp_path / name / "images.npz").read_bytes() for name in ("first", "second", "other")]
    assert contents[0] == contents[1] != contents[2]
    text = (tmp_path / "first" / "provenance.json").read_text()
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert record["packages"]["@iconify/json"] == "9.9.9"
    assert record["images_per_licence"] == {"MIT": 4, "Apache-2.0": 4, "CC-BY-4.0": 4}
    assert record["sets"]["palette"]["author"] == "palette authors"
    assert (tmp_path / "first" / "dropped-sheet.png").is_file()


@pytest.mark.parametrize(
    "change",
    [{"channels": 2}, {"count": 0}, {"image_size": 4}, {"shaded_fraction": -0.1}, {"shaded_fraction": 2}],
)
def test_arguments_out_of_range_are_user_errors(icon_package: Path, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"image_size": 16, "channels": 1, "count": 2, "seed": 0}
    assert len(make_icons(icon_package, **good)) == 2
    with pytest.raises(UserError, match="Icons need"):
        make_icons(icon_package, **(good | change))


def test_what_is_no_package_is_a_user_error(tmp_path: Path, icon_package: Path) -> None:
    with pytest.raises(UserError, match="not an unpacked"):
        make_icons(tmp_path, image_size=16, channels=1, count=2, seed=0)
    (icon_package / "json" / "sized.json").unlink()
    with pytest.raises(UserError, match="incomplete"):
        make_icons(icon_package, image_size=16, channels=1, count=2, seed=0)


def test_nothing_usable_is_a_user_error(icon_package: Path) -> None:
    about = json.loads((icon_package / "collections.json").read_text())
    (icon_package / "collections.json").write_text(json.dumps({"marks": about["marks"]}))
    with pytest.raises(UserError, match="nothing to draw"):
        make_icons(icon_package, image_size=16, channels=1, count=2, seed=0)


def test_without_the_renderer_the_extra_is_named(icon_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"dpldm\[public\]"):
        make_icons(icon_package, image_size=16, channels=1, count=2, seed=0)
