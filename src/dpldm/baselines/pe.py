"""`dpldm baseline pe`: Private Evolution over the run's backbone, at the run's epsilon and under the same ledger.

The training-free method that DP-LDM is compared with (`evolution`). Its votes are one question of a plan of its own,
asked once a round: charged before they are counted, answered with noise, kept, and never asked again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpldm.baselines.evolution import (
    Population,
    choices,
    degree_of,
    drawn,
    generator_of,
    next_generation,
    parents,
    votes,
)
from dpldm.baselines.result import Baseline, run_that_asks, untuned, without_spread
from dpldm.baselines.shown import released_and_measured
from dpldm.config import RunConfig, SamplingConfig
from dpldm.data.latents import PrivateLatents, private_encodings
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.evaluation.evaluate import check_evaluation, real_test_images
from dpldm.evaluation.features import EfficientNetLite0, EncoderMeans, FeatureExtractor, scaled
from dpldm.models.autoencoder import decode
from dpldm.models.backbone import kind_of, load_backbone, public_classes_of
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import BudgetExhausted, Ledger, LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import NearestVotes
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, ledger_cap
from dpldm.sampling import Sampler, draw_batches, planned_labels, texts_of
from dpldm.train.asking import ask_once, places_of
from dpldm.train.checkpoint import save_checkpoint
from dpldm.train.checks import check_images
from dpldm.train.resuming import register
from dpldm.train.vouching import vouched

WHAT = "Private Evolution: images of the backbone as it is, chosen by noised votes of the real ones and varied"


def pe(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """Evolve under a plan of its own, draw `sampling.count` images and measure them. The same call resumes.

    Raises:
        UserError: the settings, the data, the ledger or the checkpoint do not allow it; nothing was charged.
    """
    check_evaluation(config)
    model, test = PublicModel(config), real_test_images(config)
    run, plan = pe_run(config)
    evolution = evolved(model, run, plan, config, SystemEntropy(), on_progress)
    for step in draw_batches(run.config, *evolution.children()):
        on_progress("images drawn", step.done, step.count)
    declared: dict[str, Any] = {"evolution": config.evolution.model_dump(mode="json")}
    if config.data.labels and kind_of(config.backbone)[0].told == "captions":
        declared["caption_template"] = config.data.caption_template
    facts = facts_of(evolution)
    return released_and_measured(config, run, plan, "pe", WHAT, test, declared, facts, on_progress)


def pe_run(config: RunConfig) -> tuple[Run, PrivacyPlan]:
    """Its folder, which is made, and its plan: the config's unit, records, epsilon, delta and kind of noise; no
    gradients, and votes with noise enough for all rounds and their reserve.

    Raises:
        UserError: see `plan_of`.
    """
    classes, evolution = max(1, len(config.data.labels)), config.evolution
    try:
        votes_of_a_round = NearestVotes(
            noise_multiplier=1.0,  # until it is calibrated
            candidates=classes * max(1, evolution.candidates // classes),
            rounds=evolution.rounds,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return run_that_asks(config, "pe", untuned(config.privacy), (votes_of_a_round,), method="diffusion")


class PublicModel:
    """The backbone as it is, and the features in which images are compared. Everything in it is public.

    Raises:
        UserError: the backbone is not public or does not fit the images, or the extra `features` is not installed.
    """

    def __init__(self, config: RunConfig) -> None:
        device = chosen_device(config.runtime.device)
        self.backbone = load_backbone(config.backbone, device)
        check_images(config, self.backbone)
        self.config = config
        self.texts = texts_of(config) if self.backbone.family.told == "captions" else []
        size = config.data.image_size
        self.draw = Sampler(self.backbone, self.backbone.denoiser, config.sampling, size, self.texts)
        encoder = config.evolution.features == "encoder"
        self.extractor: FeatureExtractor = (
            EncoderMeans(self.backbone, size) if encoder else EfficientNetLite0(device=device)
        )

    def first(self, candidates: int) -> Population:
        """Random images, as many for each class. A backbone that is told classes knows none of the private ones: it is
        told one of its own for each, at random, which its descendants keep; one that is told captions, those that
        `data.caption_template` makes of the classes, or prompts."""
        labels, generator = self.config.data.labels, torch.Generator().manual_seed(self.config.sampling.seed)
        classes = torch.arange(candidates) % max(1, len(labels))
        captions = self.backbone.family.told == "captions"
        if captions and labels:
            return drawn(self.draw, classes, classes)
        kinds = len(self.texts) if captions else public_classes_of(self.config.backbone)
        told = torch.randint(kinds, (candidates,), generator=generator) if kinds else torch.full((candidates,), -1)
        return drawn(self.draw, told, classes)

    def images(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images (N, S, S, C) of latents (N, c, h, w)."""
        return decode(self.backbone.autoencoder, latents, self.config.data.image_size)

    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """(N, d), each of its own image alone, at norm 1."""
        return scaled(self.extractor(images))


class Evolution:
    """Candidates and how far they have come: all of it a function of noised votes."""

    def __init__(self, model: PublicModel, run: Run, plan: PrivacyPlan, question: NearestVotes) -> None:
        self.model, self.run, self.plan, self.question = model, run, plan, question
        self.settings = run.config.evolution
        self.generation = 0  # how many rounds of votes made the population
        self.noised = torch.zeros(question.candidates)  # the last answer; no votes, and all candidates are alike

    def begin(self, ledger: Ledger) -> None:
        """Take up the kept candidates if the ledger vouches for them, or draw the first.

        Raises:
            UserError: they belong to another plan, backbone, ledger or other settings; or they are gone.
        """
        run, path = self.run, self.run.checkpoint
        if not path.exists():
            self._require_nothing_lost(ledger)
            self.population = self.model.first(self.question.candidates)
            self._save(ledger)
            return
        asked = {"plan": self.plan.digest(), "settings": self._settings()}
        groups, facts = vouched(path, "the checkpoint", run, ledger, self.model.backbone.digest, asked)
        self.population, self.generation = Population(**groups["population"]), int(facts["generation"])

    def rounds(self, features: PrivateLatents, ledger: Ledger, entropy: Entropy) -> Iterator[int]:
        """The rounds that are left; yields the number of each that is done. Ends early if no attempt is left."""
        for number in range(self.generation + 1, self.settings.rounds + 1):
            try:
                self.noised = self.ask(number, features, ledger, entropy)
            except BudgetExhausted:
                self.noised = torch.zeros(self.question.candidates)
                return
            if number < self.settings.rounds:
                self._breed(number)
                self._save(ledger)
            yield number

    def ask(self, number: int, features: PrivateLatents, ledger: Ledger, entropy: Entropy) -> Tensor:
        """The noised votes of a round, (P,): the kept answer, or one that is charged, counted and noised now."""
        candidates = self.model.features(self.model.images(self.population.latents))
        labels = features.labels if self.model.config.data.labels else torch.zeros_like(features.labels)

        def total() -> Tensor:
            chosen = choices(features.posterior.mean, labels, candidates, self.population.classes)
            return votes(places_of(features), chosen, self.question.candidates)

        digest = self.model.backbone.digest
        return ask_once(self.question, total, self.run, self.plan, ledger, digest, entropy, number)

    def children(self) -> tuple[SamplingConfig, Tensor, Callable[[slice, torch.Generator], NDArray[np.uint8]]]:
        """Settings, labels (N,) and a way to draw the final images: children of the last round's parents."""
        settings, model = self.run.config.sampling, self.model
        labels = planned_labels(settings, len(model.config.data.labels))
        rows = self._parents(labels.clamp(min=0), self.settings.rounds)
        if model.texts and not model.config.data.labels:
            labels = self.population.told[rows]  # the prompt that an image goes back to
        degree = degree_of(self.settings, self.settings.rounds)

        def draw(part: slice, generator: torch.Generator) -> NDArray[np.uint8]:
            latents, told = self.population.latents[rows[part]], self.population.told[rows[part]]
            return model.images(model.draw.varied(latents, told, degree, generator))

        return settings, labels, draw

    def _breed(self, number: int) -> None:
        rows = self._parents(self.population.classes, number)
        degree = degree_of(self.settings, number)
        self.population = next_generation(self.model.draw, self.population, rows, degree, number)
        self.generation = number

    def _parents(self, labels: Tensor, number: int) -> Tensor:
        chances = (self.population, self.question, self.noised, self.settings.threshold)
        return parents(*chances, labels, generator_of(self.model.draw, number, -1))

    def _save(self, ledger: Ledger) -> None:
        facts = {
            "plan": self.plan.digest(),
            "backbone": self.model.backbone.digest,
            "settings": self._settings(),
            "generation": self.generation,
            "head": [ledger.head.seq, ledger.head.hash],
        }
        save_checkpoint(self.run.checkpoint, {"population": vars(self.population)}, facts)

    def _settings(self) -> dict[str, Any]:
        """What candidates depend on beside the plan."""
        sampling = self.run.config.sampling.model_dump(
            mode="json", include={"sampler", "steps", "eta", "guidance", "seed", "batch_size"}
        )
        return {"features": self.model.extractor.name, **self.settings.model_dump(mode="json"), **sampling}

    def _require_nothing_lost(self, ledger: Ledger) -> None:
        charged = ledger.query_attempts(self.plan, self.question)
        if charged > self.question.reserve:
            raise UserError(
                f"The ledger holds {charged} rounds of votes of {self.plan.run!r}, but {self.run.directory} has no "
                "candidates: put the run's folder back, correct runtime.output, or give this run a new name and pay "
                "for it again."
            )


def evolved(
    model: PublicModel, run: Run, plan: PrivacyPlan, config: RunConfig, entropy: Entropy, on_progress: OnProgress
) -> Evolution:
    """All rounds that are left, charged to the ledger of the run that it stands beside.

    Raises:
        UserError: see `pe`.
    """
    run.create()
    (question,) = plan.queries
    if not isinstance(question, NearestVotes):
        raise ValueError("The plan of an evolution asks for votes, and for nothing else.")
    evolution = Evolution(model, run, plan, question)
    features = private_encodings(
        run.config.data,
        lambda pixels: without_spread(model.features(pixels)),
        model.extractor.name,
        run.private / "features.safetensors",
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    try:
        with open_ledger(run.ledger, plan.dataset_id, ledger_cap(config), declared_cap=config.privacy.cap) as ledger:
            evolution.begin(ledger)
            register(plan, ledger, config)
            for number in evolution.rounds(features, ledger, entropy):
                on_progress("rounds of votes", number, question.rounds)
    except LedgerError as error:
        raise UserError(str(error)) from None
    return evolution


def facts_of(evolution: Evolution) -> dict[str, str | int | float]:
    """What a reader of its accuracy must know of it."""
    return {
        "noise_multiplier": evolution.question.noise_multiplier,
        "rounds": evolution.question.rounds,
        "candidates": evolution.question.candidates,
        "features": evolution.model.extractor.name,
    }
