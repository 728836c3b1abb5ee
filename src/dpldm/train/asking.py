"""The run's questions: asked once before the first attempt, answered with noise, kept, and never asked again.

An answer is a DP output and lies in the run's folder beside the checkpoint. A crash between the charge and the answer
wastes an attempt of that question's reserve, nothing else.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import BudgetExhausted, Head, Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import Places, ask, class_counts, class_means, class_sums
from dpldm.privacy.questions import ClassHistogram, ClassMeans, Question
from dpldm.run import Run
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint


def ask_all(
    run: Run, plan: PrivacyPlan, ledger: Ledger, latents: PrivateLatents, classes: int, entropy: Entropy
) -> None:
    """Ask every question of the plan that has no answer yet, and keep the answers.

    Raises:
        UserError: a question's attempts are used up without an answer, or a kept answer is not of this plan and ledger.
    """
    for question in plan.queries:
        if read_answer(run, plan, question, ledger) is not None:
            continue
        try:
            answer = ask(question, partial(_total, question, latents, classes), plan, ledger, entropy)
        except BudgetExhausted:
            raise UserError(
                f"All {question.attempts} attempts at the query {question.kind} of the run {run.config.name!r} are "
                "used, and its folder holds no answer: put the folder back, or give this run a new name and pay again."
            ) from None
        facts = {"plan": plan.digest(), "question": question.constants(), "head": [ledger.head.seq, ledger.head.hash]}
        run.answers.mkdir(exist_ok=True)
        save_checkpoint(_place(run, question), {"answer": {"noised": answer}}, facts)


def read_answer(run: Run, plan: PrivacyPlan, question: Question, ledger: Ledger) -> Tensor | None:
    """The noised answer to a question of the plan, or None if there is none yet.

    Raises:
        UserError: it was given under another plan, or its charge is not in the ledger.
    """
    path = _place(run, question)
    if not path.exists():
        return None
    groups, facts = load_checkpoint(path, paid_for=True)
    if facts["plan"] != plan.digest() or facts["question"] != question.constants():
        raise UserError(
            f"The answer to the query {question.kind} was given under another privacy plan: give this run a new name, "
            "or restore the privacy settings it was started with."
        )
    if not ledger.contains(Head(*facts["head"])):
        raise UserError(
            f"The ledger {run.ledger.name} does not contain the query {question.kind} of this run (it was cut, "
            "replaced or forked): restore the ledger from a copy."
        )
    return groups["answer"]["noised"]


def noised_means(run: Run, plan: PrivacyPlan, ledger: Ledger) -> Tensor:
    """The noised mean latent of each class, (K, d) float64, which the plan has asked for.

    Raises:
        UserError: see `read_answer`.
        LookupError: the plan has no such question, or it has not been answered.
    """
    for question in plan.queries:
        if isinstance(question, ClassMeans) and (answer := read_answer(run, plan, question, ledger)) is not None:
            return class_means(question, answer)[0]
    raise LookupError("The plan has no answer about class means.")


def _place(run: Run, question: Question) -> Path:
    return run.answers / f"{question.kind}.safetensors"


def _total(question: Question, latents: PrivateLatents, classes: int) -> Tensor:
    """The sum that `question` asks for. PRIVATE."""
    records, weights = latents.records_of(torch.arange(latents.units))
    places = Places(records, latents.labels[records], weights)
    match question:
        case ClassHistogram():
            return class_counts(places, classes)
        case ClassMeans():
            return class_sums(question, places, latents.posterior.mean, classes)
        case _:
            raise NotImplementedError(question.kind)  # a run has nothing to score candidates by
