"""Whether a backbone can be tuned as the config says: asked before an image is read or anything is charged."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpldm.config import RunConfig
from dpldm.data.prompts import prompts_of
from dpldm.errors import UserError
from dpldm.models.autoencoder import Pixels, downsampling, latent_shape
from dpldm.models.backbone import Backbone
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.independence import ExamplesMeet, check_example_gradients, check_independence
from dpldm.privacy.layers import UnsupportedModel
from dpldm.train.example_losses import Draws, example_losses, fresh_draws, timestep_law
from dpldm.train.made_up import made_up_records


def check_fit(config: RunConfig, backbone: Backbone) -> None:
    """Refuse a backbone that is not public, that cannot hold the images, or cannot be told what they are told by.

    Raises:
        UserError: see `check_images`; or it is told something else, or nothing; or images are to be mirrored, and it
            works on latents.
    """
    check_images(config, backbone)
    if config.optimizer.mirror and not isinstance(backbone.autoencoder, Pixels):
        raise UserError(
            "optimizer.mirror is for backbones of pixels: the latent of a mirrored image is not the mirrored latent."
        )
    require_condition(config, backbone)


def check_images(config: RunConfig, backbone: Backbone) -> None:
    """Refuse a backbone that is not public, and images that it cannot hold.

    Raises:
        UserError: it was itself tuned on private images, or channels or size do not fit.
    """
    data = config.data
    if "tuned" in backbone.provenance:
        raise UserError(
            f"The backbone {backbone.name} was itself tuned on private images, and this run's guarantee would not "
            "count what that has cost: use a public backbone."
        )
    if data.channels != backbone.channels:
        raise UserError(
            f"data.channels is {data.channels}, the backbone {backbone.name} has {backbone.channels}: change one."
        )
    require_size(data.image_size, backbone)


def require_size(size: int, backbone: Backbone) -> None:
    """Refuse an image size that the backbone cannot draw.

    Raises:
        UserError: it cannot; says which it can.
    """
    factor, family = downsampling(backbone.autoencoder), backbone.family
    made_for = family.latent_side(backbone.denoiser) * factor
    if family.side == "free":
        if size % factor:
            raise UserError(
                f"data.image_size is {size}, and the autoencoder of {backbone.name} needs a multiple of {factor}: "
                f"choose {size - size % factor} or {size - size % factor + factor} (it was made for {made_for})."
            )
        return
    smallest = made_for - factor + 1 if family.side == "padded" else made_for
    if not smallest <= size <= made_for:
        sizes = f"{smallest} to {made_for}" if smallest < made_for else f"exactly {made_for}"
        raise UserError(
            f"data.image_size is {size}, the backbone {backbone.name} takes {sizes} pixels: "
            "change data.image_size (images are resized to it) or use another backbone."
        )


def require_condition(config: RunConfig, backbone: Backbone) -> None:
    """Refuse labels, captions and prompts that the backbone cannot be told.

    Raises:
        UserError: it is told something else, or nothing.
    """
    family, data = backbone.family, config.data
    if data.caption_column is not None and family.told != "captions":
        raise UserError(
            f"data.caption_column is set, and the backbone {backbone.name} is told {family.told}: leave it out, or use "
            "a backbone that is told captions, such as a Stable Diffusion."
        )
    if data.labels and family.told == "nothing":
        raise UserError(
            f"data.labels is set, and the backbone {backbone.name} is told nothing: leave it out, or use a backbone "
            "that is told classes or captions."
        )
    if config.optimizer.warm_start_steps and family.told != "classes":
        raise UserError(
            "optimizer.warm_start_steps trains the rows of a class embedder, and the backbone "
            f"{backbone.name} has none: leave it out."
        )
    prompts_of(config)


def require_examples_apart(backbone: Backbone, trainable: Mapping[str, nn.Parameter], config: RunConfig) -> None:
    """Try random examples: what the clipping bounds is only an example's own gradient.

    Args:
        backbone: adapted to the config, its network the one that `trainable` (name -> parameter) belongs to.

    Raises:
        UserError: the network lets examples of a batch meet, or has layers whose gradients cannot be clipped.
    """
    network, shape = backbone.denoiser, torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    draws = fresh_draws(3, 1, shape, timestep_law(backbone.scheduler, config.optimizer), 0.0, SystemEntropy())

    def losses_of(means: Tensor) -> Tensor:
        fixed = Draws(**{name: value[: len(means)] for name, value in vars(draws).items()})
        made_up = made_up_records(means, backbone, config)
        return example_losses(network, backbone.scheduler, made_up, torch.arange(len(means)), fixed)

    examples, others = torch.randn(3, *shape), torch.randn(2, *shape)
    try:
        check_independence(losses_of, examples[:2], others, list(trainable.values()))
        check_example_gradients(network, trainable, losses_of, examples)
    except (ExamplesMeet, UnsupportedModel) as error:
        raise UserError(f"The backbone {backbone.name} cannot be tuned privately. {error}") from None
