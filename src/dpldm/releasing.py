"""`release`: what may leave, copied by an allow-list into runs/NAME/release/.

    release/  README.md  privacy.json  [synthetic/]  [model/]  [report.html  report.json]

Allowed are synthetic images and their labels, averaged tuned weights inside the public backbone, noised shares of the
public classes that they are told beside their own, the plan, and the ledger's head. Everything else of a run (latents,
optimizer state, metrics on private images, file names, counts, paths) is not read here.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dpldm
from dpldm.config import OF_SOLVERS, RunConfig
from dpldm.data.export import export_images, export_npz
from dpldm.data.prompts import prompts_of
from dpldm.errors import UserError
from dpldm.models.backbone import kind_of, load_backbone, read_card, sha256_of
from dpldm.models.choices import rank_of
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.durable import replace_file
from dpldm.privacy.selection import Plan, trial_of
from dpldm.progress import OnProgress, unseen
from dpldm.report.card import release_card
from dpldm.report.hub import model_card, synthetic_card
from dpldm.report.wording import covers, mechanism
from dpldm.run import Run
from dpldm.sampling import SyntheticSet, load_synthetic
from dpldm.scanning.kinds import SHARES
from dpldm.tuned import Finished, finished, ledger_entries, public_class_shares, tuned_network, tuned_weights

What = Literal["data", "model", "both"]


def release(config: RunConfig, what: What = "data", on_progress: OnProgress = unseen) -> Path:
    """Write the release directory of a finished run and return it.

    Raises:
        UserError: the run is not finished, or has no model to release; or an older release is in the way.
    """
    require_releasable(config, what)
    statement = privacy_statement(config)

    def fill(directory: Path) -> None:
        if what in ("data", "both"):
            _save_images(config, statement, load_synthetic(config), directory, on_progress)
        if what in ("model", "both"):
            _save_model(config, statement, directory / "model")

    return _released(config, statement, Run(config).release, fill)


def require_releasable(config: RunConfig, what: What) -> None:
    """Refuse to release what such a run does not make; may be asked before anything is spent.

    Raises:
        UserError: a model of a run that tunes nothing.
    """
    if config.method == "portraits" and what != "data":
        raise UserError("method: portraits tunes nothing, so there is no model to release: leave out --what.")


def release_images(
    config: RunConfig, statement: dict[str, Any], synthetic: SyntheticSet, target: Path, on_progress: OnProgress
) -> Path:
    """Write a release directory of images that no tuned model drew, and return it.

    Args:
        statement: see `statement_of`.

    Raises:
        UserError: an older release is in the way.
    """
    return _released(
        config,
        statement,
        target,
        lambda directory: _save_images(config, statement, synthetic, directory, on_progress),
    )


def _released(config: RunConfig, statement: dict[str, Any], target: Path, fill: Callable[[Path], None]) -> Path:
    """What `fill` writes, its card and its statement, in the place of `target` or equal to what is there."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    (partial / "README.md").write_text(release_card(config, statement), encoding="utf-8")
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    statement["files"] = {p.relative_to(partial).as_posix(): sha256_of(p) for p in files}
    replace_file(partial / "privacy.json", (json.dumps(statement, indent=2) + "\n").encode(), mode=0o644)
    if not target.exists():
        partial.rename(target)
    elif _same_release(partial, target):
        shutil.rmtree(partial)
    else:
        shutil.rmtree(partial)
        raise UserError(f"{target} holds an earlier release that differs: move it away and release again.")
    return target


def _save_images(
    config: RunConfig, statement: dict[str, Any], synthetic: SyntheticSet, directory: Path, on_progress: OnProgress
) -> None:
    """The images as folders and as one array, and in the statement what they were told to be."""
    if prompts := prompts_of(config):
        statement["declared_constants"]["prompts"] = prompts
    export_images(
        directory / "synthetic",
        synthetic.images,
        synthetic.labels,
        config.data.labels,
        card=synthetic_card(config, statement),
        prompts=prompts,
        on_progress=on_progress,
    )
    export_npz(directory / "synthetic.npz", synthetic.images, synthetic.labels)


def _save_model(config: RunConfig, statement: Mapping[str, Any], directory: Path) -> None:
    """The tuned model with its card: a stock directory, or adapters alone where the stock pipeline loads them."""
    backbone = load_backbone(config.backbone)
    tuned = replace(backbone, name=f"{backbone.name}-{config.name}")
    debt = {key: statement["guarantee"][key] for key in ("epsilon", "delta", "unit", "adjacency")}
    debt["dataset_id"] = config.privacy.dataset_id
    adapters = backbone.takes_adapters and rank_of(config.trainable) is not None
    if adapters:
        tuned.save_adapters(directory, tuned_weights(config), debt)
    else:
        tuned = replace(tuned, denoiser=tuned_network(config, backbone))
        tuned.save(directory, debt, config.data.labels)
    if (shares := public_class_shares(config)) is not None:  # without them nobody draws as the run did
        (directory / SHARES).write_text(json.dumps({"shares": shares.tolist()}) + "\n", encoding="utf-8")
    pipeline, told = backbone.index["_class_name"], backbone.family.told
    card = model_card(config, statement, pipeline, told, adapters=adapters)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _same_release(new: Path, old: Path) -> bool:
    """Whether `old` is an earlier release of the same run that still holds what it says.

    README.md may differ: it shows the ledger's head, and the ledger may have grown in between. A report may have been
    added since (`dpldm report`).
    """
    try:
        statements = [json.loads((folder / "privacy.json").read_text(encoding="utf-8")) for folder in (new, old)]
        intact = all(sha256_of(old / name) == digest for name, digest in statements[1]["files"].items())
        for statement in statements:
            del statement["ledger"], statement["files"]["README.md"]
            for name in ("report.html", "report.json"):
                statement["files"].pop(name, None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return intact and statements[0] == statements[1]


def privacy_statement(config: RunConfig) -> dict[str, Any]:
    """The guarantee as data: everything needed to recompute it, nothing that is private.

    Raises:
        UserError: the run is not finished, or was trained with other settings than `config`.
    """
    end = finished(config)
    return statement_of(config, end.plan, end.updates, ledger_entries(config), _declared(config, end))


def statement_of(
    config: RunConfig, plan: Plan, updates: int, entries: Sequence[Mapping[str, Any]], declared: Mapping[str, Any]
) -> dict[str, Any]:
    """The guarantee of a plan as data.

    Args:
        entries: all lines of the ledger.
        declared: what was declared public beside the plan.
    """
    trial, constants = trial_of(plan), plan.constants()
    return {
        "format": "dpldm-privacy-1",
        "guarantee": {
            "epsilon": plan.stated_epsilon(),
            "epsilon_replace_one": plan.stated_epsilon(Adjacency.REPLACE_ONE),
            "delta": plan.delta,
            "adjacency": Adjacency.ADD_OR_REMOVE_ONE.value,
            "unit": trial.unit,
            "covers": covers(constants),
            "public_benchmark": plan.public_benchmark,
        },
        "plan": constants,
        "plan_digest": plan.digest(),
        "updates": updates,
        "ledger": {
            "dataset_id": plan.dataset_id,
            "head": {"seq": entries[-1]["seq"], "hash": entries[-1]["hash"]},
            "plans_on_this_data_set": sum(entry["event"] == "plan" for entry in entries),
        },
        "mechanism": mechanism(constants),
        "declared_constants": dict(declared),
        "backbone": _backbone_facts(config),
        "software": _versions(),
    }


def _declared(config: RunConfig, end: Finished) -> Mapping[str, Any]:
    """What was declared public, and is therefore not protected; and which candidate a selection kept, which is an
    output of it."""
    if config.method == "portraits":
        return declared_always(config)
    data, optimizer, further = config.data, config.optimizer.model_dump(mode="json"), dict[str, Any]()
    if data.labels and kind_of(config.backbone)[0].told == "captions":
        further["caption_template"] = data.caption_template
    if end.candidate is not None:
        optimizer["learning_rate"] = config.selection.learning_rates[end.candidate]
        further["learning_rates"] = list(config.selection.learning_rates)
    return (
        declared_always(config)
        | further
        | {"trainable": config.trainable, "tune_embedder": config.tune_embedder, "optimizer": optimizer}
    )


def declared_always(config: RunConfig) -> dict[str, Any]:
    """What was declared of the data, and how images were drawn; no paths, and no solver if none was used."""
    data, idle = config.data, {"prompts", *(OF_SOLVERS if config.method == "portraits" else ())}
    return {
        "records": config.privacy.records,
        "labels": list(data.labels),
        "image_size": data.image_size,
        "channels": data.channels,
        "crop": data.crop,
        "window": list(data.window) if data.window else None,
        "sampling": config.sampling.model_dump(mode="json", exclude=idle),
    }


def _backbone_facts(config: RunConfig) -> Mapping[str, Any]:
    card = read_card(config.backbone)
    return {"name": card["name"], "sha256": card["sha256"]}


def _versions() -> Mapping[str, str]:
    from importlib.metadata import version

    return {
        "dpldm": dpldm.__version__,
        **{name: version(name) for name in ("torch", "diffusers", "dp-accounting")},
    }
