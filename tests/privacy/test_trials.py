"""The audit on the production mechanism: silent when it is right, loud when it is broken on purpose.

Each defect is put into the production code itself. Entropy is seeded, so that no test fails by chance.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dpldm
from dpldm.privacy import clipping, mechanism, sampling
from dpldm.privacy.accounting import delta_curve
from dpldm.privacy.audit import (
    MechanismAudit,
    OneRunAudit,
    curve_of_deltas,
    default_guesses,
    mechanism_audit,
    one_run_audit,
    sampler_audit,
)
from dpldm.privacy.entropy import Entropy, SeededEntropy
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.trials import batches, canary_norm, canary_scores, cut_batches, readings

Patch = pytest.MonkeyPatch
SIGMAS = {1: 2.113, 4: 0.909, 10: 0.633}
B = 256


def plan_for(epsilon: int, **changes: Any) -> PrivacyPlan:
    plan = PrivacyPlan(
        dataset_id="none",
        run="audit",
        epsilon=epsilon,
        delta=1e-5,
        records=10_000,
        expected_batch_size=B,
        steps=390,
        reserve_steps=10,
        max_grad_norm=1e-3,
        draws_per_example=1,
        noise_multiplier=SIGMAS[epsilon],
    )
    return replace(plan, **changes)


def judged(plan: PrivacyPlan, attempts: int, seed: int = 0) -> MechanismAudit:
    without = readings(plan, attempts, canary=False, entropy=SeededEntropy(2 * seed))
    canary = readings(plan, attempts, canary=True, entropy=SeededEntropy(2 * seed + 1))
    return mechanism_audit(without, canary, plan.noise_multiplier)


# --- defects ----------------------------------------------------------------------------------------------------


def less_noise(divisor: float) -> Callable[[Patch], None]:
    def defect(patch: Patch) -> None:
        def weak(total: Tensor, standard_deviation: float, entropy: Entropy) -> Tensor:
            return add_gaussian(total, standard_deviation / divisor, entropy)

        patch.setattr(mechanism, "add_gaussian", weak)

    return defect


def no_clipping(patch: Patch) -> None:
    patch.setitem(clipping.RULES, "flat", lambda norms, clip_norm: torch.ones_like(norms))


DEFECTS: dict[str, Callable[[Patch], None]] = {
    "sigma / 1.5": less_noise(1.5),
    "sigma / 2": less_noise(2),
    "sigma / 4": less_noise(4),
    "clipping off": no_clipping,
    "noise divided by B": less_noise(B),
}


@pytest.mark.parametrize("epsilon", SIGMAS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_caught_at_every_epsilon(monkeypatch: Patch, defect: str, epsilon: int) -> None:
    DEFECTS[defect](monkeypatch)
    assert judged(plan_for(epsilon), 300).violated


@pytest.mark.parametrize("epsilon", SIGMAS)
def test_the_correct_mechanism_is_not_called_a_violation(epsilon: int) -> None:
    for seed in range(4):
        found = judged(plan_for(epsilon), 300, seed)
        assert not found.violated
        assert found.shift_at_least < 1 < found.shift_at_least + 10 * SIGMAS[epsilon] * (2 / 300) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", SIGMAS)
def test_at_most_two_alarms_in_two_hundred_correct_audits(epsilon: int) -> None:
    assert sum(judged(plan_for(epsilon), 500, seed).violated for seed in range(200)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", SIGMAS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_counts_alone_catch_every_defect(monkeypatch: Patch, defect: str, epsilon: int) -> None:
    """Without assuming that noise is Gaussian."""
    DEFECTS[defect](monkeypatch)
    assert judged(plan_for(epsilon), 5000).sigma_at_most < SIGMAS[epsilon]


# --- what a reading sees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"draws_per_example": 3}, {"clipping": "automatic"}, {"max_grad_norm": 2.0}])
def test_a_canary_adds_C_and_companions_nothing(changes: dict[str, Any]) -> None:
    quiet = plan_for(1, noise_multiplier=0.0, **changes)
    assert readings(quiet, 2, canary=False) == pytest.approx(0.0, abs=1e-4)
    added = canary_norm(quiet) / (canary_norm(quiet) + 0.01) if "clipping" in changes else 1.0
    assert readings(quiet, 2, canary=True) == pytest.approx(added, abs=1e-4)


def test_parameters_that_are_clipped_apart_are_noticed(monkeypatch: Patch) -> None:
    """Two parameters, each at norm C: the canary adds sqrt(2) C."""
    accumulate = clipping.ClippedSum.accumulate

    def apart(self: clipping.ClippedSum, losses: Tensor, keep: Tensor | None = None, images: int = 1) -> None:
        whole = {name: total.clone() for name, total in self._sums.items()}
        accumulate(self, losses, keep, images)
        for name, total in self._sums.items():
            self._sums[name] = whole[name] + (total - whole[name]) * 2**0.5

    monkeypatch.setattr(clipping.ClippedSum, "accumulate", apart)
    assert judged(plan_for(10), 1000).shift_at_least > 1.2


def test_noise_that_shrinks_with_the_batch_is_noticed(monkeypatch: Patch) -> None:
    release = mechanism.PrivateGradient.release

    def shrinking(self: mechanism.PrivateGradient) -> Any:
        plan, size = self._plan, max(1, self._clipped._examples)
        self._plan = replace(plan, noise_multiplier=plan.noise_multiplier / size)
        try:
            return release(self)
        finally:
            self._plan = plan

    monkeypatch.setattr(mechanism.PrivateGradient, "release", shrinking)
    found = judged(plan_for(1), 300)
    assert found.sigma_at_most < SIGMAS[1]


# --- the sampler -----------------------------------------------------------------------------------------------


def coins_of_fixed_size(units: int, q: float, entropy: Entropy) -> Tensor:
    return sampling.random_words(units, entropy).argsort()[: round(units * q)].sort().values


def coins_of_pairs(units: int, q: float, entropy: Entropy) -> Tensor:
    half = bernoulli(units // 2, q, entropy)
    return torch.stack([2 * half, 2 * half + 1], 1).flatten()


bernoulli = sampling._bernoulli


@pytest.mark.parametrize(
    "coins",
    [
        coins_of_fixed_size,
        coins_of_pairs,
        lambda units, q, entropy: bernoulli(units, 1.1 * q, entropy),
    ],
    ids=["fixed size", "pairs", "a tenth more"],
)
def test_a_sampler_that_is_not_poisson_is_caught(monkeypatch: Patch, coins: Any) -> None:
    plan = plan_for(1)
    correct = sampler_audit(batches(plan, 1000, 500, SeededEntropy(3)), plan.sampling_probability)
    assert not correct.violated
    monkeypatch.setattr(sampling, "_bernoulli", coins)
    assert sampler_audit(batches(plan, 1000, 500, SeededEntropy(3)), plan.sampling_probability).violated


def test_a_probability_taken_from_the_folder_is_caught(monkeypatch: Patch) -> None:
    def counted(units: int, q: float, entropy: Entropy, largest: int | None = None) -> Tensor:
        return sampling._bernoulli(units, B / units, entropy)

    monkeypatch.setattr(mechanism, "poisson_batch", counted)
    plan = plan_for(1)
    assert sampler_audit(batches(plan, 1000, 100), plan.sampling_probability).violated


@pytest.mark.parametrize("q", [B / 10_000, 0.5, 1.0])
def test_the_production_cut_is_fair(q: float) -> None:
    plan = plan_for(1, expected_batch_size=round(10_000 * q))
    for seed in range(5):
        made = cut_batches(plan, 500, 300, SeededEntropy(seed))
        assert made.included.sum(1).max() == made.largest
        assert not sampler_audit(batches(plan, 500, 300, SeededEntropy(100 + seed)), q, made).violated


def test_a_cut_by_order_is_caught(monkeypatch: Patch) -> None:
    """Whoever stands last in the folder would be left out first."""
    plan, coins = plan_for(1), sampling._bernoulli
    fair = batches(plan, 500, 300, SeededEntropy(1))
    drawn = [coins(500, B / 10_000, SeededEntropy(seed)) for seed in range(1000)]
    monkeypatch.setattr(sampling, "_bernoulli", lambda units, q, entropy: drawn.pop())
    monkeypatch.setattr(sampling, "random_words", lambda count, entropy: torch.arange(count))
    found = sampler_audit(fair, B / 10_000, cut_batches(plan, 500, 1000, SeededEntropy(0)))
    assert found.violated
    assert found.p_values["units of cut batches"] < 1e-6


# --- canaries in one run ---------------------------------------------------------------------------------------


def one_run(epsilon: int, seed: int, canaries: int = 1000, **changes: Any) -> OneRunAudit:
    plan = plan_for(epsilon, **changes)
    included = np.random.default_rng(seed).random(canaries) < 0.5
    scores = canary_scores(plan, included, plan.attempts, SeededEntropy(seed))
    curve = curve_of_deltas(*delta_curve(plan.noise_multiplier, plan.sampling_probability, plan.attempts))
    return one_run_audit(scores, included, default_guesses(canaries, epsilon), epsilon, plan.delta, curve)


def test_one_run_is_not_refuted_when_it_is_correct() -> None:
    for epsilon in SIGMAS:
        found = one_run(epsilon, seed=1, draws_per_example=2)
        assert not found.violated
        assert found.at_least < epsilon
        assert found.at_least_gaussian < epsilon


@pytest.mark.parametrize("defect", ["sigma / 4", "clipping off", "noise divided by B"])
def test_one_run_refutes_a_strong_claim_by_a_catastrophe(monkeypatch: Patch, defect: str) -> None:
    DEFECTS[defect](monkeypatch)
    found = one_run(1, seed=2)
    assert found.violated
    assert found.at_least > 1


@pytest.mark.parametrize("defect", ["clipping off", "noise divided by B"])
def test_one_run_refutes_epsilon_10_only_by_its_trade_off(monkeypatch: Patch, defect: str) -> None:
    DEFECTS[defect](monkeypatch)
    found = one_run(10, seed=3, canaries=20_000)
    assert found.violated
    assert found.ceiling < 10, "nothing that any mechanism's bound could have said"


def test_only_audits_have_a_ledger_that_counts_nothing() -> None:
    texts = {path.name: path.read_text() for path in Path(dpldm.__file__).parent.rglob("*.py")}
    assert [name for name, text in texts.items() if "_NoLedger" in text] == ["trials.py"]
    assert [name for name, text in texts.items() if re.search(r"import.*\btrials\b", text)] == ["auditing.py"]
