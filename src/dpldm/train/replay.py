"""Replay: the real trainer on two data sets that differ in one unit, to see what that unit changes.

`algorithm_1` runs on made-up latents with the run's backbone, settings, C, K, L and clipping. The units that both sets
share get the same coins and draws, and both runs go on from the same outputs, as in the proof of docs/privacy.md. Then
the clipped sums may differ by C at most, and nothing else may differ at all: not a ledger line, not a file, not a
shown step, not the way the run ends. (Idea: Re:cord-play, arXiv 2602.17454.)

The noise is left out here (sigma = 0): what the mechanism hands out is then the clipped sum itself, over L C.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.models.autoencoder import Posterior, latent_shape
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.ledger import open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.checks import check_fit, require_examples_apart
from dpldm.train.made_up import stand_ins
from dpldm.train.shown import FinetuneStep
from dpldm.train.tuner import Tuner

STEPS = 2
PASS = 4
"""Units of a physical pass."""
COMMON = 2 * PASS
"""Units that both data sets hold: whole passes, so that one more unit comes in a pass of its own."""
PLACE = 1
"""Where, among the others of a pass, the unit stands that is there in one data set and null in the other."""
ROUNDING = 1e-4
"""What float32 may add to the difference of two sums, relative to C (docs/privacy.md, limits)."""
KINDS = ("ordinary", "duplicate", "huge", "zero", "not finite", "null")
"""What the one unit is like."""
ADDED, IN_A_PASS = "added at the end", "in place of a null record"
"""How the two data sets differ: one unit more in a pass of its own; or the same size, so that the unit shares its pass
with others whose draws stay the same, and contributes where the null record contributes nothing."""


@dataclass(frozen=True)
class World:
    """Everything one replayed run does that somebody could see, and its clipped sums."""

    sums: Tensor  # (updates, parameters) float64, in units of C
    shown: list[FinetuneStep]
    learning_rates: list[float]
    files: dict[str, str]  # name -> sha256, ledger and checkpoint among them
    end: str  # "finished", or the kind of an exception


@dataclass(frozen=True)
class Pair:
    """One comparison of neighbours."""

    kind: str
    relation: str
    distance: float  # largest ||S(D) - S(D')|| / C over all updates
    different: list[str]  # observables that are not equal

    @property
    def violated(self) -> bool:
        """More than C (or anything at all of a unit that must not count), or something else that differs."""
        limit = ROUNDING if self.kind in ("not finite", "null") else 1 + ROUNDING
        return bool(self.different) or not self.distance <= limit


def replay(config: RunConfig, plan: PrivacyPlan, seed: int = 0) -> list[Pair]:
    """Compare neighbours of every kind and both relations. Opens no image; works in a temporary folder.

    Args:
        seed: of the made-up records, which are nobody's.

    Raises:
        UserError: the backbone does not fit the settings, or lets examples of a batch meet.
    """
    backbone = load_backbone(config.backbone)
    check_fit(config, backbone)
    own = _copied(backbone)
    require_examples_apart(own, Tuner(own, config, plan).trainable, config)
    common, extra = (_made_up(config, plan, backbone, units, seed) for units in (COMMON, 1))
    null = replace(extra, usable=torch.zeros_like(extra.usable))
    found = []
    for relation in (ADDED, IN_A_PASS):
        without = common if relation == ADDED else _put(common, null, PLACE)
        original = observe(config, plan, backbone, without, seed)
        for kind in KINDS if relation == ADDED else KINDS[:-1]:  # null in place of null compares nothing
            unit = _changed(extra, kind, common)
            neighbour = _put(common, unit, COMMON if relation == ADDED else PLACE)
            found.append(_compared(kind, relation, original, observe(config, plan, backbone, neighbour, seed)))
    return found


def observe(config: RunConfig, plan: PrivacyPlan, backbone: Backbone, latents: PrivateLatents, seed: int) -> World:
    """Run `algorithm_1` for a few updates with every unit in every batch, and keep all that it does."""
    everyone = max(10, plan.expected_batch_size)  # q = 1, and the same divisor L (a plan has 10 records at least)
    shortened = replace(
        plan,
        records=everyone,
        expected_batch_size=everyone,
        steps=STEPS,
        reserve_steps=1,
        noise_multiplier=0.0,
        noise="float",  # without noise there is no grid: what is compared is the sum before it
        max_batch_size=None,
        most_records=None,
        public_benchmark=True,
    )
    with tempfile.TemporaryDirectory(prefix="dpldm-audit-") as folder:
        run = Run(_here(config, Path(folder), physical=PASS * _images_of_a_unit(plan)))
        run.private.mkdir(parents=True)
        entropy = _Entropy(seed)
        tuner = _Replayed(_copied(backbone), run.config, shortened, plan.noise_multiplier, entropy)
        shown: list[FinetuneStep] = []
        with open_ledger(run.ledger, plan.dataset_id, None) as ledger:
            ledger.register(shortened)
            try:
                for step in algorithm_1(tuner, backbone.scheduler, latents, shortened, ledger, run, entropy):
                    shown.append(step)
                end = "finished"
            except Exception as error:  # whatever it is: a crash is an output
                end = type(error).__name__
        sums = torch.stack(tuner.sums) if tuner.sums else torch.zeros(0, 0, dtype=torch.float64)
        return World(sums, shown, tuner.learning_rates, _files(Path(folder)), end)


def _copied(backbone: Backbone) -> Backbone:
    """With a denoiser of its own, which a tuner changes."""
    return replace(backbone, denoiser=deepcopy(backbone.denoiser))


class _Entropy:
    """Bytes fixed by attempt and call: NOT PRIVATE. Fewer units get the first bytes of what more units get."""

    private = False

    def __init__(self, seed: int) -> None:
        self._seed, self._attempt = seed, 0
        self.next_attempt()

    def next_attempt(self) -> None:
        """The coming attempt's stream does not depend on how much of the last one was used."""
        self._attempt += 1
        self._stream = SeededEntropy(self._seed * 1000 + self._attempt)

    def bytes(self, count: int) -> bytes:
        return self._stream.bytes(count)


class _Replayed(Tuner):
    """Keeps what the mechanism hands out, and goes on from made-up noise, the same in every world."""

    def __init__(
        self, backbone: Backbone, config: RunConfig, plan: PrivacyPlan, noise_multiplier: float, entropy: _Entropy
    ) -> None:
        super().__init__(backbone, config, plan)
        self.sums: list[Tensor] = []
        self.learning_rates: list[float] = []
        self._divisor, self._entropy = plan.expected_batch_size, entropy
        self._scale = noise_multiplier / self._divisor

    def update(self, gradient: Mapping[str, Tensor]) -> None:
        self.sums.append(torch.cat([part.flatten() for part in gradient.values()]).double() * self._divisor)
        noise = torch.Generator().manual_seed(self.updates)
        super().update({name: self._scale * torch.randn(p.shape, generator=noise) for name, p in gradient.items()})
        self.learning_rates.append(float(self.optimizer.param_groups[0]["lr"]))
        self._entropy.next_attempt()


def _here(config: RunConfig, folder: Path, physical: int) -> RunConfig:
    """The same run in a folder of its own, with a ledger of its own."""
    runtime = config.runtime.model_copy(update={"output": folder, "physical_batch_size": physical})
    privacy = config.privacy.model_copy(update={"ledger": folder / "ledger.jsonl"})
    return config.model_copy(update={"runtime": runtime, "privacy": privacy})


def _files(folder: Path) -> dict[str, str]:
    """Name and sha256 of every file; equal hashes are equal sizes, keys and shapes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _compared(kind: str, relation: str, one: World, other: World) -> Pair:
    names = {item.name for item in fields(World)} - {"sums"}
    different = sorted(name for name in names if getattr(one, name) != getattr(other, name))
    if one.end != "finished" and "end" not in different:
        different.append("end")  # alike, but nothing was compared
    same_length = one.sums.shape == other.sums.shape and len(one.sums) > 0
    distance = float((one.sums - other.sums).norm(dim=1).max()) if same_length else float("inf")
    return Pair(kind, relation, distance, different)


# --- made-up units -----------------------------------------------------------------------------------------------


def _images_of_a_unit(plan: PrivacyPlan) -> int:
    return min(plan.images_per_unit, 3)


def _made_up(config: RunConfig, plan: PrivacyPlan, backbone: Backbone, units: int, seed: int) -> PrivateLatents:
    """Units of random latents; a single one has a label of its own, the last, as the only member of its class."""
    images = _images_of_a_unit(plan)
    generator = torch.Generator().manual_seed(2 * seed + (units == 1))
    mean = torch.randn(units * images, *latent_shape(backbone.autoencoder, config.data.image_size), generator=generator)
    classes, last = len(config.data.labels), len(config.data.labels) - 1  # no classes: -1, unconditional
    labels = torch.full((len(mean),), last) if units == 1 else torch.arange(len(mean)) % max(1, classes - 1)
    usable = torch.ones(len(mean), dtype=torch.bool)
    labels = labels if classes else torch.full_like(labels, -1)
    made = stand_ins(Posterior(mean, torch.full_like(mean, -3.0)), labels, usable, backbone.denoiser)
    return replace(made, members=None if plan.unit == "image" else torch.arange(len(mean)).view(units, images))


def _changed(unit: PrivateLatents, kind: str, common: PrivateLatents) -> PrivateLatents:
    """The one unit, made into one of `KINDS`."""
    images, mean = len(unit.labels), unit.posterior.mean.clone()
    if kind == "duplicate":
        original = Posterior(common.posterior.mean[:images], common.posterior.log_variance[:images])
        return replace(unit, posterior=original, labels=common.labels[:images])
    if kind == "null":
        return replace(unit, usable=torch.zeros_like(unit.usable))
    if kind == "not finite":
        mean[0] = float("nan")  # one image of a group is enough
    mean *= {"huge": 1e6, "zero": 0.0}.get(kind, 1.0)
    return replace(unit, posterior=Posterior(mean, unit.posterior.log_variance))


def _put(common: PrivateLatents, unit: PrivateLatents, place: int) -> PrivateLatents:
    """`common` with the unit put after the last one (place = `COMMON`), or at a place that another leaves."""
    images = len(unit.labels)
    kept = slice((place + 1) * images, None)

    def joined(many: Tensor, one: Tensor) -> Tensor:
        return torch.cat([many[: place * images], one, many[kept]])

    labels = joined(common.labels, unit.labels)
    return PrivateLatents(
        Posterior(
            joined(common.posterior.mean, unit.posterior.mean),
            joined(common.posterior.log_variance, unit.posterior.log_variance),
        ),
        labels,
        joined(common.usable, unit.usable),
        None if common.members is None else torch.arange(len(labels)).view(-1, images),
        None if common.tokens is None or unit.tokens is None else joined(common.tokens, unit.tokens),
    )
