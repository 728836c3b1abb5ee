"""What there is to see in a release: the images that it holds, and those that its model can draw.

Both are a `Shelf`. What a browser asks of one is checked like a config, and answered in rows: one for the class that
was asked for, or one for each class.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dpldm.config import SamplingConfig
from dpldm.errors import UserError
from dpldm.models.backbone import load_backbone
from dpldm.sampling import Sampler, released_shares, with_public_classes
from dpldm.section import Section
from dpldm.train.public_data import step_generator

MOST_IMAGES = 48
"""Of a row."""
MOST_ROWS = 40
"""Classes on a page that shows some of each."""
MOST_GUIDANCE = 20
LARGEST_SEED = 2**31 - 1
EVERY = -1
"""In place of a class: some of each."""


class Asked(Section):
    """What a browser asks of any shelf."""

    kind: int = Field(EVERY, ge=EVERY)
    """Class, in the order of the statement's labels; -1 for some of each."""
    number: int = Field(12, ge=1, le=MOST_IMAGES)
    """Images of a class."""


class Look(Asked):
    """Which of the released images to show."""

    first: int = Field(0, ge=0)
    """How many of a class to pass over."""


class Drawing(Asked):
    """What to draw."""

    prompt: str = Field("", max_length=300)
    """What a model that is told captions is told."""
    guidance: float = Field(1.0, ge=0, le=MOST_GUIDANCE, allow_inf_nan=False)
    """1 is none; above it classes become plainer, at twice the work."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """The same seed draws the same images."""


@dataclass(frozen=True, eq=False)
class Row:
    """Images that belong together."""

    name: str  # class or prompt; "" if there is none
    images: NDArray[np.uint8]  # (N, S, S, C)


class Shelf(ABC):
    """One kind of images to see."""

    path: ClassVar[str]
    """Of its page."""
    title: ClassVar[str]
    asked: ClassVar[type[Asked]]
    names: list[str]
    """Classes, or prompts of images that exist; none if there is neither."""

    def rows(self, asked: Any) -> Iterator[Row]:
        """Row after row; each is made when its turn comes.

        Args:
            asked: a value of the shelf's `asked`.

        Raises:
            UserError: there is no such class.
        """
        if asked.kind >= len(self.names):
            raise UserError("There is no such class in this release: choose one of the list.")
        some_of_each = self.names and asked.kind == EVERY
        kinds = range(len(self.names))[:MOST_ROWS] if some_of_each else [asked.kind]
        return (self.row(kind, asked) for kind in kinds)

    @abstractmethod
    def row(self, kind: int, asked: Any) -> Row:
        """The row of a class; -1 where there are none."""

    def beginning(self) -> dict[str, Any]:
        """What its form says before anybody filled it in, where that is not the default."""
        return {}

    def neighbours(self, asked: Any) -> dict[str, dict[str, Any]]:
        """What to ask for the images before and after these, by what to call them."""
        return {}


class Released(Shelf):
    """The images of a release.

    Args:
        archive: its synthetic.npz.
        names: classes or prompts, in the order of their numbers; none if it has neither.
    """

    path, title, asked = "/images", "Released images", Look

    def __init__(self, archive: Path, names: list[str]) -> None:
        self.names = names
        with np.load(archive, allow_pickle=False) as arrays:
            self.images = arrays["x"]
            labels = arrays["y"] if names else np.full(len(self.images), EVERY)
        self.places = {kind: np.flatnonzero(labels == kind) for kind in (range(len(names)) if names else [EVERY])}

    def row(self, kind: int, asked: Look) -> Row:
        """In the order in which they were drawn: nobody chose them."""
        places = self.places[kind][asked.first : asked.first + asked.number]
        return Row(self.names[kind] if self.names else "", self.images[places])

    def neighbours(self, asked: Look) -> dict[str, dict[str, Any]]:
        """See `Shelf.neighbours`."""
        kinds = [asked.kind] if asked.kind in self.places else self.places
        there_are = max(len(self.places[kind]) for kind in kinds)
        before, after = max(0, asked.first - asked.number), asked.first + asked.number
        found = {"Earlier images": before} if asked.first else {}
        found |= {"Later images": after} if after < there_are else {}
        return {title: asked.model_dump() | {"first": first} for title, first in found.items()}


class Painter(Shelf):
    """The model of a release. What it draws is covered by the release's guarantee like the model itself.

    Args:
        model: the release's folder `model`.
        declared: the statement's declared constants.

    Raises:
        UserError: it cannot be loaded.
    """

    path, title, asked = "/draw", "Draw new ones", Drawing

    def __init__(self, model: Path, declared: Mapping[str, Any]) -> None:
        self.backbone = load_backbone(str(model))
        self.size, sampling = int(declared["image_size"]), declared["sampling"]
        kept = ("sampler", "steps", "eta", "guidance")
        self.settings = SamplingConfig.model_validate({name: sampling[name] for name in kept})
        told = self.backbone.family.told
        self.names = declared["labels"] if told == "classes" else []
        self.prompts = _prompts(declared) if told == "captions" else None
        self.shares = released_shares(model)
        self.drawn = lru_cache(maxsize=2 * MOST_ROWS)(self._drawn)  # a page, and the archive of the same images
        self.one_at_a_time = threading.Lock()

    def row(self, kind: int, asked: Drawing) -> Row:
        """Drawn now, or kept since a moment ago."""
        name = self.names[kind] if self.names else asked.prompt if self.prompts is not None else ""
        return Row(name, self.drawn(asked.model_copy(update={"kind": kind})))

    def beginning(self) -> dict[str, Any]:
        """See `Shelf.beginning`: what the release's own images were drawn with."""
        guidance = {"guidance": min(MOST_GUIDANCE, self.settings.guidance)}
        return guidance | ({"prompt": self.prompts[0]} if self.prompts else {})

    def _drawn(self, asked: Drawing) -> NDArray[np.uint8]:
        settings = self.settings.model_copy(update={"guidance": asked.guidance})
        texts = [] if self.prompts is None else [asked.prompt]
        labels = torch.full((asked.number,), 0 if texts else asked.kind)
        told = labels if self.shares is None else with_public_classes(labels, self.shares, asked.seed)
        with self.one_at_a_time:
            draw = Sampler(self.backbone, self.backbone.denoiser, settings, self.size, texts)
            return draw(told, step_generator(asked.seed, asked.kind + 1))


def _prompts(declared: Mapping[str, Any]) -> list[str]:
    """Texts that the release's own images were drawn for: a beginning for one's own."""
    template = declared.get("caption_template", "{label}")
    return declared.get("prompts") or [template.replace("{label}", label) for label in declared["labels"]]
