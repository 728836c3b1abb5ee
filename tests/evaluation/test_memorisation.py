"""Memorisation: copies are found, chance is not taken for them, and what is found stays inside."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from dpldm.cleaning import clean
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.bundled import write_digits
from dpldm.errors import UserError
from dpldm.evaluation import memorisation as module
from dpldm.evaluation import neighbours
from dpldm.evaluation.features import EfficientNetLite0
from dpldm.evaluation.memorisation import ALARM, compared, memorisation, real_images
from dpldm.evaluation.neighbours import copies, copy_scores, nearest, nearness
from dpldm.releasing import release
from dpldm.reporting import report
from dpldm.run import Run
from dpldm.scanning.texts import INTERNAL
from tiny_runs import Means, write_images

Capture = pytest.CaptureFixture[str]


def directions(count: int, seed: int, size: int = 16) -> torch.Tensor:
    """Random rows of norm 1."""
    return torch.nn.functional.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


def near(rows: torch.Tensor, by: float, seed: int) -> torch.Tensor:
    """The rows, a little off."""
    return torch.nn.functional.normalize(rows + by * directions(len(rows), seed, rows.shape[1]))


TRAINED, HELD_OUT = directions(400, 1), directions(300, 2)


# --- who is near ------------------------------------------------------------------------------------------------------


def test_nearest_is_what_a_loop_finds() -> None:
    distances, places = nearest(TRAINED[:5], HELD_OUT, 3)
    for row in range(5):
        every = np.linalg.norm((HELD_OUT - TRAINED[row]).numpy(), axis=1)
        assert places[row].tolist() == np.argsort(every)[:3].tolist()
        assert distances[row] == pytest.approx(np.sort(every)[:3], abs=1e-5)


def test_images_of_their_own_are_as_near_to_either_side() -> None:
    found = nearness(TRAINED, HELD_OUT, directions(2000, 3), np.random.default_rng(0))
    assert abs(found.share - 0.5) < 0.06
    assert abs(found.ratio - 1) < 0.05
    assert found.p_value > 0.01
    assert found.real == 300


def test_images_made_after_training_images_are_nearer_to_them() -> None:
    found = nearness(TRAINED, HELD_OUT, near(TRAINED, 0.8, 4), np.random.default_rng(0))
    assert found.share > 0.6
    assert found.ratio < 1
    assert found.p_value < ALARM


def test_many_images_with_one_neighbour_are_no_evidence_and_a_binomial_test_would_take_them_for_it() -> None:
    """All lie around one real image, which has been trained on by the toss of one coin."""
    crowd = near(HELD_OUT[:1].expand(200, -1), 0.1, 5)
    for sides in ((TRAINED, HELD_OUT), (HELD_OUT, TRAINED[:300])):
        found = nearness(*sides, crowd, np.random.default_rng(0))
        assert found.p_value > 0.2
        assert found.share in (0.0, 1.0)
    assert binomtest(200, 200, 0.5, alternative="greater").pvalue < 1e-50


def test_the_test_is_as_seldom_wrong_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which side was trained on is tossed; p-values at most 0.1 may come in a tenth of the cases."""
    monkeypatch.setattr(neighbours, "SHUFFLES", 199)
    wrong = 0
    for seed in range(60):
        real = directions(200, 100 + seed, 4)
        drawn = near(real[torch.randint(200, (100,), generator=torch.Generator().manual_seed(seed))], 0.5, seed)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        found = nearness(real[order[:100]], real[order[100:]], drawn, np.random.default_rng(seed))
        wrong += found.p_value <= 0.1
    assert wrong <= 15, "binomial(60, 0.1) is above 15 with probability 0.0003"


def test_an_image_on_both_sides_goes_to_neither() -> None:
    found = nearness(TRAINED[:300], TRAINED[:300], directions(1000, 6), np.random.default_rng(0))
    assert abs(found.share - 0.5) < 0.1
    assert found.ratio == 1.0


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_scores_nothing_and_what_is_near_to_all_is_none() -> None:
    scores, places = copy_scores(torch.cat([TRAINED[7:8], directions(1, 9)]), TRAINED)
    assert scores[0] < 1e-3
    assert places[0] == 7
    assert 0.3 < scores[1] <= 1
    same = TRAINED[:1].expand(60, -1)
    assert copy_scores(TRAINED[:1], same)[0].tolist() == [1.0], "a copy of none in particular"


def test_a_few_copies_among_many_images_are_found_and_shown() -> None:
    drawn = torch.cat([directions(970, 7), near(TRAINED[:30], 0.05, 8)])
    found = copies(TRAINED, HELD_OUT, drawn)
    assert 30 <= found.found <= 40
    assert found.p_value < ALARM
    assert found.share_at_most > 0.03
    assert len(found.closest) == 20
    assert all(row == 970 + place for row, place in found.closest)


def test_without_copies_none_is_found_beyond_chance() -> None:
    found = copies(TRAINED, HELD_OUT, directions(1000, 10))
    assert found.p_value > ALARM
    assert found.found / 1000 <= found.share_at_most < 0.05


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tested(finished_copy: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The finished run with real test images, and features that cost nothing."""
    monkeypatch.setattr(module, "extractor_of", lambda config: Means())
    data = finished_copy.data.model_copy(update={"test_path": write_images(tmp_path / "test", seed=1)})
    config = finished_copy.model_copy(update={"data": data})
    Run(config).note_settings()
    return config


def test_what_is_found_stays_inside(tested: RunConfig, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tested)
    assert main(["memorisation", str(run.directory)]) == 0
    assert "INTERNAL: reads private images, do not publish" in capsys.readouterr().out
    for path in (run.private / "memorisation.json", run.pairs):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stored = json.loads((run.private / "memorisation.json").read_text())
    assert INTERNAL.search(stored["status"])
    assert stored["copies"]["trained"] == 40
    assert stored["copies"]["synthetic"] == 24
    assert Image.open(run.pairs).size[1] == 2 * (2 * 16 + 1), "two rows"
    drawn = dict.fromkeys(("guesses", "delta", "attack", "spending"), "<svg></svg>")
    monkeypatch.setattr("dpldm.report.page._charts", lambda report: drawn)
    target = release(tested)
    report(run.directory)
    assert "nearer to a training image" in (run.private / "report.html").read_text()
    for path in target.rglob("*"):
        assert not path.is_file() or b"emorisation" not in path.read_bytes()
    assert run.pairs in clean(run.directory).removed, "it shows private images"


def test_persons_who_were_trained_on_are_not_held_out(tested: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for place, table in ((tested.data.path, 0), (folder, 15)):
        rows = [f"{name},{name.partition('/')[0]},person {k // 2 + table}" for k, name in enumerate(names)]
        (place / "metadata.csv").write_text("\n".join(["file_name,label,patient", *rows]))
    try:
        data = tested.data.model_copy(update={"group_column": "patient"})
        trained, held_out = real_images(tested.model_copy(update={"data": data}))
        assert (len(trained), len(held_out)) == (40, 30), "persons 15 to 19 are among both"
    finally:
        (tested.data.path / "metadata.csv").unlink()


def test_too_few_images_or_none_are_refused(tested: RunConfig, finished: RunConfig) -> None:
    for path in sorted(Path(str(tested.data.test_path)).rglob("*.png"))[19:]:
        path.unlink()
    with pytest.raises(UserError, match="cannot be told from fewer than 20 images"):
        memorisation(tested)
    with pytest.raises(UserError, match=r"set data\.test_path"):
        memorisation(finished)


@pytest.mark.slow
def test_a_model_tuned_without_privacy_is_noticed_and_the_public_one_is_not(tmp_path: Path) -> None:
    """The positive control: all of the bundled denoiser, tuned on 64 digits without clipping or noise, draws them."""
    from dpldm.config import SamplingConfig
    from dpldm.data.ingest import ingest
    from dpldm.data.preprocessing import Preprocessing
    from dpldm.data.readers import open_source
    from dpldm.models.autoencoder import encode
    from dpldm.models.backbone import load_backbone
    from dpldm.models.denoiser import adapt_to_labels
    from dpldm.sampling import Sampler

    private, test = write_digits(tmp_path / "digits")
    trained, held_out = (
        ingest(open_source(folder), Preprocessing(image_size=28, channels=1), ()).pixels for folder in (private, test)
    )
    trained = trained[np.random.default_rng(0).permutation(len(trained))[:64]]

    def drawn(steps: int) -> np.ndarray:
        backbone, random = load_backbone("grey32"), torch.Generator().manual_seed(0)
        network = backbone.denoiser.requires_grad_(True)
        adapt_to_labels(network, 1)
        latents = encode(backbone.autoencoder, trained).mean
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        null = backbone.family.condition(network, torch.full((64,), 1))
        for _ in range(steps):
            t = torch.randint(1000, (64,), generator=random)
            noise = torch.randn(latents.shape, generator=random)
            noised = backbone.scheduler.add_noise(latents, noise, t)
            target = backbone.scheduler.get_velocity(latents, noise, t)
            loss = (backbone.family.predict(network, noised, t, null) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        draw = Sampler(backbone, network.eval(), SamplingConfig(steps=20), 28)
        return draw(torch.full((300,), -1), torch.Generator().manual_seed(1))

    extractor = EfficientNetLite0()
    public = compared(trained, held_out, drawn(0), extractor, public_benchmark=True)
    kept = compared(trained, held_out, drawn(800), extractor, public_benchmark=True)
    assert not public.alarm
    assert kept.alarm
    assert kept.nearness.p_value < ALARM
    assert kept.copies.p_value < ALARM
