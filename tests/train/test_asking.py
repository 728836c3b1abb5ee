"""A run's questions: charged first, asked once, paid for when a crash takes the answer, and used for nothing else."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior
from dpldm.models.backbone import load_backbone
from dpldm.planning import plan as forecast
from dpldm.privacy import queries
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.ledger import Ledger, open_ledger, read_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import class_shares, counts_by_share
from dpldm.privacy.questions import ClassHistogram, ClassMeans, ClassSpreads, NearestVotes
from dpldm.run import Run, plan_of
from dpldm.sampling import load_synthetic, planned_labels, sample, settings_of_sampling
from dpldm.train import asking
from dpldm.train.asking import ask_all, read_answer
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.finetune import finetune
from dpldm.tuned import noised_histogram
from killing import die_in_call
from tiny_runs import ASKED

KINDS = ["class_histogram", "class_means"]


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(raw | {"privacy": raw["privacy"] | ASKED})


def events(config: RunConfig) -> list[tuple[str, Any]]:
    return [(e["event"], e.get("query") or e.get("number")) for e in read_ledger(Run(config).ledger)[1:]]


def answer_bytes(config: RunConfig) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in Run(config).answers.iterdir()}


# --- asked once ---------------------------------------------------------------------------------------------------


def test_questions_are_charged_and_answered_before_the_first_attempt(answered: RunConfig) -> None:
    plan = plan_of(answered)
    assert [question.kind for question in plan.queries] == KINDS
    assert events(answered) == [("plan", None), *(("query", kind) for kind in KINDS), ("attempt", 1), ("attempt", 2)]
    assert set(answer_bytes(answered)) == set(KINDS)
    shapes = {}
    for kind in KINDS:
        groups, facts = load_checkpoint(Run(answered).answers / f"{kind}.safetensors")
        assert set(facts) == {"plan", "question", "number", "backbone", "head"}
        assert list(groups) == ["answer"]
        shapes[kind] = groups["answer"]["noised"].shape
    assert shapes == {"class_histogram": (2,), "class_means": (2, 2 * 4 * 4 + 1)}


def test_epsilon_is_shown_with_the_questions_from_the_first_step(answered: RunConfig) -> None:
    made = forecast(answered, timed=False)
    plan = made.plan
    assert made.epsilon_of_queries == plan.epsilon_after(0) > 0.1
    assert all(made.epsilon_of_queries < value <= 0.5 for _, value in made.epsilon_curve)
    assert made.epsilon == plan.epsilon_after(plan.attempts) <= 0.5


def test_a_run_that_goes_on_never_asks_again(answered_copy: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before, lines = answer_bytes(answered_copy), events(answered_copy)
    again: list[Any] = []
    monkeypatch.setattr(asking, "ask", lambda *given: again.append(given) or torch.zeros(2))
    assert list(finetune(answered_copy)) == []
    assert not again
    assert list(sample(answered_copy))[-1].done == 24
    assert (answer_bytes(answered_copy), events(answered_copy)) == (before, lines)


def test_answers_are_noised_by_the_systems_entropy(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[type] = []

    def heard(*given: Any) -> Tensor:
        sources.append(type(given[-1]))
        return queries.ask(*given)

    monkeypatch.setattr(asking, "ask", heard)
    list(finetune(config))
    assert sources == [SystemEntropy, SystemEntropy]


def test_a_crash_costs_an_attempt_of_the_question_alone(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    for attempt in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(queries, "add_gaussian", crash)
            with pytest.raises(KeyboardInterrupt):
                list(finetune(config))
        assert events(config) == [("plan", None), *[("query", "class_histogram")] * attempt]
    steps = list(finetune(config))
    assert [(step.number, step.attempts) for step in steps] == [(1, 1), (2, 2)]
    expected = [*[("query", "class_histogram")] * 3, ("query", "class_means"), ("attempt", 1), ("attempt", 2)]
    assert events(config)[1:] == expected
    assert steps[-1].epsilon_spent <= plan_of(config).epsilon_after(3) <= 0.5


def test_a_question_without_attempts_ends_the_run_before_anything_is_drawn(config: RunConfig) -> None:
    run, plan = Run(config), plan_of(config)
    with open_ledger(run.ledger, "scans", (0.5, 1e-3)) as ledger:
        ledger.register(plan)
        for _ in range(3):
            ledger.charge_query(plan, plan.queries[1])
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"No attempt is left at the query class_means .*of 3 .*give this run a new name"
        ):
            list(finetune(config))
    assert not any(event == "attempt" for event, _ in events(config))


def test_from_the_first_answer_on_settings_are_bound(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer about two classes must not be read as one about others, nor images be added between the two."""
    monkeypatch.setattr("dpldm.train.finetune.algorithm_1", lambda *_: iter(()))
    list(finetune(config))
    assert not Run(config).checkpoint.exists()
    swapped = config.model_copy(update={"data": config.data.model_copy(update={"labels": ("light", "dark")})})
    with pytest.raises(UserError, match="another section `data`"):
        list(finetune(swapped))


@pytest.mark.parametrize("harm", ["cut", "other plan", "edited question", "other backbone"])
def test_an_answer_that_the_ledger_or_the_plan_does_not_vouch_for_is_refused(
    answered_copy: RunConfig, harm: str
) -> None:
    run, plan = Run(answered_copy), plan_of(answered_copy)
    texts = {"cut": "restore the ledger from a copy", "other backbone": "put the earlier backbone back"}
    text, digest = texts.get(harm, "another privacy plan"), load_backbone(answered_copy.backbone).digest
    read_answer(run, plan, plan.queries[0], Ledger(run.ledger, read_ledger(run.ledger)), digest)
    if harm == "other backbone":
        digest = "of other weights"
    if harm == "cut":
        run.ledger.write_bytes(b"".join(run.ledger.read_bytes().splitlines(keepends=True)[:2]))
    question = plan.queries[0]
    if harm == "other plan":
        plan = replace(plan, steps=3)
    if harm == "edited question":
        question = replace(question, noise_multiplier=31.0)
    with open_ledger(run.ledger, "scans", None) as ledger, pytest.raises(UserError, match=text):
        read_answer(run, plan, question, ledger, digest)


# --- killed anywhere ------------------------------------------------------------------------------------------------

SMALL = PrivacyPlan(
    dataset_id="scans",
    run="tiny",
    epsilon=1.0,
    delta=1e-3,
    records=40,
    expected_batch_size=8,
    steps=4,
    reserve_steps=2,
    max_grad_norm=1e-3,
    draws_per_example=1,
    noise_multiplier=3.0,
    queries=(ClassHistogram(noise_multiplier=30.0), ClassMeans(noise_multiplier=30.0, clip_norm=5.0)),
)


def made_up(count: int) -> PrivateLatents:
    mean = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return PrivateLatents(Posterior(mean, mean), torch.arange(count) % 2, torch.ones(count, dtype=torch.bool))


def asked(config: RunConfig, fatal: int | None) -> None:
    """The child: asks everything, and dies in the `fatal`-th system call of writing."""
    with open_ledger(Run(config).ledger, "scans", (1.0, 1e-3)) as ledger:
        ledger.register(SMALL)
        die_in_call(fatal)
        ask_all(Run(config), SMALL, ledger, made_up(12), 2, "digest", SystemEntropy())


def child(config: RunConfig, fatal: int | None) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=asked, args=(config, fatal))
    process.start()
    process.join()
    return process.exitcode


def test_a_kill_between_charge_and_answer_costs_one_attempt_and_an_answer_is_final(
    config: RunConfig, tmp_path: Path
) -> None:
    lost = 0
    for fatal in range(1, 60):
        output = tmp_path / f"runs-{fatal}"
        here = config.model_copy(
            update={
                "runtime": config.runtime.model_copy(update={"output": output}),
                "privacy": config.privacy.model_copy(update={"ledger": output / "scans.jsonl"}),
            }
        )
        Run(here).private.mkdir(parents=True)
        if child(here, fatal) == 0:
            break
        answers = answer_bytes(here) if Run(here).answers.exists() else {}
        complete = {kind for kind in answers if not kind.endswith(".safetensors")}  # a torn write leaves a .partial
        assert child(here, None) == 0, f"the run cannot go on after a kill in call {fatal}"
        after = answer_bytes(here)
        assert all(after[kind] == answers[kind] for kind in complete), "an answer that was there is the one that stays"
        charged = [query for event, query in events(here) if event == "query"]
        assert len(charged) in (2, 3)
        assert sorted(set(charged)) == KINDS
        lost += len(charged) - 2
        assert child(here, None) == 0
        assert answer_bytes(here) == after
    assert 10 < fatal < 59
    assert 0 < lost < fatal - 1, "some kills came between charge and answer, some did not"


# --- what a sum holds, and what a histogram steers ----------------------------------------------------------------


def test_groups_and_null_records_count_as_the_proof_says() -> None:
    """Groups of 1, 2 and 3 images; record 2 was not read, record 5 has no known class, record 6 is kept by none."""
    latents = made_up(7)
    latents.usable[2] = False
    labels = torch.tensor([0, 0, 1, 1, 1, -1, 1])
    members = torch.tensor([[0, -1, -1], [1, 2, -1], [3, 4, 5]])
    grouped = replace(latents, labels=labels, members=members)
    assert asking._total(SMALL.queries[0], grouped, 2, None).tolist() == pytest.approx([1 + 1 / 2, 2 / 3])
    means = SMALL.queries[1]
    z = latents.posterior.mean.flatten(1).double()
    z = z / z.norm(dim=1, keepdim=True).clamp(min=5.0)
    expected = torch.stack([z[0] + z[1] / 2, (z[3] + z[4]) / 3]) / (1 + 0.25**2) ** 0.5
    assert torch.allclose(asking._total(means, grouped, 2, None)[:, :-1], expected, atol=1e-6)


def test_no_question_is_answered_with_the_sum_of_another() -> None:
    """Votes are a baseline's; spreads need the noised means."""
    for question in (
        NearestVotes(noise_multiplier=30.0, candidates=2, rounds=1),
        ClassSpreads(noise_multiplier=30.0, clip_norm=1.0),
    ):
        with pytest.raises(ValueError, match=f"cannot ask the question {question.kind}"):
            asking._total(question, made_up(7), 2, None)


def test_a_histogram_steers_how_many_images_a_class_gets_and_nothing_else(answered_copy: RunConfig) -> None:
    """The draw is the one that the same counts, given by hand, would have asked for."""
    noised = noised_histogram(answered_copy)
    assert noised is not None
    counts = counts_by_share(class_shares(noised), 24)
    given = answered_copy.sampling.model_copy(update={"label_counts": counts})
    assert settings_of_sampling(answered_copy) == given
    list(sample(answered_copy))
    drawn = load_synthetic(answered_copy)
    assert drawn.labels.tolist() == planned_labels(given, 2).tolist()
    assert tuple((drawn.labels == k).sum() for k in (0, 1)) == counts
    by_hand = load_synthetic(answered_copy.model_copy(update={"sampling": given}))
    assert (by_hand.images == drawn.images).all()


def test_counts_given_by_the_user_win(answered: RunConfig) -> None:
    sampling = answered.sampling.model_copy(update={"label_counts": (3, 4)})
    assert settings_of_sampling(answered.model_copy(update={"sampling": sampling})) == sampling


def test_without_a_histogram_classes_are_alike(finished: RunConfig) -> None:
    assert noised_histogram(finished) is None
    assert settings_of_sampling(finished) == finished.sampling
    assert not Run(finished).answers.exists()


def test_a_lost_histogram_is_not_replaced_by_equal_shares(answered_copy: RunConfig) -> None:
    (Run(answered_copy).answers / "class_histogram.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks its answer to the query class_histogram: restore .* from a copy"):
        list(sample(answered_copy))


def test_questions_about_classes_need_classes(raw: dict[str, Any]) -> None:
    for key in ASKED:
        with pytest.raises(ValueError, match=r"need the classes that data\.labels declares"):
            RunConfig.model_validate(
                raw | {"data": raw["data"] | {"labels": []}, "privacy": raw["privacy"] | {key: 30.0}}
            )


def test_a_clip_norm_without_its_question_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"privacy\.class_means_clip is for privacy\.class_means_noise"):
        RunConfig.model_validate(raw | {"privacy": raw["privacy"] | {"class_means_clip": 4.0}})


def test_the_default_clip_norm_follows_from_the_backbone_alone(config: RunConfig) -> None:
    means = plan_of(config).queries[1]
    assert isinstance(means, ClassMeans)
    assert means.clip_norm == (2 * 4 * 4) ** 0.5
