"""The run's questions: asked once, answered with noise, kept, and never asked again.

An answer is a DP output and lies in the run's folder beside the checkpoint. A crash between the charge and the answer
wastes an attempt of that question's reserve, nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import BudgetExhausted, Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import Places, ask, class_counts, class_sums, spread_sums
from dpldm.privacy.questions import (
    CandidateScores,
    ClassHistogram,
    ClassMeans,
    ClassSpreads,
    PublicClassHistogram,
    Question,
)
from dpldm.privacy.selection import Plan, trial_of
from dpldm.run import Run, latent_entries
from dpldm.train.centres import Centres, centres_of
from dpldm.train.checkpoint import save_checkpoint
from dpldm.train.memory import ALLOCATOR, free_of_machine, memory_of_spreads
from dpldm.train.vouching import vouched


def ask_all(
    run: Run,
    plan: PrivacyPlan,
    ledger: Ledger,
    latents: PrivateLatents,
    classes: int,
    backbone: str,
    entropy: Entropy,
) -> None:
    """Ask every question about the images as they are, those that have no answer yet, and keep the answers.

    Args:
        backbone: digest of the backbone that encoded the latents.

    Raises:
        UserError: a question's attempts are used up without an answer, or a kept answer is not of this plan, ledger
            and backbone.
    """
    for question in plan.queries:
        if isinstance(question, CandidateScores):
            continue  # of a trial, asked when there is a model
        if isinstance(question, ClassSpreads) and read_answer(run, plan, question, ledger, backbone) is None:
            require_memory(question, plan, classes, latents.posterior.mean[0].numel())
        centres = centres_known(run, plan, ledger, backbone, classes) if isinstance(question, ClassSpreads) else None
        total = partial(_total, question, latents, classes, None if centres is None else centres.means)
        try:
            ask_once(question, total, run, plan, ledger, backbone, entropy)
        except BudgetExhausted:
            raise UserError(
                f"No attempt is left at the query {question.kind} of {plan.run!r}, of {question.attempts} paid for, "
                "and its folder holds no answer: put the folder back, or give this run a new name and pay again."
            ) from None


def ask_once(
    question: Question,
    total: Callable[[], Tensor],
    run: Run,
    plan: PrivacyPlan,
    ledger: Ledger,
    backbone: str,
    entropy: Entropy,
    number: int = 1,
) -> Tensor:
    """The kept answer to a question, or one that is asked now (see `queries.ask`) and kept.

    Args:
        number: which of its `answers` it is, from 1 on.

    Raises:
        BudgetExhausted: its attempts are used up without an answer.
        UserError: see `read_answer`.
    """
    kept = read_answer(run, plan, question, ledger, backbone, number)
    if kept is not None:
        return kept
    answer, head = ask(question, total, plan, ledger, entropy), ledger.head
    facts = {
        "plan": plan.digest(),
        "question": question.constants(),
        "number": number,
        "backbone": backbone,
        "head": [head.seq, head.hash],
    }
    run.answers.mkdir(exist_ok=True)
    save_checkpoint(_place(run, question, number), {"answer": {"noised": answer}}, facts)
    return answer


def require_answers_fit(run: Run, plan: PrivacyPlan, ledger: Ledger, backbone: str) -> None:
    """Refuse what cannot be asked or gone on from, before this plan's budget is reserved.

    Raises:
        UserError: see `read_answer`; or covariances are still to be asked for and do not fit into the free memory: a
            process that dies after the charge has lost it.
    """
    for question in plan.queries:
        if read_answer(run, plan, question, ledger, backbone) is None:
            require_memory(question, plan, len(run.config.data.labels), latent_entries(run.config))


def require_memory(question: Question, plan: PrivacyPlan, classes: int, entries: int) -> None:
    """Refuse a question whose answer does not fit into the free memory, where the machine says how much there is.

    Raises:
        UserError: it does not fit.
    """
    needed, free = memory_of_spreads([question], plan.noise, classes, entries), free_of_machine()
    if free is not None and ALLOCATOR * needed > free:
        raise UserError(
            f"Covariances of {classes} classes take {ALLOCATOR * needed / 1e9:.1f} GB while they are asked for, more "
            "than is free on this machine: nothing was charged for them; run the same command where there is more."
        )


def read_answer(
    run: Run, plan: Plan, question: Question, ledger: Ledger, backbone: str, number: int = 1
) -> Tensor | None:
    """The noised answer of that number to a question of the plan, or None if there is none yet.

    Raises:
        UserError: it was given under another plan, about the latents of another backbone, or its charge is not in the
            ledger.
    """
    path = _place(run, question, number)
    if not path.exists():
        return None
    asked = {"plan": plan.digest(), "question": question.constants(), "number": number}
    groups, _ = vouched(path, f"the answer to {question.kind}", run, ledger, backbone, asked)
    return groups["answer"]["noised"]


Kind = TypeVar("Kind", bound=Question)


def answered(kind: type[Kind], run: Run, plan: Plan, ledger: Ledger, backbone: str) -> tuple[Kind, Tensor] | None:
    """The plan's question of that kind, and its noised answer; None if the plan has no such question.

    Raises:
        UserError: see `read_answer`; or it has not been answered, or its answer is gone.
    """
    for question in trial_of(plan).queries:
        if isinstance(question, kind):
            answer = read_answer(run, plan, question, ledger, backbone)
            if answer is None:
                raise UserError(
                    f"The run {run.config.name!r} lacks its answer to the query {question.kind}: restore {run.answers} "
                    "from a copy."
                )
            return question, answer
    return None


def centres_known(run: Run, plan: Plan, ledger: Ledger, backbone: str, classes: int) -> Centres:
    """What the answer about class means says, of a plan that asks for them; post-processing.

    Raises:
        UserError: see `answered`.
    """
    known = answered(ClassMeans, run, plan, ledger, backbone)
    if known is None:
        raise ValueError("The plan needs the class means, and does not ask for them.")
    return centres_of(*known, classes)


def places_of(latents: PrivateLatents) -> Places:
    """All units with their images. PRIVATE."""
    records, weights = latents.records_of(torch.arange(latents.units))
    return Places(records, latents.labels[records], weights)


def _place(run: Run, question: Question, number: int) -> Path:
    name = question.kind if question.answers == 1 else f"{question.kind}-{number:04d}"
    return run.answers / f"{name}.safetensors"


def _total(question: Question, latents: PrivateLatents, classes: int, centres: Tensor | None) -> Tensor:
    """The sum that `question` asks for, about noised `centres` (K, parts, d) if it is one about spreads. PRIVATE."""
    places, means = places_of(latents), latents.posterior.mean
    match question:
        case ClassHistogram():
            return class_counts(places, classes)
        case PublicClassHistogram(public_classes=public):
            publics = None if latents.publics is None else latents.publics - classes
            return class_counts(_in_parts(places, publics, classes, public), classes * public)
        case ClassMeans(parts=parts):
            return class_sums(question, _in_parts(places, latents.parts, classes, parts), means, classes * parts)
        case ClassSpreads() if centres is not None:
            cells = _in_parts(places, latents.parts, classes, centres.shape[1])
            return spread_sums(question, cells, means, centres)
    raise ValueError(f"A run cannot ask the question {question.kind}.")


def _in_parts(places: Places, part_of: Tensor | None, classes: int, parts: int) -> Places:
    """The same places with numbers of parts of classes for labels, -1 where the class is unknown. PRIVATE.

    Args:
        part_of: (N,) the part of each record, 0 to parts - 1; not needed if a class has one.
    """
    if parts == 1:
        return places
    if part_of is None:
        raise ValueError("Parts of classes are asked for, and have not been found.")
    numbers = places.labels * parts + part_of[places.records]
    return replace(places, labels=torch.where(places.known(classes), numbers, -1))
