"""Stage 3 on a tiny backbone: what it charges, clips, moves, resumes, refuses and shows."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpldm.config import RunConfig, RuntimeConfig
from dpldm.data.fingerprints import plans_after_a_change
from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior
from dpldm.models.backbone import load_backbone
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.entropy import Entropy, SeededEntropy, SystemEntropy
from dpldm.privacy.ledger import open_ledger, read_ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run, plan_of
from dpldm.train import algorithm_1 as lines
from dpldm.train import example_losses as losses_of_records
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.checkpoint import optimizer_tensors
from dpldm.train.example_losses import Draws, example_losses, fresh_draws
from dpldm.train.finetune import finetune
from dpldm.train.resuming import resume
from dpldm.train.shown import FinetuneStep
from dpldm.train.timesteps import Timesteps
from dpldm.train.tuner import Tuner
from dpldm.tuned import finished as finished_run

PLAN = PrivacyPlan(
    dataset_id="scans",
    run="run",
    epsilon=2.0,
    delta=1e-3,
    records=40,
    expected_batch_size=8,
    steps=4,
    reserve_steps=2,
    max_grad_norm=1e-3,
    draws_per_example=1,
    noise_multiplier=3.0,
)
SHORT = replace(PLAN, steps=2, reserve_steps=4)
EVERYONE = replace(SHORT, expected_batch_size=40)
"""q = 1: every record is in every batch."""


SHAPE = torch.Size((2, 4, 4))
"""Latents of the tiny backbone."""
DRAWN = tuple(field.name for field in fields(Draws))


def config_of(directory: Path, backbone: Path, images: Path, **sections: Any) -> RunConfig:
    privacy = {"dataset_id": "scans", "records": 40, "epsilon": 1.0, "delta": 1e-3, "steps": 4, "reserve_steps": 2}
    privacy |= {"expected_batch_size": 8, "cap": (2.0, 2e-3), "ledger": directory / "runs" / "ledgers" / "scans.jsonl"}
    return RunConfig.model_validate(
        {
            "name": sections.pop("name", "run"),
            "data": {"path": images, "image_size": 16, "labels": ["dark", "light"]} | sections.pop("data", {}),
            "backbone": str(backbone),
            "trainable": sections.pop("trainable", "condition"),
            "privacy": privacy | sections.pop("privacy", {}),
            "runtime": {"output": directory / "runs"} | sections.pop("runtime", {}),
        }
    )


@pytest.fixture
def config(tmp_path: Path, tiny_backbone: Path, image_folder: Path) -> RunConfig:
    return config_of(tmp_path, tiny_backbone, image_folder)


def made_up(count: int, seed: int = 0) -> PrivateLatents:
    """Latents of records that never were images."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 2, 4, 4, generator=generator)
    posterior = Posterior(mean, torch.full_like(mean, -3.0))
    return PrivateLatents(posterior, torch.arange(count) % 2, torch.ones(count, dtype=torch.bool))


def joined(first: PrivateLatents, second: PrivateLatents) -> PrivateLatents:
    posterior = Posterior(
        torch.cat([first.posterior.mean, second.posterior.mean]),
        torch.cat([first.posterior.log_variance, second.posterior.log_variance]),
    )
    return PrivateLatents(posterior, torch.cat([first.labels, second.labels]), torch.cat([first.usable, second.usable]))


class Bench:
    """Algorithm 1 on made-up latents, with a ledger and a checkpoint in a folder of its own."""

    def __init__(self, directory: Path, backbone: Path, plan: PrivacyPlan = PLAN, **sections: Any) -> None:
        self.plan = plan
        self.config = config_of(directory, backbone, directory / "images", **sections)
        self.run = Run(self.config)
        self.run.create()
        self.loaded = load_backbone(str(backbone))
        self.tuner = Tuner(self.loaded, self.config, plan)

    def steps(self, latents: PrivateLatents, entropy: Entropy | None = None) -> Iterator[FinetuneStep]:
        with open_ledger(self.run.ledger, "scans", (1000.0, 0.5)) as ledger:
            resume(self.tuner, self.run, self.plan, ledger)
            ledger.register(self.plan)
            source = entropy or SystemEntropy()
            yield from algorithm_1(self.tuner, self.loaded.scheduler, latents, self.plan, ledger, self.run, source)


BenchMaker = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, tiny_backbone: Path) -> BenchMaker:
    made = 0

    def make(plan: PrivacyPlan = PLAN, *, directory: Path | None = None, **sections: Any) -> Bench:
        nonlocal made
        made += 1
        return Bench(directory or tmp_path / f"bench-{made}", tiny_backbone, plan, **sections)

    return make


class Tape:
    """Stands in for the noise: keeps every clipped sum, and on replay gives the outputs of an earlier tape."""

    def __init__(self, earlier: "Tape | None" = None) -> None:
        self.sums: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._earlier = earlier

    def __call__(self, total: Tensor, standard_deviation: float, entropy: Entropy) -> Tensor:
        output = add_gaussian(total, standard_deviation, entropy)  # also on replay: the stream goes on alike
        if self._earlier is not None:
            output = self._earlier.outputs[len(self.outputs)]
        self.sums.append(total.clone())
        self.outputs.append(output)
        return output

    def per_step(self, parameters: int) -> Tensor:
        """(steps, entries) float64."""
        starts = range(0, len(self.sums), parameters)
        return torch.stack([torch.cat([t.flatten() for t in self.sums[s : s + parameters]]) for s in starts]).double()


def taped(monkeypatch: pytest.MonkeyPatch, bench: Bench, latents: PrivateLatents, earlier: Tape | None = None) -> Tape:
    """Run all steps on one seeded stream, every record with draws of its own that depend on its index alone."""
    tape = Tape(earlier)
    with monkeypatch.context() as patch:
        patch.setattr("dpldm.privacy.mechanism.add_gaussian", tape)
        patch.setattr(lines, "example_losses", losses_by_record)
        patch.setattr(lines, "fresh_draws", lambda *given, **more: fresh_draws(*given[:-1], SystemEntropy(), **more))
        list(bench.steps(latents, SeededEntropy(7)))
    return tape


def losses_by_record(
    network: Any, scheduler: Any, latents: PrivateLatents, rows: Tensor, draws: Draws, **settings: Any
) -> Tensor:
    """`example_losses` with the draws of record i fixed by i: what the proof holds fixed for neighbours."""
    draws = draws_by_record(rows, len(draws.timestep) // len(rows))
    return example_losses(network, scheduler, latents, rows, draws, **settings)


def draws_by_record(rows: Tensor, each: int) -> Draws:
    own = [fresh_draws(1, each, SHAPE, Timesteps(1000), 0.1, SeededEntropy(row)) for row in rows.tolist()]
    return Draws(**{name: torch.cat([getattr(draws, name) for draws in own]) for name in DRAWN})


# --- what is charged and shown ---------------------------------------------------------------------------------


def test_every_update_is_one_attempt_and_one_ledger_line(config: RunConfig) -> None:
    plan = plan_of(config)
    steps = list(finetune(config))
    attempts = [entry for entry in read_ledger(Run(config).ledger) if entry["event"] == "attempt"]
    assert [(s.number, s.attempts, s.steps, s.ended_early) for s in steps] == [(n, n, 4, False) for n in (1, 2, 3, 4)]
    assert [entry["number"] for entry in attempts] == [1, 2, 3, 4]
    assert {entry["plan"] for entry in attempts} == {plan.digest()}
    spent = [step.epsilon_spent for step in steps]
    assert all(one < other for one, other in pairwise(spent)), "every update is seen to cost something"
    for number, value in enumerate(spent, 1):
        assert plan.epsilon_after(number) <= value <= plan.epsilon_after(number) + 0.02
    assert spent[3] < plan.epsilon_after(6) <= 1.0
    assert list(finetune(config)) == [], "a finished run draws nothing more"
    assert len(read_ledger(Run(config).ledger)) == 6


def test_empty_batches_step_and_are_charged(bench: BenchMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """q = 1e-6: no record is ever drawn, and nothing but noise N(0, (sigma / L)^2) moves the weights."""
    made = bench(replace(PLAN, records=10**6, expected_batch_size=1, delta=1e-7), trainable="attention")
    before = {name: p.detach().clone() for name, p in made.tuner.trainable.items()}
    gradients: list[Tensor] = []
    update = made.tuner.update

    def watched(gradient: dict[str, Tensor]) -> None:
        gradients.append(torch.cat([g.flatten() for g in gradient.values()]).double())
        update(gradient)

    def never(*_: Any) -> Tensor:
        raise AssertionError("a pass over no record")

    monkeypatch.setattr(made.tuner, "update", watched)
    monkeypatch.setattr(lines, "example_losses", never)
    steps = list(made.steps(made_up(40)))
    assert [(step.number, step.attempts) for step in steps] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert sum(entry["event"] == "attempt" for entry in read_ledger(made.run.ledger)) == 4
    for gradient in gradients:
        assert float(gradient.std()) == pytest.approx(3.0, rel=5 / np.sqrt(2 * len(gradient)))
    assert all(not torch.equal(p, before[name]) for name, p in made.tuner.trainable.items())


def test_empty_batches_need_no_patch(bench: BenchMaker) -> None:
    made = bench()
    assert [step.number for step in made.steps(made_up(0))] == [1, 2, 3, 4]


def test_public_steps_hold_no_private_field(bench: BenchMaker) -> None:
    """What is shown is a function of plan and attempts: the same whatever the records are, and however many."""
    assert {field.name for field in fields(FinetuneStep)} == {
        "number",
        "steps",
        "attempts",
        "epsilon_spent",
        "ended_early",
    }
    broken = made_up(41, seed=5)
    broken.posterior.mean[::3] = float("nan")
    broken.usable[::2] = False
    shown = [list(bench().steps(latents)) for latents in (made_up(40), made_up(41), made_up(0), broken)]
    assert len(shown[0]) == 4
    assert all(steps == shown[0] for steps in shown)


def test_run_ends_early_when_the_reserve_is_used_up(config: RunConfig) -> None:
    plan, run = plan_of(config), Run(config)
    next(started := finetune(config))
    started.close()
    with open_ledger(run.ledger, "scans", (2.0, 2e-3)) as ledger:
        for _ in range(3):  # lost to crashes: one more than the reserve
            ledger.charge(plan)
    steps = list(finetune(config))
    assert [(s.number, s.attempts, s.ended_early) for s in steps] == [
        (2, 5, False),
        (3, 6, False),
        (3, 6, True),
    ]
    assert steps[-1].epsilon_spent == plan.epsilon_after(6) <= 1.0
    assert [(s.number, s.attempts, s.ended_early) for s in finetune(config)] == [(3, 6, True)]
    assert sum(entry["event"] == "attempt" for entry in read_ledger(run.ledger)) == 6


# --- what a step is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("physical", [1, 3, 128])
def test_parts_make_up_the_draw_and_no_record_comes_twice(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, physical: int
) -> None:
    made = bench(runtime={"physical_batch_size": physical})
    events: list[tuple[str, list[int]]] = []
    draw = PrivateGradient.draw

    def drawn(self: PrivateGradient) -> Tensor:
        batch = draw(self)
        events.append(("draw", batch.tolist()))
        return batch

    def passed(network: Any, scheduler: Any, latents: Any, rows: Tensor, draws: Draws, **settings: Any) -> Tensor:
        events.append(("pass", rows.tolist()))
        return example_losses(network, scheduler, latents, rows, draws)

    monkeypatch.setattr(PrivateGradient, "draw", drawn)
    monkeypatch.setattr(lines, "example_losses", passed)
    list(made.steps(made_up(40), SeededEntropy(1)))
    draws = [k for k, (kind, _) in enumerate(events) if kind == "draw"]
    assert len(draws) == 4
    for start, end in zip(draws, [*draws[1:], len(events)], strict=True):
        parts = [rows for _, rows in events[start + 1 : end]]
        used = [row for part in parts for row in part]
        assert used == events[start][1]
        assert len(set(used)) == len(used) > 0
        assert all(0 < len(part) <= physical for part in parts)
        assert len(parts) == -(-len(used) // physical)


def test_sums_do_not_depend_on_the_physical_batch_size(bench: BenchMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later runs replay the first one's outputs, so that all see the same weights; what is left is rounding."""
    tapes: list[Tape] = []
    for physical in (128, 7, 2):
        made = bench(SHORT, trainable="attention", runtime={"physical_batch_size": physical})
        tapes.append(taped(monkeypatch, made, made_up(40), earlier=tapes[0] if tapes else None))
    first, *others = [tape.per_step(len(made.tuner.trainable)) / SHORT.max_grad_norm for tape in tapes]
    assert float(first.norm(dim=1).min()) > 1, "several clipped gradients of norm 1"
    for other in others:
        assert float((other - first).norm(dim=1).max()) < 1e-4


@pytest.mark.parametrize(
    ("record", "draws"), [("ordinary", 1), ("ordinary", 3), ("huge", 1), ("huge", 3), ("zero", 1), ("twin", 1)]
)
def test_one_record_more_changes_no_sum_by_more_than_C(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, record: str, draws: int
) -> None:
    """Replay of the run on D with D + one record: same coins, same outputs, at every step a sum at most C away."""
    few, more = made_up(10), made_up(1, seed=9)
    if record == "twin":
        more = PrivateLatents(Posterior(few.posterior.mean[:1], few.posterior.log_variance[:1]), *few_of(few))
    more.posterior.mean[:] *= {"huge": 1e4, "zero": 0.0}.get(record, 1.0)
    plan = replace(EVERYONE, draws_per_example=draws)
    original, neighbour = bench(plan, trainable="attention"), bench(plan, trainable="attention")
    tape = taped(monkeypatch, original, few)
    replay = taped(monkeypatch, neighbour, joined(few, more), earlier=tape)
    parameters = len(original.tuner.trainable)
    distance = (replay.per_step(parameters) - tape.per_step(parameters)).norm(dim=1) / plan.max_grad_norm
    assert len(distance) == 2
    assert float(distance.max()) <= 1 + 1e-4
    assert float(distance.min()) > 0.9, "the record is in every batch and its gradient exceeds C"
    assert float(tape.per_step(parameters).norm(dim=1).max()) > 2 * plan.max_grad_norm


def grouped(latents: PrivateLatents, *sizes: int) -> PrivateLatents:
    """The same records in groups of these sizes, one after the other."""
    members, start = torch.full((len(sizes), max(sizes)), -1), 0
    for row, size in enumerate(sizes):
        members[row, :size] = torch.arange(start, start + size)
        start += size
    return replace(latents, members=members)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("draws", [1, 2])
def test_one_group_more_changes_no_sum_by_more_than_C(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, size: int, draws: int
) -> None:
    """As for records: a whole group is one clipped gradient, however the batch is cut."""
    plan = replace(EVERYONE, unit="group", images_per_unit=5, draws_per_example=draws)
    records = made_up(8 + size)
    without = grouped(records, 1, 5, 2)
    within = grouped(records, 1, 5, 2, size)
    original, neighbour = (
        bench(plan, trainable="attention", runtime={"physical_batch_size": physical}) for physical in (128, 6)
    )
    tape = taped(monkeypatch, original, without)
    replay = taped(monkeypatch, neighbour, within, earlier=tape)
    parameters = len(original.tuner.trainable)
    distance = (replay.per_step(parameters) - tape.per_step(parameters)).norm(dim=1) / plan.max_grad_norm
    assert float(distance.max()) <= 1 + 1e-4
    assert float(distance.min()) > 0.9, "the group is in every batch and its gradient exceeds C"


def test_a_null_group_does_not_touch_the_clipping_of_smaller_ones(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve single images beside a group of nothing but unreadable ones: filling them up to its size would show."""
    plan = replace(EVERYONE, unit="group", images_per_unit=5)
    records = made_up(12 + 5)
    records.usable[12:] = False
    singles = [1] * 12
    original, neighbour = (bench(plan, trainable="attention") for _ in range(2))
    tape = taped(monkeypatch, original, grouped(records, *singles))
    replay = taped(monkeypatch, neighbour, grouped(records, *singles, 5), earlier=tape)
    parameters = len(original.tuner.trainable)
    distance = (replay.per_step(parameters) - tape.per_step(parameters)).norm(dim=1) / plan.max_grad_norm
    assert float(distance.max()) < 2e-6


def test_a_groups_gradient_is_the_mean_over_its_images(bench: BenchMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of three against the mean of its records' own gradients, clipped once; null images count as zero."""
    plan = replace(EVERYONE, unit="group", images_per_unit=3, max_grad_norm=1e3)  # nothing is cut at this C
    single = replace(EVERYONE, max_grad_norm=1e3)
    records = made_up(3)
    records.usable[1] = False
    group = bench(plan)
    tape = taped(monkeypatch, group, grouped(records, 3))
    parameters = len(group.tuner.trainable)
    alone = torch.zeros_like(tape.per_step(parameters)[0])
    for row in (0, 2):
        one = bench(single)
        kept = replace(records, members=torch.tensor([[row]]))
        alone += taped(monkeypatch, one, kept).per_step(parameters)[0]
    assert torch.allclose(tape.per_step(parameters)[0], alone / 3, rtol=1e-4, atol=1e-7)


def few_of(latents: PrivateLatents) -> tuple[Tensor, Tensor]:
    return latents.labels[:1], latents.usable[:1]


@pytest.mark.parametrize("flaw", ["nan", "inf", "overflow", "null"])
def test_a_record_without_a_gradient_contributes_exactly_zero(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    bad = made_up(1, seed=9)
    if flaw == "null":
        bad.usable[:] = False
    else:
        bad.posterior.mean[0, 0, 0, 0] = {"nan": float("nan"), "inf": float("inf"), "overflow": 1e30}[flaw]
    alone = bench(EVERYONE)
    sums = taped(monkeypatch, alone, bad).per_step(len(alone.tuner.trainable))
    assert sums.shape[0] == 2
    assert not bool(sums.any())
    good = made_up(10)
    without, together = bench(EVERYONE), bench(EVERYONE)
    tape = taped(monkeypatch, without, good)
    replay = taped(monkeypatch, together, joined(good, bad), earlier=tape)
    expected, found = (t.per_step(len(without.tuner.trainable)) for t in (tape, replay))
    assert float(expected.norm(dim=1).min()) > 1e-3
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("flaw", ["nan", "null"])
def test_a_flawed_record_also_changes_nothing_through_the_real_losses(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    """Whatever a null record holds, even NaN, the run is the same to the last bit."""
    runs = []
    for value in (0.25, float("nan")) if flaw == "null" else (float("nan"), float("inf")):
        latents, made, tape = made_up(10), bench(EVERYONE), Tape()
        latents.posterior.mean[4] = value
        latents.usable[4] = flaw != "null"
        monkeypatch.setattr("dpldm.privacy.mechanism.add_gaussian", tape)
        list(made.steps(latents, SeededEntropy(3)))
        runs.append(tape.per_step(len(made.tuner.trainable)))
    assert torch.equal(*runs)
    assert bool(torch.isfinite(runs[0]).all())
    assert float(runs[0].norm()) > 0


@pytest.mark.parametrize(("draws", "dropout"), [(1, 0.0), (4, 0.0), (4, 0.5), (3, 1.0)])
def test_an_examples_loss_is_the_mean_of_its_own_draws(
    bench: BenchMaker, monkeypatch: pytest.MonkeyPatch, draws: int, dropout: float
) -> None:
    """Seen through a loss that tells record and class of every row: record in units, class in thousandths."""
    seen: list[tuple[Tensor, Tensor]] = []

    def telling(*given: Tensor, **settings: Any) -> Tensor:
        _, _, samples, context, steps, noise = given
        seen.append((steps, noise))
        return samples.flatten(1).mean(1).round() + context[:, 0].argmax(1) / 1000

    monkeypatch.setattr(losses_of_records, "denoising_losses", telling)
    made, latents = bench(), made_up(200)
    latents.posterior.mean[:] = torch.arange(200.0)[:, None, None, None]
    latents.labels[7] = -1
    rows = torch.arange(3, 200)
    fresh = fresh_draws(len(rows), draws, SHAPE, Timesteps(1000), dropout, SystemEntropy())
    losses = example_losses(made.tuner.network, made.loaded.scheduler, latents, rows, fresh).double()
    assert losses.shape == rows.shape
    assert losses.round().tolist() == rows.tolist()
    classes = ((losses - losses.round()) * 1000).round().long()  # a mixture over draws would not be a class
    assert torch.allclose(losses - losses.round(), classes.double() / 1000, atol=2e-5)
    dropped = classes == 2
    assert bool(dropped[4]), "an unlabelled record has the null class"
    assert torch.equal(classes[~dropped], latents.labels[rows][~dropped])
    share = (int(dropped.sum()) - 1) / 196
    assert share == dropout if dropout in (0.0, 1.0) else abs(share - dropout) < 5 * 0.5 / np.sqrt(196)
    timesteps, noise = seen[0]
    assert len(timesteps) == 197 * draws
    assert int(timesteps.min()) < 100
    assert int(timesteps.max()) >= 900
    assert len(noise.flatten(1)[:, 0].unique()) > 0.99 * len(noise), "every draw has noise of its own"


class CountedEntropy(SystemEntropy):
    """System entropy that counts what was taken."""

    taken = 0

    def bytes(self, count: int) -> bytes:
        self.taken += count
        return super().bytes(count)


def test_every_draw_is_entropy_of_its_own() -> None:
    """No generator stands between the operating system and a draw: a seed would be shared by all records of a pass,
    so that one record more would change the draws of the others."""
    source, before = CountedEntropy(), torch.get_rng_state()
    draws = fresh_draws(50, 3, SHAPE, Timesteps(1000), 0.25, source)
    values = 2 * 150 * SHAPE.numel() + 150 + 50
    assert source.taken == 8 * values, "64 bits for every Gaussian, timestep and coin"
    assert torch.equal(torch.get_rng_state(), before)
    assert draws.latent.shape == draws.noise.shape == (150, *SHAPE)
    assert draws.latent.dtype == draws.noise.dtype == torch.float32
    assert (draws.timestep.shape, draws.null.shape) == ((150,), (50,))


def test_draws_have_the_distributions_they_are_named_for() -> None:
    draws = fresh_draws(20_000, 2, torch.Size((1, 1, 2)), Timesteps(10), 0.25, SystemEntropy())
    for values in (draws.latent, draws.noise):
        flat = values.flatten().double()
        assert abs(float(flat.mean())) < 5 / np.sqrt(len(flat))
        assert float(flat.std()) == pytest.approx(1.0, rel=5 / np.sqrt(2 * len(flat)))
    counts = torch.bincount(draws.timestep, minlength=10).double()
    assert len(counts) == 10
    assert float(((counts - 4000).square() / 4000).sum()) < 40, "chi-square with 9 degrees of freedom"
    assert float(draws.null.double().mean()) == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 20_000))
    pairs = torch.stack([draws.latent.flatten(), draws.noise.flatten()]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / np.sqrt(pairs.shape[1])
    assert not draws.mirrored.any(), "only if it is asked for"


def test_half_of_the_draws_show_the_image_mirrored(bench: BenchMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw by draw, by entropy of its own; what a network sees is the image or its mirror image, and nothing else."""
    seen: list[Tensor] = []

    def telling(*given: Tensor, **settings: Any) -> Tensor:
        seen.append(given[2])
        return given[2].flatten(1).mean(1)

    monkeypatch.setattr(losses_of_records, "denoising_losses", telling)
    made, latents, source = bench(), made_up(60), CountedEntropy()
    latents.posterior.log_variance.fill_(-torch.inf)  # as of pixels
    draws = fresh_draws(60, 8, SHAPE, Timesteps(1000), 0.0, source, mirror=True)
    assert source.taken == 8 * (2 * 480 * SHAPE.numel() + 480 + 480 + 60)
    assert abs(float(draws.mirrored.double().mean()) - 0.5) < 5 * 0.5 / np.sqrt(480)
    assert len({tuple(each.tolist()) for each in draws.mirrored.view(60, 8)}) > 30, "not one coin for all of an image"
    example_losses(made.tuner.network, made.loaded.scheduler, latents, torch.arange(60), draws)
    plain = latents.posterior.mean.repeat_interleave(8, 0)
    assert torch.equal(seen[0][~draws.mirrored], plain[~draws.mirrored])
    assert torch.equal(seen[0][draws.mirrored], plain.flip(-1)[draws.mirrored])


def test_only_pixels_may_be_mirrored(config: RunConfig) -> None:
    mirrored = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"mirror": True})})
    with pytest.raises(UserError, match=r"^optimizer\.mirror is for backbones of pixels"):
        next(finetune(mirrored))
    assert not Run(mirrored).directory.exists()


# --- what moves ---------------------------------------------------------------------------------------------------


def expected_to_move(name: str, preset: str) -> bool:
    if ".attn2.to_q." in name or ".attn2.to_k." in name or (".transformer_blocks." in name and ".norm2." in name):
        return False
    embedder = name.startswith("encoder_hid_proj.")
    return {"condition": embedder, "attention": embedder or ".attentions." in name, "all": True}[preset]


@pytest.mark.parametrize("preset", ["condition", "attention", "all"])
def test_only_what_is_trained_moves(bench: BenchMaker, preset: str) -> None:
    made = bench(SHORT, trainable=preset)
    network = made.tuner.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    list(made.steps(made_up(40)))
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if expected_to_move(name, preset)} == set(made.tuner.trainable)
    frozen = [name for name in before if "attn2.to_q" in name or "attn2.to_k" in name or "blocks.0.norm2" in name]
    assert len(frozen) >= 4, "the names that are frozen by construction exist"
    assert not moved & set(frozen)


def test_what_is_frozen_by_construction_has_no_gradient(bench: BenchMaker) -> None:
    """One context token: queries, keys and their norm cannot matter. Checked with ordinary autograd."""
    made, latents = bench(), made_up(6)
    network = made.tuner.network
    parameters = dict(network.requires_grad_(True).named_parameters())
    rows = torch.arange(6)
    losses = example_losses(network, made.loaded.scheduler, latents, rows, draws_by_record(rows, 1))
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    trained = choose_trainable(network, "all")
    idle = {name: g for name, g in zip(parameters, gradients, strict=True) if name not in trained}
    busy = {name: g for name, g in zip(parameters, gradients, strict=True) if name in trained}
    assert idle
    assert max(float(g.abs().max()) for g in idle.values()) < 1e-6 * max(float(g.abs().max()) for g in busy.values())


def test_update_is_adam_with_warm_up_and_then_the_average(bench: BenchMaker) -> None:
    """Against Adam (Kingma and Ba 2015, algorithm 1) and the average written out in float64."""
    tuner = bench().tuner
    settings = tuner.settings
    name, parameter = next(iter(tuner.trainable.items()))
    weights = average = parameter.detach().double().clone()
    first = second = torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 9):
        gradient = {n: torch.randn(p.shape, generator=generator) for n, p in tuner.trainable.items()}
        tuner.update(gradient)
        g = gradient[name].double()
        first = settings.adam_beta1 * first + (1 - settings.adam_beta1) * g
        second = settings.adam_beta2 * second + (1 - settings.adam_beta2) * g.square()
        rate = settings.learning_rate * min(1.0, t / (settings.warmup_steps + 1))
        corrected = (second / (1 - settings.adam_beta2**t)).sqrt()
        weights = weights - rate * first / (1 - settings.adam_beta1**t) / (corrected + 1e-8)
        decay = min(settings.ema_decay, t / (9 + t)) if t > 1 else 0.0  # the average warms up as well
        average = decay * average + (1 - decay) * weights
        assert torch.allclose(parameter.double(), weights, atol=1e-6)
        assert torch.allclose(tuner.average.shadow_params[0].double(), average, atol=1e-5)
    assert tuner.updates == 8
    assert parameter.grad is None


# --- resuming -----------------------------------------------------------------------------------------------------


def state(tuner: Tuner) -> list[Tensor]:
    moments = optimizer_tensors(tuner.optimizer, list(tuner.trainable))
    return [*tuner.trainable.values(), *tuner.average.shadow_params, *(moments[key] for key in sorted(moments))]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_run(bench: BenchMaker, tmp_path: Path, stop: int) -> None:
    """Bit by bit, if the stream of randomness went on: weights, moments, average and learning rate come back."""
    latents, whole, entropy = made_up(40), bench(trainable="attention"), SeededEntropy(11)
    list(whole.steps(latents, entropy))
    entropy, directory = SeededEntropy(11), tmp_path / "interrupted"
    before = bench(directory=directory, trainable="attention")
    interrupted = before.steps(latents, entropy)
    for _ in range(stop):
        next(interrupted)
    interrupted.close()
    after = bench(directory=directory, trainable="attention")
    numbers = [step.number for step in after.steps(latents, entropy)]
    assert numbers == list(range(stop + 1, 5))
    assert after.tuner.updates == 4
    assert len(state(after.tuner)) == 5 * len(after.tuner.trainable)
    assert all(torch.equal(a, b) for a, b in zip(state(whole.tuner), state(after.tuner), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(state(whole.tuner), state(before.tuner), strict=True))


def test_finetune_resumes_with_fresh_randomness(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()
    monkeypatch.setattr("dpldm.privacy.mechanism.add_gaussian", tape)
    run = finetune(config)
    assert [next(run).number, next(run).number] == [1, 2]
    run.close()
    assert [(step.number, step.attempts) for step in finetune(config)] == [(3, 3), (4, 4)]
    noises = [output.double() - total.double() for output, total in zip(tape.outputs, tape.sums, strict=True)]
    firsts = [tuple(noise.flatten()[:4].tolist()) for noise in noises]
    assert len(firsts) == 8, "four updates of two parameters"
    assert len(set(firsts)) == 8


def test_another_state_of_the_data_is_noted_and_what_was_spent_stays_spent(config: RunConfig) -> None:
    privacy = config.privacy.model_copy(update={"cap": (10.0, 1e-2)})
    runs = [config.model_copy(update={"name": name, "privacy": privacy}) for name in ("first", "same", "more")]
    for run in runs[:2]:
        list(finetune(run))
    Image.new("L", (16, 16)).save(config.data.path / "dark" / "another.png")
    list(finetune(runs[2]))
    ledger, digests = Run(config).ledger, [plan_of(run).digest() for run in runs]
    assert plans_after_a_change(ledger, digests) == {digests[2]}
    plans = [line for line in read_ledger(ledger) if line["event"] == "plan"]
    assert [line["plan"] for line in plans] == digests
    assert sum(line["constants"]["epsilon"] for line in plans) == 3 * config.privacy.epsilon


def test_the_ledger_is_the_same_whatever_the_images_are(config: RunConfig, tmp_path: Path) -> None:
    """Its head goes out: two data sets, one line more or less in neither, every hash equal."""
    ledgers = []
    for number in (1, 2):
        privacy = config.privacy.model_copy(update={"ledger": tmp_path / f"{number}.jsonl"})
        output = config.runtime.model_copy(update={"output": tmp_path / f"runs-{number}"})
        list(finetune(config.model_copy(update={"privacy": privacy, "runtime": output})))
        ledgers.append((tmp_path / f"{number}.jsonl").read_bytes())
        Image.new("L", (16, 16)).save(config.data.path / "dark" / "another.png")
    assert ledgers[0] == ledgers[1]


def test_a_lost_checkpoint_starts_again_and_gives_nothing_back(config: RunConfig) -> None:
    run = finetune(config)
    next(run), next(run)
    run.close()
    Run(config).checkpoint.unlink()
    assert [(s.number, s.attempts, s.ended_early) for s in finetune(config)] == [
        *((n, n + 2, False) for n in (1, 2, 3, 4)),
    ]


def test_a_run_whose_folder_is_gone_is_not_started_anew(config: RunConfig, tmp_path: Path) -> None:
    """With the attempts that are left it could never end; the folder is probably somewhere else."""
    assert len(list(finetune(config))) == 4
    elsewhere = config.model_copy(update={"runtime": RuntimeConfig(output=tmp_path / "elsewhere")})
    with pytest.raises(UserError, match=r"holds 4 attempts of the run 'run'.*put the run's folder back"):
        list(finetune(elsewhere))
    assert sum(entry["event"] == "attempt" for entry in read_ledger(Run(config).ledger)) == 4


def cut_the_ledger(run: Run) -> None:
    run.ledger.write_bytes(b"".join(run.ledger.read_bytes().splitlines(keepends=True)[:-1]))


def fork_the_ledger(run: Run) -> None:
    cut_the_ledger(run)
    with open_ledger(run.ledger, "scans", None) as ledger:
        ledger.register(replace(plan_of(run.config), run="elsewhere"))  # a line of another run in its place


def remove_the_ledger(run: Run) -> None:
    run.ledger.unlink()


@pytest.mark.parametrize("harm", [cut_the_ledger, fork_the_ledger, remove_the_ledger])
def test_a_ledger_that_forgot_attempts_is_refused(config: RunConfig, harm: Callable[[Run], None]) -> None:
    run = finetune(config)
    next(run), next(run)
    run.close()
    harm(Run(config))
    kept = Run(config).checkpoint.read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match="restore the ledger from a copy"):
            list(finetune(config))
    charged = [entry for entry in read_ledger(Run(config).ledger) if entry["event"] == "attempt"]
    assert len(charged) <= 1, "a refusal charges nothing"
    assert Run(config).checkpoint.read_bytes() == kept


def test_a_ledger_written_anew_with_as_many_attempts_is_refused(config: RunConfig) -> None:
    """Long enough, whole, and of this plan: only its hashes tell that lines of other plans came or went."""
    run = finetune(config)
    next(run), next(run)
    run.close()
    plan, path = plan_of(config), Run(config).ledger
    path.unlink()
    with open_ledger(path, "scans", config.privacy.cap) as ledger:
        ledger.register(replace(plan, run="another", epsilon=0.5))
        ledger.register(plan)
        for _ in range(plan.steps):
            ledger.charge(plan)
    with pytest.raises(UserError, match="restore the ledger from a copy"):
        list(finetune(config))


def test_a_changed_byte_in_the_ledger_is_refused(config: RunConfig) -> None:
    next(run := finetune(config))
    run.close()
    path = Run(config).ledger
    path.write_bytes(path.read_bytes().replace(b'"number": 1', b'"number": 9'))
    with pytest.raises(UserError, match="Restore it from a copy"):
        list(finetune(config))


def test_a_refused_choice_of_parameters_leaves_no_ledger(
    tmp_path: Path, tiny_backbone: Path, image_folder: Path
) -> None:
    """A ledger's cap is fixed when it is made: a config that cannot run must not fix it."""
    config = config_of(tmp_path, tiny_backbone, image_folder, trainable="no such parameter")
    with pytest.raises(UserError, match="matches no parameter"):
        list(finetune(config))
    assert not Run(config).ledger.exists()


@pytest.mark.parametrize("harm", ["examples meet", "a layer that no tap knows"])
def test_a_network_that_cannot_be_clipped_is_refused_before_the_ledger(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    ordinary = Tuner.__init__

    def changed(tuner: Tuner, *settings: Any) -> None:
        ordinary(tuner, *settings)
        embedder = tuner.network.encoder_hid_proj
        if harm == "examples meet":
            embedder.register_forward_hook(lambda module, inputs, output: output - output.mean(0))
        else:
            embedder.__class__ = type("Unknown", (torch.nn.Linear,), {"forward": lambda self, x: x @ self.weight.T})

    monkeypatch.setattr(Tuner, "__init__", changed)
    with pytest.raises(UserError, match="cannot be tuned privately"):
        next(finetune(config))
    assert not Run(config).ledger.exists()


def test_a_ledger_in_use_is_refused(config: RunConfig) -> None:
    next(run := finetune(config))
    with pytest.raises(UserError, match="wait"):
        list(finetune(config))
    run.close()
    assert len(list(finetune(config))) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"max_grad_norm": 0.5}},
        {"privacy": {"draws_per_example": 2}},
        {"data": {"labels": ["dark", "light", "other"]}},
        {"trainable": "attention"},
    ],
)
def test_a_run_with_other_settings_is_refused(
    config: RunConfig, tmp_path: Path, tiny_backbone: Path, image_folder: Path, change: dict[str, Any]
) -> None:
    next(run := finetune(config))
    run.close()
    lines = len(read_ledger(Run(config).ledger))
    with pytest.raises(UserError, match="new name"):
        list(finetune(config_of(tmp_path, tiny_backbone, image_folder, **change)))
    assert len(read_ledger(Run(config).ledger)) == lines


def test_the_checkpoint_of_another_plan_is_refused(bench: BenchMaker, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    list(bench(directory=directory).steps(made_up(40)))
    for other in (replace(PLAN, noise_multiplier=2.9), replace(PLAN, run="other"), replace(PLAN, steps=5)):
        foreign = bench(other, directory=directory)
        untouched = [tensor.clone() for tensor in state(foreign.tuner)]
        with pytest.raises(UserError, match=r"another privacy plan.*new name"):
            list(foreign.steps(made_up(40)))
        assert all(torch.equal(a, b) for a, b in zip(untouched, state(foreign.tuner), strict=True))


@pytest.fixture
def own_backbone(tmp_path: Path, tiny_backbone: Path) -> Path:
    """A copy of the tiny backbone that the test may change."""
    return shutil.copytree(tiny_backbone, tmp_path / "own-backbone")


def test_a_backbone_made_again_at_the_same_place_is_refused(
    tmp_path: Path, own_backbone: Path, image_folder: Path
) -> None:
    config = config_of(tmp_path, own_backbone, image_folder)
    list(finetune(config))
    assert finished_run(config).updates == config.privacy.steps
    loaded = load_backbone(str(own_backbone))
    with torch.no_grad():
        loaded.autoencoder.quant_conv.bias += 1
    replace(loaded, source=None).save(own_backbone)  # not a copy of what lies there
    for later in (lambda: list(finetune(config)), lambda: finished_run(config)):
        with pytest.raises(UserError, match="not those that the run 'run' was started with"):
            later()


def test_a_damaged_checkpoint_is_refused(config: RunConfig) -> None:
    next(run := finetune(config))
    run.close()
    path = Run(config).checkpoint
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="restore it from a copy"):
        list(finetune(config))


# --- refusals before anything is charged ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"channels": 3}}, r"data\.channels"),
        ({"data": {"image_size": 32}}, r"data\.image_size"),
        ({"data": {"image_size": 12}}, r"takes 13 to 16"),
        ({"privacy": {"records": None}}, r"privacy\.records"),
        ({"privacy": {"delta": 0.5, "cap": None}}, r"privacy\.delta"),
        ({"data": {"labels": ["dark"]}}, r"data\.labels"),
        ({"trainable": "nothing-of-the-kind"}, r"trainable"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_charge(
    tmp_path: Path, tiny_backbone: Path, image_folder: Path, change: dict[str, Any], named: str
) -> None:
    config = config_of(tmp_path, tiny_backbone, image_folder, **change)
    with pytest.raises(UserError, match=named):
        list(finetune(config))
    ledger = Run(config).ledger
    assert not ledger.exists() or [entry["event"] for entry in read_ledger(ledger)] == ["created"]


def test_another_data_sets_ledger_is_refused(
    config: RunConfig, tmp_path: Path, tiny_backbone: Path, image_folder: Path
) -> None:
    next(run := finetune(config))
    run.close()
    other = {"dataset_id": "faces", "ledger": Run(config).ledger}
    with pytest.raises(UserError, match="belongs to 'scans'"):
        list(finetune(config_of(tmp_path, tiny_backbone, image_folder, name="second", privacy=other)))


# --- the private folder -----------------------------------------------------------------------------------------------


def test_private_files_are_the_owners_alone(config: RunConfig, image_folder: Path) -> None:
    """Also under the most permissive umask, and with a record that cannot be read."""
    (image_folder / "dark" / "broken.png").write_bytes(b"no image")
    before = os.umask(0)
    try:
        list(finetune(config))
    finally:
        os.umask(before)
    run = Run(config)
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    found = {path.name for path in run.private.iterdir()}
    assert found == {"finetune.safetensors", "latents.safetensors", "unreadable.jsonl"}
    for path in [*run.private.iterdir(), run.ledger, Path(f"{run.ledger}.lock")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert {path.name for path in run.directory.iterdir()} == {"config.resolved.yaml", "private"}


def test_images_are_encoded_once_and_read_never_again(config: RunConfig, image_folder: Path) -> None:
    next(run := finetune(config))
    run.close()
    for path in image_folder.rglob("*.png"):
        Image.new("L", (3, 3)).save(path)
    assert len(list(finetune(config))) == 3
