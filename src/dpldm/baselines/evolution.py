"""Private Evolution (Lin et al. 2023, arXiv 2305.15560): a public model is asked for images, private ones vote on them.

    random      candidates are drawn from the public model
    votes       each private image votes for the candidate of its class that it resembles most; noise is added
    selection   a threshold is taken off the noised votes; parents are drawn by what is left
    variation   each parent is noised part of the way and denoised again: the candidates of the next round

Nothing is tuned. The votes are the only step that sees a private image; all else is a function of noised votes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpldm.config import EvolutionConfig
from dpldm.models.public_classes import nearest
from dpldm.privacy.queries import Places, class_counts, class_shares
from dpldm.privacy.questions import NearestVotes
from dpldm.sampling import Sampler
from dpldm.train.public_data import step_generator


@dataclass(frozen=True)
class Population:
    """Candidates, a function of public images and noised votes."""

    latents: Tensor  # (P, c, h, w)
    told: Tensor  # (P,) int64, what the public network is told about each: a class of its own, a text, or -1, nothing
    classes: Tensor  # (P,) int64, the private class that each stands for; 0 if there are none


def drawn(draw: Sampler, told: Tensor, classes: Tensor) -> Population:
    """The first candidates: images of the public model."""
    parts = torch.split(told, draw.settings.batch_size)
    latents = [draw.latents(part, generator_of(draw, 0, number)).cpu() for number, part in enumerate(parts)]
    return Population(torch.cat(latents), told, classes)


def choices(features: Tensor, classes: Tensor, candidates: Tensor, theirs: Tensor) -> Tensor:
    """For each private image the candidate of its class that it is nearest to, (N,) int64; -1 is none. PRIVATE.

    Each is a function of that image alone (and of candidates, which are public).

    Args:
        features: (N, d) of the private images. One with a number that is not finite chooses nothing.
        classes: (N,) of the private images.
        candidates: (P, d), in the same space.
        theirs: (P,) classes of the candidates.
    """
    chosen = torch.full((len(features),), -1)
    finite = torch.isfinite(features).all(1)
    for label in torch.unique(theirs):
        voters, running = (finite & (classes == label)).nonzero()[:, 0], (theirs == label).nonzero()[:, 0]
        chosen[voters] = running[nearest(features[voters], candidates[running])]
    return chosen


def votes(places: Places, chosen: Tensor, candidates: int) -> Tensor:
    """Sum over units of their votes, (P,) float64. PRIVATE until it is noised.

    A unit has one vote: the images of a group have a part of it each.
    """
    return class_counts(replace(places, labels=chosen[places.records]), candidates)


def parents(
    population: Population,
    question: NearestVotes,
    noised: Tensor,
    threshold: float,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Rows (N,) of the population for so many children of the classes `labels` (N,), drawn by the votes.

    Args:
        noised: (P,) the answer. Where nothing is left of a class's votes, its candidates are all alike.
        threshold: H, in deviations of the noise.
    """
    left = noised.double() - threshold * question.noise_multiplier
    rows = torch.empty(len(labels), dtype=torch.int64)
    for label in torch.unique(labels):
        children, running = labels == label, (population.classes == label).nonzero()[:, 0]
        chances = class_shares(left[running])
        rows[children] = running[torch.multinomial(chances, int(children.sum()), True, generator=generator)]
    return rows


def next_generation(draw: Sampler, population: Population, rows: Tensor, degree: float, number: int) -> Population:
    """Children of the parents `rows` after the votes of round `number`; what a parent was told, and its class, stay."""
    told, latents = population.told[rows], population.latents[rows]
    size = draw.settings.batch_size
    parts = zip(torch.split(latents, size), torch.split(told, size), strict=True)
    varied = [draw.varied(*part, degree, generator_of(draw, number, batch)).cpu() for batch, part in enumerate(parts)]
    return Population(torch.cat(varied), told, population.classes[rows])


def degree_of(settings: EvolutionConfig, number: int) -> float:
    """How far candidates are varied after the votes of round `number`, from 1 on: evenly from the first to the last."""
    first, last = settings.degrees
    return last if settings.rounds == 1 else first + (last - first) * (number - 1) / (settings.rounds - 1)


def generator_of(draw: Sampler, number: int, batch: int) -> torch.Generator:
    """Of a batch of candidates of a round, or of the choice of its parents (batch -1); public, and none that the final
    images use."""
    return step_generator(draw.settings.seed, ((number + 1) << 32) + batch)
