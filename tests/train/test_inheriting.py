import pytest
import torch

from dpldm.errors import UserError
from dpldm.models.autoencoder import build_autoencoder
from dpldm.models.families.class_token import build_told
from dpldm.train.inheriting import inherit


def test_an_autoencoder_of_grey_becomes_one_of_colour() -> None:
    torch.manual_seed(0)
    grey, colour = (build_autoencoder(channels, 4, (8, 16)).eval() for channels in (1, 3))
    inherit(colour, grey)
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        ours, theirs = (
            network.encode(x).latent_dist.mean for network, x in ((colour, image.expand(-1, 3, -1, -1)), (grey, image))
        )
        assert torch.allclose(ours, theirs, atol=1e-5), "three equal channels look like the grey one"
        assert torch.allclose(colour.decode(ours).sample, grey.decode(theirs).sample.expand(-1, 3, -1, -1), atol=1e-5)


def test_what_does_not_fit_keeps_its_start() -> None:
    torch.manual_seed(0)
    sizes = {"widths": (16, 16), "layers_per_block": 1, "heads": 2, "condition_dim": 8}
    source, network = build_told(2, 4, 6, **sizes), build_told(2, 4, 9, **sizes)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inherit(network, source)
    for name, tensor in network.state_dict().items():
        expected = before if name == "encoder_hid_proj.weight" else source.state_dict()
        assert torch.equal(tensor, expected[name]), name


def test_a_network_of_other_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="the same widths"):
        inherit(build_autoencoder(3, 4, (8, 16)), build_autoencoder(3, 4, (16, 24)))
