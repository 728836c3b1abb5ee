"""`dpldm ledger`: what was spent, told truly, and a cut or forked ledger found by what was published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.fingerprints import note_fingerprint
from dpldm.data.readers import open_source
from dpldm.privacy.ledger import open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores
from dpldm.privacy.selection import SelectionPlan
from dpldm.releasing import release
from dpldm.run import Run, plan_of
from tiny_runs import write_images

Capture = pytest.CaptureFixture[str]


def test_show_tells_plans_attempts_and_budget(finished: RunConfig, capsys: Capture) -> None:
    assert main(["ledger", "show", str(Run(finished).ledger)]) == 0
    shown = capsys.readouterr().out
    assert "data set  scans" in shown
    assert "cap       epsilon 0.5, delta 0.001" in shown
    assert "tiny: epsilon 0.5, delta 0.001, 2 of 3 attempts made" in shown
    assert "reserved  epsilon 0.5, delta 0.001" in shown


def test_show_tells_when_the_data_had_changed(finished: RunConfig, tmp_path: Path, capsys: Capture) -> None:
    path, images = tmp_path / "l.jsonl", write_images(tmp_path / "images")
    with open_ledger(path, "scans", (10.0, 1e-1)) as ledger:
        for run in ("one", "two", "three"):
            plan = replace(plan_of(finished), run=run)
            if run == "three":
                Image.new("L", (16, 16)).save(images / "dark" / "another.png")
            note_fingerprint(path, plan.digest(), open_source(images))
            ledger.register(plan)
    assert main(["ledger", "show", str(path)]) == 0
    changed = [line for line in capsys.readouterr().out.splitlines() if "had changed" in line]
    assert len(changed) == 1
    assert "three" in changed[0]
    assert "INTERNAL: the data had changed" in changed[0]
    (tmp_path / "l.jsonl.fingerprints").write_text("{}")
    assert main(["ledger", "show", str(path)]) == 0
    assert "had changed" not in capsys.readouterr().out, "what is unknown is not called a change"


def test_show_tells_how_often_each_question_was_asked(answered: RunConfig, capsys: Capture) -> None:
    assert main(["ledger", "show", str(Run(answered).ledger)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 attempts made\n    query class_histogram: noise 30, 1 of 3 attempts made\n" in shown
    assert "    query class_means: noise 30, 1 of 3 attempts made\n" in shown


def test_show_tells_of_a_selection_without_its_number_of_trials(tmp_path: Path, capsys: Capture) -> None:
    trial = PrivacyPlan(
        dataset_id="scans",
        run="search",
        epsilon=1.0,
        delta=1e-5,
        records=1000,
        expected_batch_size=100,
        steps=10,
        reserve_steps=5,
        max_grad_norm=1e-3,
        draws_per_example=1,
        noise_multiplier=9.0,
        queries=(CandidateScores(noise_multiplier=20.0, candidates=1),),
    )
    plan, path = SelectionPlan(trial, mean_trials=5.0, candidates=3), tmp_path / "scans.jsonl"
    with open_ledger(path, "scans", (1.0, 1e-5)) as ledger:
        ledger.register(plan)
        ledger.charge(plan)
    assert main(["ledger", "show", str(path)]) == 0
    assert "  search: epsilon 1, delta 1e-05, selection among 3 candidates, begun\n" in capsys.readouterr().out
    with open_ledger(path, "scans", None) as ledger:
        ledger.charge(plan)
    assert main(["ledger", "show", str(path)]) == 0
    assert "selection among 3 candidates, ended\n" in capsys.readouterr().out


def test_a_ledger_of_the_account_is_found_by_its_data_set(finished: RunConfig, account: Path, capsys: Capture) -> None:
    folder = account / "dpldm" / "ledgers"
    folder.mkdir(parents=True)
    assert main(["ledger", "show", "scans"]) == 2
    assert "(none yet)" in capsys.readouterr().err
    (folder / "scans.jsonl").write_bytes(Run(finished).ledger.read_bytes())
    assert main(["ledger", "show", "scans"]) == 0
    assert main(["ledger", "show", "faces"]) == 2
    assert "(scans)" in capsys.readouterr().err


def test_verify_finds_a_ledger_that_was_cut_or_replaced(finished_copy: RunConfig, capsys: Capture) -> None:
    target, ledger = release(finished_copy), Run(finished_copy).ledger
    words = ["ledger", "verify", str(ledger), "--release", str(target)]
    assert main(words) == 0
    assert capsys.readouterr().out.count("ok ") == 2
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    assert main(words) == 1
    assert "was cut, forked or replaced" in capsys.readouterr().out
    ledger.write_bytes(b"".join(lines).replace(b'"number": 1', b'"number": 7'))
    assert main(words) == 2
    assert "does not follow from the lines before it" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}", "no json", json.dumps({"ledger": {"head": 3}})])
def test_what_is_no_release_is_refused(
    content: str | None, finished: RunConfig, tmp_path: Path, capsys: Capture
) -> None:
    if content is not None:
        (tmp_path / "privacy.json").write_text(content)
    assert main(["ledger", "verify", str(Run(finished).ledger), "--release", str(tmp_path)]) == 2
    assert "is no release" in capsys.readouterr().err


def test_reading_changes_nothing(finished: RunConfig) -> None:
    before = Run(finished).ledger.read_bytes()
    main(["ledger", "show", str(Run(finished).ledger)])
    main(["ledger", "verify", str(Run(finished).ledger)])
    assert Run(finished).ledger.read_bytes() == before
