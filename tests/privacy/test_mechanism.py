"""Charge, draw, clip, noise, divide: the order, the scale, and that there is no way around it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpldm.privacy import sampling
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy, SeededEntropy, SystemEntropy
from dpldm.privacy.grid import add_gaussian_on_grid
from dpldm.privacy.ledger import BudgetExhausted, Ledger, LedgerError, open_ledger, read_ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.sampling import poisson_batch

UNITS = 50
SILENT = 1e-12
"""A noise multiplier so small that float32 does not see it."""
PLAN = PrivacyPlan(
    dataset_id="scans",
    run="first",
    epsilon=1.0,
    delta=1e-6,
    records=40,  # declared: less than there are
    expected_batch_size=20,
    steps=4,
    reserve_steps=1,
    max_grad_norm=0.5,
    draws_per_example=2,
    noise_multiplier=SILENT,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "scans.jsonl", "scans", (100.0, 1e-3)) as opened:
        yield opened


class Model:
    """A linear layer with one loss per example of `UNITS`, the mean of two draws each; float32."""

    def __init__(self, width: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Linear(width, width)
        self.inputs = torch.randn(UNITS, 2, width, generator=generator)
        self.inputs *= torch.logspace(-2, 1, UNITS)[:, None, None]  # some are clipped, some are not
        self.trainable = dict(self.network.named_parameters())

    def losses(self, rows: Tensor) -> Tensor:
        outputs = self.network(self.inputs[rows].flatten(0, 1))
        return torch.sin(outputs).sum(1).view(-1, 2).mean(1)

    def clipped_sum_by_loop(self, rows: Tensor, clip_norm: float) -> dict[str, Tensor]:
        """The definition, in float64; called outside the taps."""
        total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in self.trainable.items()}
        for row in rows.tolist():
            gradients = torch.autograd.grad(self.losses(torch.tensor([row]))[0], list(self.trainable.values()))
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            for name, gradient in zip(self.trainable, gradients, strict=True):
                total[name] += gradient.double() * min(1.0, clip_norm / norm)
        return total

    def clipped(self, plan: PrivacyPlan) -> ClippedSum:
        return ClippedSum(self.network, self.trainable, plan.max_grad_norm, plan.draws_per_example)


def test_a_batch_is_cut_to_the_plans_largest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is drawn, which this plan takes for impossible, and the batch is cut all the same."""
    plan = replace(PLAN, expected_batch_size=4, max_batch_size=30, most_records=60)
    ledger.register(plan)
    monkeypatch.setattr(sampling, "_bernoulli", lambda units, q, entropy: torch.arange(units))
    model = Model()
    with model.clipped(plan) as clipped:
        batch = PrivateGradient(plan, ledger, clipped, UNITS, SystemEntropy()).draw()
    assert len(batch) == 30 < UNITS
    assert batch.unique().tolist() == batch.tolist()


def keep(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool)


@pytest.mark.parametrize("parts", [1, 7, 100])
@pytest.mark.parametrize("clip_norm", [0.5, 1e-3, 100.0])
def test_release_is_the_clipped_sum_over_the_constant_L_times_C(ledger: Ledger, clip_norm: float, parts: int) -> None:
    plan, model = replace(PLAN, max_grad_norm=clip_norm), Model()
    ledger.register(plan)
    sizes = set()
    for _ in range(4):
        with model.clipped(plan) as clipped:
            mechanism = PrivateGradient(plan, ledger, clipped, UNITS, SystemEntropy())
            batch = mechanism.draw()
            for part in batch.split(parts):
                mechanism.accumulate(model.losses(part), keep(part))
            released = mechanism.release()
        sizes.add(len(batch))
        expected = model.clipped_sum_by_loop(batch, clip_norm)
        for name, total in expected.items():
            assert torch.allclose(released[name].double(), total / (20 * clip_norm), rtol=1e-5, atol=1e-6), name
    assert sizes - {20}, "the divisor L is shown to be a constant only if some batch has another size"


@pytest.mark.parametrize("noise", ["float", "grid"])
def test_noise_has_scale_sigma_over_L_also_without_any_record(ledger: Ledger, noise: str) -> None:
    plan, model = replace(PLAN, noise_multiplier=3.0, max_grad_norm=1e-3, noise=noise), Model(width=300)
    ledger.register(plan)
    with model.clipped(plan) as clipped:
        mechanism = PrivateGradient(plan, ledger, clipped, 0, SystemEntropy())
        assert mechanism.draw().tolist() == []
        first = mechanism.release()
        mechanism.draw()
        second = mechanism.release()
    assert first.keys() == model.trainable.keys()
    for name in first:
        values = torch.stack([first[name], second[name]]).double()
        assert float(values.std()) == pytest.approx(3.0 / 20, rel=5 / math.sqrt(values.numel()))
        assert bool((first[name] != second[name]).any()), "noise is drawn anew"


def test_the_grid_is_that_of_all_parameters_together(ledger: Ledger) -> None:
    """The rounding of 6 * 6 weights and 6 biases moves 42 coordinates; same entropy, so the values tell which step."""
    plan, model = replace(PLAN, noise_multiplier=2.0, max_grad_norm=1.0, noise="grid"), Model()
    ledger.register(plan)
    with model.clipped(plan) as clipped:
        mechanism = PrivateGradient(plan, ledger, clipped, 0, SeededEntropy(4))
        mechanism.draw()
        released = mechanism.release()
    same = SeededEntropy(4)
    assert poisson_batch(0, plan.sampling_probability, same).tolist() == []
    for name, parameter in model.trainable.items():
        expected = add_gaussian_on_grid(torch.zeros(parameter.shape), 2.0, 1.0, 42, same) * (1 / 20)
        assert torch.equal(released[name], expected)


def test_null_records_and_abandoned_attempts_leave_nothing(ledger: Ledger) -> None:
    model = Model()
    ledger.register(PLAN)
    everyone = torch.arange(UNITS)
    with model.clipped(PLAN) as clipped:
        mechanism = PrivateGradient(PLAN, ledger, clipped, UNITS, SystemEntropy())
        mechanism.accumulate(model.losses(everyone), keep(everyone))  # before any draw
        mechanism.draw()
        mechanism.accumulate(model.losses(everyone), ~keep(everyone))
        assert all(float(g.abs().max()) < 1e-9 for g in mechanism.release().values())
        mechanism.draw()
        mechanism.accumulate(model.losses(everyone), keep(everyone))  # abandoned
        mechanism.draw()
        assert all(float(g.abs().max()) < 1e-9 for g in mechanism.release().values())
    assert ledger.attempts(PLAN) == 3, "the abandoned attempt was paid for"


def test_one_noise_per_draw(ledger: Ledger) -> None:
    model = Model()
    ledger.register(PLAN)
    with model.clipped(PLAN) as clipped:
        mechanism = PrivateGradient(PLAN, ledger, clipped, UNITS, SystemEntropy())
        with pytest.raises(RuntimeError, match="draw"):
            mechanism.release()
        mechanism.draw()
        mechanism.release()
        with pytest.raises(RuntimeError, match="draw"):
            mechanism.release()


def test_an_abandoned_draw_has_nothing_to_release_when_the_budget_is_gone(ledger: Ledger) -> None:
    model = Model()
    ledger.register(PLAN)
    with model.clipped(PLAN) as clipped:
        mechanism = PrivateGradient(PLAN, ledger, clipped, UNITS, SystemEntropy())
        for _ in range(PLAN.attempts):
            mechanism.draw()
        with pytest.raises(BudgetExhausted):
            mechanism.draw()
        with pytest.raises(RuntimeError, match="draw"):
            mechanism.release()


class Witness:
    """System entropy that notes, at every request, how many attempts are on disk."""

    private = True

    def __init__(self, path: Path) -> None:
        self._path, self._source = path, SystemEntropy()
        self.seen: list[int] = []

    def bytes(self, count: int) -> bytes:
        self.seen.append(sum(entry["event"] == "attempt" for entry in read_ledger(self._path)))
        return self._source.bytes(count)


def test_every_attempt_is_on_disk_before_its_first_random_bit(ledger: Ledger) -> None:
    model, witness = Model(), Witness(ledger.path)
    ledger.register(PLAN)
    with model.clipped(PLAN) as clipped:
        mechanism = PrivateGradient(PLAN, ledger, clipped, UNITS, witness)
        for _ in range(PLAN.attempts):
            mechanism.draw()
            mechanism.release()
        assert witness.seen == [n for n in (1, 2, 3, 4, 5) for _ in range(3)], "a draw, two parameters"
        with pytest.raises(BudgetExhausted):
            mechanism.draw()
        assert len(witness.seen) == 15, "nothing was drawn"


def test_nothing_is_drawn_when_the_charge_fails(ledger: Ledger) -> None:
    model, witness = Model(), Witness(ledger.path)
    with model.clipped(PLAN) as clipped:
        mechanism = PrivateGradient(PLAN, ledger, clipped, UNITS, witness)
        with pytest.raises(LedgerError):
            mechanism.draw()
    assert witness.seen == []


def test_draws_follow_the_plans_probability_not_the_folders_size(ledger: Ledger) -> None:
    """q = L / records = 0.5 with 20,000 units that nobody declared: 10,000 on average, 4.9 deviations allowed."""
    model = Model()
    ledger.register(PLAN)
    with model.clipped(PLAN) as clipped:
        batch = PrivateGradient(PLAN, ledger, clipped, 20_000, SystemEntropy()).draw()
    assert abs(len(batch) - 10_000) < 4.9 * math.sqrt(20_000 / 4)


@pytest.mark.parametrize("changes", [{"max_grad_norm": 0.5 * (1 + 1e-12)}, {"draws_per_example": 1}])
def test_a_sum_clipped_otherwise_than_planned_is_refused(ledger: Ledger, changes: dict[str, float]) -> None:
    clipped, entropy = Model().clipped(PLAN), SeededEntropy(0)
    with pytest.raises(ValueError, match="clip norm"):
        PrivateGradient(replace(PLAN, **changes), ledger, clipped, UNITS, entropy)


def test_same_entropy_same_release(ledger: Ledger) -> None:
    """All randomness of the mechanism comes from the source it is given."""

    def release(entropy: Entropy) -> dict[str, Tensor]:
        model = Model()
        torch.nn.init.zeros_(model.network.weight)
        torch.nn.init.zeros_(model.network.bias)
        with model.clipped(plan) as clipped:
            mechanism = PrivateGradient(plan, ledger, clipped, UNITS, entropy)
            batch = mechanism.draw()
            mechanism.accumulate(model.losses(batch), keep(batch))
            return dict(mechanism.release())

    plan = replace(PLAN, noise_multiplier=1.0)
    ledger.register(plan)
    one, same, other = release(SeededEntropy(1)), release(SeededEntropy(1)), release(SeededEntropy(2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
