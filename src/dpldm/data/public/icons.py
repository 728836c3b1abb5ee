"""Public images of icons: grey shapes, flat or shaded like photographs of cloth, or small colour pictures."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.public.collection import PublicSet
from dpldm.data.public.emoji import held_out
from dpldm.data.public.icon_sets import Icon, select_icons
from dpldm.data.public.placing import SUPERSAMPLING, Jitter, crop, halve, place
from dpldm.data.public.rendering import render
from dpldm.data.public.shading import colour, fill_silhouette, flat, shade
from dpldm.errors import UserError
from dpldm.progress import OnProgress, unseen

GREY = Jitter(box=(0.72, 1.0), degrees=10, shear=0.12, stretch=1.8, shift=0.6, flip=True)
COLOUR = Jitter(box=(0.75, 1.0), degrees=8, shear=0.05, stretch=1.2, shift=0.6, flip=True)
BATCH = 2048
DROPPED_SAMPLE = 384


def make_icons(
    folder: Path,
    *,
    image_size: int,
    channels: int,
    count: int,
    seed: int,
    shaded_fraction: float = 0.6,
    private_vendor: str | None = None,
    on_progress: OnProgress = unseen,
) -> PublicSet:
    """Draw `count` images from the icon sets below `folder`.

    Every distinct icon is drawn once before any is drawn again with another random placement. With one
    channel all sets serve as shapes, and each image is shaded (`shading.shade`) with probability
    `shaded_fraction`, else flat; with three channels the multicolour sets are drawn on a plain background.

    Args:
        folder: an unpacked `@iconify/json` package.
        image_size: side in pixels, at least 8.
        channels: 1 or 3.
        count: number of images, at least 1.
        seed: of all randomness; equal arguments give equal bytes.
        shaded_fraction: in [0, 1]; used with one channel only.
        private_vendor: an emoji set that is private: it is left out, and so is whatever shows what its test part shows.

    Raises:
        UserError: if the folder is not such a package, or an argument is outside its range.
        MissingExtra: if resvg-py is not installed.
    """
    if channels not in (1, 3) or image_size < 8 or count < 1 or not 0 <= shaded_fraction <= 1:
        raise UserError("Icons need channels 1 or 3, image_size >= 8, count >= 1 and shaded_fraction in [0, 1].")
    refuses = held_out(Path(folder), private_vendor).refuses if private_vendor else None
    chosen = select_icons(Path(folder), multicolour_only=channels == 3, held_out=refuses)
    rng = np.random.default_rng(seed)
    dropped = Counter(chosen.dropped)
    layers, icons = _draw(_shuffle(chosen.kept, rng), image_size, channels, count, rng, dropped, on_progress)
    if not icons:
        raise UserError(f"No icon of {folder} passed the licence, logo and digit rules: nothing to draw.")
    shown = min(DROPPED_SAMPLE, len(chosen.digits))
    refused, _ = _draw(_shuffle(chosen.digits, rng), image_size, channels, shown, rng, Counter())
    parameters: dict[str, Any] = {"image_size": image_size, "channels": channels, "count": count, "seed": seed}
    parameters |= {"shaded_fraction": shaded_fraction, "private_vendor": private_vendor}
    provenance = {
        "kind": "icons",
        "packages": {chosen.package[0]: chosen.package[1]} | _tools(),
        "parameters": parameters,
        "jitter": asdict(GREY if channels == 1 else COLOUR),
        "icons_eligible": len(chosen.kept),
        "icons_distinct": len(set(icons)),
        "icons_dropped": dict(dropped),
        "images_per_licence": dict(Counter(chosen.sets[icon.family]["license"]["spdx"] for icon in icons)),
        "sets": {icon.family: _credit(chosen.sets[icon.family]) for icon in icons},
    }
    return PublicSet(
        images=_paint(layers, shaded_fraction, rng),
        labels=np.zeros(len(icons), np.int64),
        label_names=("icon",),
        families=np.array([icon.family for icon in icons]),
        names=np.array([icon.name.replace("-", " ") for icon in icons]),
        provenance=provenance,
        dropped=_paint(refused, 0.0, rng) if len(refused) else None,
    )


def _draw(
    icons: Sequence[Icon],
    size: int,
    channels: int,
    count: int,
    rng: np.random.Generator,
    dropped: Counter[str],
    on_progress: OnProgress = unseen,
) -> tuple[NDArray[np.uint8], list[Icon]]:
    """Place `count` icons: each distinct one once, then the same again in the same order.

    Returns: uint8 (count, K, size, size) and the icon of each; empty if all are blank. K = 2, shape and
    filled silhouette, for one channel; K = 4, opacity and colour times opacity, for three.
    """
    seen: set[bytes] = set()
    distinct: list[Icon] = []
    layers: list[NDArray[np.uint8]] = []
    for icon in icons:
        if len(distinct) == count:
            break
        shape = _render(icon.svg, size * SUPERSAMPLING, channels)
        if not shape.size:
            dropped["blank or not drawable"] += 1
        elif (mark := _fingerprint(shape)) in seen:
            dropped["near copy of a kept icon"] += 1
        else:
            seen.add(mark)
            distinct.append(icon)
            layers.append(_place(shape, size, rng))
            on_progress("icons", len(layers), count)
    again = list(itertools.islice(itertools.cycle(distinct), count - len(distinct)))
    for icon in again:
        layers.append(_place(_render(icon.svg, size * SUPERSAMPLING, channels), size, rng))
        on_progress("icons", len(layers), count)
    return (np.stack(layers) if layers else np.empty((0, 1, size, size), np.uint8)), distinct + again


def _render(svg: str, size: int, channels: int) -> NDArray[np.uint8]:
    """Draw an SVG document and crop it to what is visible.

    Returns: uint8 (K, h, w): with one channel K = 1, opacity times a tone of at least 0.35, so that a dark
    line of a multicolour icon stays part of its shape; with three channels K = 4, opacity and red, green,
    blue times opacity. h = w = 0 if nothing is visible or the document is broken.
    """
    drawn = render(svg, size)
    if drawn is None:
        return np.empty((1, 0, 0), np.uint8)
    pixels = np.asarray(drawn, np.float32).transpose(2, 0, 1)
    opacity, rgb = pixels[3:] / 255, pixels[:3]
    if channels == 1:
        luminance = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), rgb, axes=1)[None] / 255
        layers = 255 * opacity * (0.35 + 0.65 * luminance)
    else:
        layers = np.concatenate([255 * opacity, rgb * opacity])
    return crop(np.rint(layers).astype(np.uint8))


def _fingerprint(shape: NDArray[np.uint8]) -> bytes:
    """Equal for shapes that look the same at 20 x 20 pixels and 8 grey levels (all sets share many icons)."""
    small = [np.asarray(Image.fromarray(layer).resize((20, 20), Image.Resampling.BOX)) >> 5 for layer in shape]
    return hashlib.blake2b(np.stack(small).tobytes(), digest_size=16).digest()


def _place(shape: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    placed = place(shape, size, GREY if len(shape) == 1 else COLOUR, rng)
    if len(placed) == 1:
        placed = np.stack([placed[0], fill_silhouette(placed[0])])
    return np.rint(halve(placed) * 255).astype(np.uint8)


def _paint(layers: NDArray[np.uint8], shaded_fraction: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Layers of `_draw` (N, K, S, S) -> images (N, S, S, C), batch by batch."""
    images = []
    for start in range(0, len(layers), BATCH):
        batch = np.asarray(layers[start : start + BATCH] / np.float32(255), dtype=np.float32)
        if batch.shape[1] == 4:
            images.append(colour(batch, rng))
            continue
        shaded = rng.random((len(batch), 1, 1)) < shaded_fraction
        grey = np.where(shaded, shade(batch[:, 0], batch[:, 1], rng), flat(batch[:, 0], rng))
        images.append(grey[..., None])
    return np.concatenate(images)


def _shuffle(icons: Sequence[Icon], rng: np.random.Generator) -> list[Icon]:
    return [icons[index] for index in rng.permutation(len(icons))]


def _tools() -> dict[str, str]:
    return {tool: version(tool) for tool in ("resvg_py", "pillow", "numpy", "scipy")}


def _credit(about: Mapping[str, Any]) -> dict[str, str]:
    """What a licence asks us to name."""
    author, licence = about.get("author", {}), about["license"]
    return {
        "name": about["name"],
        "author": author.get("name", ""),
        "author_url": author.get("url", ""),
        "licence": licence["spdx"],
        "licence_url": licence.get("url", ""),
    }
