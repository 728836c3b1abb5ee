"""Differentially private latent diffusion models.

    from dpldm import RunConfig, evaluate, finetune, load_config, plan, release, sample

    config = load_config(RunConfig, Path("run.yaml"))
    print(plan(config))                    # reads no image
    for step in finetune(config):          # a generator; public fields only
        print(step.number, step.epsilon_spent)
    for _ in sample(config): ...
    print(evaluate(config))                # INTERNAL
    release(config)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BackboneRecipe": "dpldm.recipe",
    "RunConfig": "dpldm.config",
    "UserError": "dpldm.errors",
    "audit": "dpldm.auditing",
    "evaluate": "dpldm.evaluation.evaluate",
    "evaluate_foreign": "dpldm.evaluation.evaluate",
    "finetune": "dpldm.train.finetune",
    "load_backbone": "dpldm.models.backbone",
    "load_config": "dpldm.loading",
    "load_synthetic": "dpldm.sampling",
    "plan": "dpldm.planning",
    "pretrain": "dpldm.train.pretrain",
    "push": "dpldm.pushing",
    "rehearsal": "dpldm.rehearsing",
    "release": "dpldm.releasing",
    "sample": "dpldm.sampling",
    "select": "dpldm.train.selecting",
    "verify": "dpldm.verifying",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpldm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
