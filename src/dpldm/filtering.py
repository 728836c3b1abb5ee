"""Which drawn images to keep: those whose label is believed by a classifier that did not learn from them.

Post-processing of synthetic images alone, hence free. Two CNNs each learn from one half of the set and judge the other;
in each class the images they are surest of are kept. That trades variety for images that look like their class.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dpldm.evaluation.classifiers import Images, Labels, train_classifier

EPOCHS = 5


def most_consistent(images: Images, labels: Labels, counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Rows of the `counts[k]` best images of each class k, in the order in which they were drawn.

    Args:
        images: (N, H, W, C) uint8, with enough of each class.
        labels: (N,) the class that each was drawn for.
        counts: (K,) how many to keep.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    belief = np.empty(len(labels))
    for number, (learnt, judged) in enumerate((halves, halves[::-1])):
        train, validation = np.split(learnt, [math.ceil(0.9 * len(learnt))])
        judge = train_classifier(
            "cnn",
            images[train],
            labels[train],
            classes=len(counts),
            epochs=EPOCHS,
            seed=seed + number,
            validation=(images[validation], labels[validation]),
        )
        belief[judged] = judge.probabilities(images[judged])[np.arange(len(judged)), labels[judged]]
    order = np.argsort(-belief, kind="stable")
    best = [order[labels[order] == label][:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(best))
