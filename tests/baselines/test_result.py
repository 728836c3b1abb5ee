"""What may be looked at without privacy: images that are declared to be published, and that no ledger calls private."""

from collections.abc import Callable
from typing import Any

import pytest

from dpldm.baselines.noiseless import noiseless
from dpldm.baselines.real import real
from dpldm.baselines.result import Baseline
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.privacy.ledger import open_ledger
from dpldm.run import Run

NOT_PRIVATE = pytest.mark.parametrize("baseline", [real, noiseless], ids=["real", "noiseless"])
Kind = Callable[[RunConfig], Baseline]


@NOT_PRIVATE
def test_private_images_are_never_used_without_privacy(baseline: Kind, raw: dict[str, Any]) -> None:
    config = RunConfig.model_validate(raw)
    with pytest.raises(UserError, match=r"without any privacy: add --stand-in .* or declare privacy\.public_benchmark"):
        baseline(config)
    assert not Run(config).directory.exists()


@NOT_PRIVATE
@pytest.mark.parametrize("default", [True, False])
def test_a_capped_ledger_outlives_the_declaration(baseline: Kind, default: bool, raw: dict[str, Any]) -> None:
    """What was private yesterday is not published because a config says so today."""
    if default:
        raw["privacy"]["ledger"] = None
    with open_ledger(Run(RunConfig.model_validate(raw)).ledger, "scans", (1.0, 1e-3)):
        pass
    raw["privacy"]["public_benchmark"] = True
    config = RunConfig.model_validate(raw)
    with pytest.raises(UserError, match="has a ledger with a cap, so it is no public benchmark"):
        baseline(config)
    assert not Run(config).directory.exists()


@NOT_PRIVATE
def test_without_classes_there_is_nothing_to_classify(baseline: Kind, raw: dict[str, Any]) -> None:
    raw["data"]["labels"], raw["privacy"]["public_benchmark"] = [], True
    with pytest.raises(UserError, match=r"declare the classes with data\.labels"):
        baseline(RunConfig.model_validate(raw))
