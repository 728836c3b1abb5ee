"""Settings of a pre-training that has begun: it goes on as it was begun, or not at all.

Otherwise a checkpoint would be trained to its end by another recipe, and the backbone's card would tell of that alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpldm.errors import UserError
from dpldm.models.backbone import read_card, weights_digest
from dpldm.privacy.durable import replace_file
from dpldm.recipe import BackboneRecipe

PLACES: Any = {
    **dict.fromkeys(("public", "output", "device", "autoencoder_of"), True),
    "autoencoder": {"start": True, "adversarial": {"perceptual_weights"}},
    "diffusion": {"start"},
}
"""Settings that are places of a machine; what a backbone builds on is told by name and sha256."""
HARMLESS = {"name", "autoencoder.checkpoint_every", "diffusion.checkpoint_every"}
"""What does not change a weight."""


def without_places(recipe: BackboneRecipe) -> dict[str, Any]:
    """A recipe as a card holds it."""
    return recipe.model_dump(mode="json", exclude=PLACES)


def require_as_begun(recipe: BackboneRecipe, public_sets: Sequence[Mapping[str, Any]], work: Path) -> None:
    """Refuse to go on with what was begun otherwise. Stage 2 may change as long as it has no checkpoint.

    Args:
        public_sets: provenance of each.
        work: folder of the checkpoints, which keeps what they were begun with.

    Raises:
        UserError: names the settings, the public sets or the backbones that are others.
    """
    place, now = work / "settings.json", _binding(recipe, public_sets)
    first, second = ((work / f"{stage}.safetensors").exists() for stage in ("autoencoder", "diffusion"))
    others = [name for name in differing(_kept(place), now) if second or not name.startswith("diffusion.")]
    if others and (first or second):
        raise UserError(
            f"The backbone {recipe.name!r} was begun with other settings ({', '.join(others)}): put them back, give "
            f"the recipe another output, or delete {work} to begin anew."
        )
    replace_file(place, (json.dumps(now, indent=1) + "\n").encode(), mode=0o644)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of settings that changed a weight between two recipes as JSON values. What one of them does not know
    is not compared: it is of another version."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return sorted(name for name in old.keys() & new.keys() - HARMLESS if old[name] != new[name])


def _binding(recipe: BackboneRecipe, public_sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that weights depend on: what lies at a place, not the place."""
    settings = without_places(recipe)
    settings["public"] = [public["sha256"] for public in public_sets]
    settings["autoencoder_of"] = _identity(recipe.autoencoder_of)
    settings["autoencoder"]["start"] = _identity(recipe.autoencoder.start)
    settings["diffusion"]["start"] = _identity(recipe.diffusion.start)
    return settings


def _identity(backbone: str | None) -> str | None:
    return None if backbone is None else weights_digest(read_card(backbone)["sha256"])


def _kept(place: Path) -> dict[str, Any]:
    """What an earlier call kept; nothing if there was none."""
    try:
        kept: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: restore it, or delete {place.parent} to begin anew.") from error
    return kept


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; a section that may be left out also counts as a value, so that it is missed."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield f"{above}{name}", True
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
