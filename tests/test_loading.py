"""From YAML and flags to a config: who wins, what is refused, and that no refusal repeats a value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.loading import load_config, validate
from dpldm.loading import settings as all_settings
from dpldm.recipe import BackboneRecipe

MINIMAL = "data: {path: images}\nprivacy: {dataset_id: scans}\n"
SECRET = "Q7zxsecretQ7zx"


def load(directory: Path, text: str | bytes, *flags: tuple[str, str]) -> RunConfig:
    path = directory / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(RunConfig, path, flags)


# --- who wins -----------------------------------------------------------------------------------------------------


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path: Path) -> None:
    text = "data: {path: images}\nprivacy: {dataset_id: scans, epsilon: 2, steps: 7}\nsampling: {seed: 4}\n"
    default, file = RunConfig.model_validate(yaml.safe_load(MINIMAL)), load(tmp_path, text)
    flags = load(tmp_path, text, ("privacy.epsilon", "1"), ("runtime.threads", "1"), ("privacy.epsilon", "0.5"))
    assert (default.privacy.epsilon, file.privacy.epsilon, flags.privacy.epsilon) == (10.0, 2.0, 0.5)
    assert (default.privacy.steps, file.privacy.steps, flags.privacy.steps) == (150, 7, 7)
    assert (file.sampling.seed, flags.sampling.seed, flags.sampling.count) == (4, 4, 60_000)
    assert (default.runtime.threads, flags.runtime.threads) == (None, 1)


def test_without_a_file_flags_are_enough() -> None:
    config = load_config(RunConfig, None, [("data.path", "x"), ("privacy.dataset_id", "y"), ("name", "z")])
    assert (config.data.path, config.privacy.dataset_id, config.name) == (Path("x"), "y", "z")


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "1.e-5", "10e-6"])
def test_small_numbers_may_be_written_in_any_way(tmp_path: Path, text: str) -> None:
    """YAML 1.1 takes 1e-5 for a text."""
    assert load(tmp_path, f"{MINIMAL[:-2]}, delta: {text}}}\n").privacy.delta == 1e-5
    assert load(tmp_path, MINIMAL, ("privacy.delta", text)).privacy.delta == 1e-5


def test_flags_hold_lists_blanks_and_words(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MINIMAL,
        ("data.labels", '["0", cat]'),
        ("privacy.records", "null"),
        ("data.path", "a: b: c"),  # no YAML, hence a word
        ("sampling.label_counts", "[3, 4]"),
    )
    assert config.data.labels == ("0", "cat")
    assert config.privacy.records is None
    assert config.data.path == Path("a: b: c")
    assert config.sampling.label_counts == (3, 4)


def test_a_section_whose_lines_are_all_comments_is_the_default(tmp_path: Path) -> None:
    text = MINIMAL + "sampling:\n  # count: 5\noptimizer:\n"
    assert load(tmp_path, text) == load(tmp_path, MINIMAL)
    assert load(tmp_path, text, ("sampling.count", "5")).sampling.count == 5


def test_labels_that_look_like_numbers_survive_the_resolved_config(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, ("data.labels", '["1e3", "no", "007", "1:30"]'))
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_every_setting_is_described_and_named_once() -> None:
    for model in (RunConfig, BackboneRecipe):
        rows = list(all_settings(model))
        assert len({key for key, _, _ in rows}) == len(rows) > 20
        assert [key for key, description, _ in rows if not description] in ([], STAGE_FIELDS_DESCRIBED_ABOVE)


STAGE_FIELDS_DESCRIBED_ABOVE = [
    *("autoencoder.batch_size", "autoencoder.steps", "autoencoder.learning_rate", "autoencoder.bf16"),
    *("diffusion.batch_size", "diffusion.steps", "diffusion.learning_rate"),
]


RULES = {
    "a truth value for a number": ({"privacy.epsilon": True}, "privacy.epsilon is not valid: write a number"),
    "a class twice": ({"data.labels": ["a", "a"]}, "data.labels is not valid: name each class once"),
    "a class without a name": ({"data.labels": ["a", " "]}, "a class has an empty name"),
    "a class that is no UTF-8": ({"data.labels": ["caf\udce9"]}, "not UTF-8: rename its folder"),
    "a closed window": ({"data.window": [5, 5]}, "data.window is not valid: the value that becomes black"),
    "a ledger that wanders": ({"privacy.ledger": "ledger.jsonl"}, "privacy.ledger is not valid: give a path from"),
    "a cap below the run": ({"privacy.epsilon": 2, "privacy.cap": [1, 1e-3]}, "privacy.cap is below"),
    "a cap without bound": ({"privacy.cap": [float("inf"), 1e-3]}, "privacy.cap is not valid"),
    "a count too few": (
        {"data.labels": ["a", "b"], "sampling.label_counts": [3]},
        "sampling.label_counts needs one number for each class",
    ),
    "no image": ({"data.labels": ["a", "b"], "sampling.label_counts": [0, 0]}, "and one positive"),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_could_only_fail_after_it_was_paid_for_is_refused_at_once(rule: str) -> None:
    changes, text = RULES[rule]
    raw: dict[str, Any] = {"data": {"path": "images"}, "privacy": {"dataset_id": "scans"}}
    for key, value in changes.items():
        section, leaf = key.split(".")
        raw.setdefault(section, {})[leaf] = value
    with pytest.raises(UserError) as caught:
        validate(RunConfig, raw)
    assert text in str(caught.value)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "close"),
    [
        ("privacy.epsilonn", "privacy.epsilon"),
        ("privacy.record", "privacy.records"),
        ("sampling.guidence", "sampling.guidance"),
        ("epsilon", "privacy.epsilon"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
    ],
)
def test_an_unknown_key_suggests_the_close_one(tmp_path: Path, key: str, close: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)\b{key.split('.')[0]}.* is not a setting: did you mean ") as caught:
        load(tmp_path, MINIMAL, (key, "1"))
    assert close.split(".")[0] in str(caught.value)
    if "." in key and key.split(".")[0] != "optimiser":
        assert f"did you mean {close}?" in str(caught.value)


def test_a_key_like_no_other_points_to_the_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="xyzzy is not a setting: `dpldm run --help` lists all settings"):
        load(tmp_path, MINIMAL + "xyzzy: 1\n")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"privacy\.dataset_id is missing.*--privacy\.dataset_id"):
        load(tmp_path, "data: {path: images}\nprivacy: {epsilon: 1}\n")
    with pytest.raises(UserError, match=r"data is missing.*privacy is missing"):
        load(tmp_path, "name: x\n")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("privacy.steps", SECRET),
        ("privacy.steps", "3.5"),
        ("privacy.dataset_id", f"'../{SECRET}'"),
        ("privacy.max_grad_norm", "-1"),
        ("optimizer.adam_beta1", SECRET),
        ("data.channels", "2"),
        ("data.labels", SECRET),
        ("data.labels", f"{{{SECRET}: 1}}"),
        ("sampling.sampler", SECRET),
        ("sampling.eta", ".nan"),
        ("data.window", f"[1, {SECRET}]"),
        ("evaluation.seeds", f"[{SECRET}]"),
    ],
)
def test_a_bad_value_is_refused_by_its_key_and_never_shown(tmp_path: Path, flag: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"^{flag} is not valid: .*\.$") as caught:
        load(tmp_path, MINIMAL, (flag, text))
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_are_numbers_are_asked_for_in_quotes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.labels is not valid: .*in quotes"):
        load(tmp_path, MINIMAL, ("data.labels", "[0, 1]"))


def test_a_value_where_a_section_belongs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name is not a section"):
        load(tmp_path, MINIMAL + "name: x\n", ("name.first", "1"))
    with pytest.raises(UserError, match="privacy is not valid"):
        load(tmp_path, f"data: {{path: images}}\nprivacy: {SECRET}\n")


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (BOMB, r"line 2|not valid YAML"),
        ("data: &d {path: x}\nprivacy: *d\n", "not valid YAML"),
        ("- data\n- privacy\n", "must hold sections"),
        ("just a word", "must hold sections"),
        ("", "must hold sections"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "cannot be read"),
        (b"\x00" * 100, "not valid YAML"),
        ("a" * 1_000_001, "larger than 1 MB"),
        ("data: {path: x", r"not valid YAML \(line 2\)|not valid YAML"),
        ("privacy:\n  epsilon: 1\n  epsilon: 10\n", "a key stands twice in a section, keep one"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: 0x_", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: " + "[" * 1500, "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("1: 2\n", "not valid|not a setting|should be strings"),
    ],
    ids=range(18),
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str | bytes, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load(tmp_path, content)


@pytest.mark.parametrize("name", ["nothing.yaml", "", "no\0path"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read: check the path"):
        load_config(RunConfig, tmp_path / name)


def refusal(call: Callable[[], RunConfig]) -> str | None:
    """The text of the refusal, None if the config was taken. Any other exception passes through."""
    try:
        assert isinstance(call(), RunConfig)
    except UserError as error:
        return str(error)
    return None


# --- whatever comes -----------------------------------------------------------------------------------------------

KEYS = [key for key, _, _ in all_settings(RunConfig)]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(key=st.sampled_from(KEYS), value=values)
@example(key="privacy.records", value=10**400)
def test_any_value_of_any_setting_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    """Never another exception, whatever the value; in the refusal, its key."""
    raw: dict[str, Any] = {"data": {"path": "images"}, "privacy": {"dataset_id": "scans"}}
    *section, leaf = key.split(".")
    target = raw.setdefault(section[0], {}) if section else raw
    target[leaf] = value
    refused = refusal(lambda: validate(RunConfig, raw))
    assert refused is None or (key in refused and "\n" not in refused)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=st.dictionaries(st.sampled_from(["data", "privacy", "sampling", "name", "x"]), values, max_size=4))
def test_any_document_is_loaded_or_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(UserError):  # data.path and privacy.dataset_id are required, and nothing drawn here is both
        load(tmp_path, yaml.safe_dump(document))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="abz:-[]{},&*!?|>'\"%@`#=~<.\\\n\t 0123456789e_+xo\x00\x85\ud800", max_size=40)
    | st.binary(max_size=30)
)
def test_any_bytes_are_loaded_or_refused(tmp_path: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with pytest.raises(UserError):
        load(tmp_path, content)


@settings(max_examples=400, deadline=None)
@given(key=st.sampled_from(KEYS), text=st.text(max_size=30))
def test_any_flag_is_taken_or_refused(key: str, text: str) -> None:
    required = [("data.path", "images"), ("privacy.dataset_id", "scans")]
    refused = refusal(lambda: load_config(RunConfig, None, [*required, (key, text)]))
    assert refused is None or key in refused


@settings(max_examples=100, deadline=None)
@given(
    key=st.sampled_from([key for key in KEYS if key.count(".") == 1]),
    secret=st.text(alphabet="QZXJ", min_size=8, max_size=12),
)
def test_no_refusal_repeats_the_value(key: str, secret: str) -> None:
    required = [("data.path", "images"), ("privacy.dataset_id", "scans")]
    for text in (secret, f"[{secret}]", f"{{{secret}: {secret}}}", f"'{secret}'"):
        refused = refusal(lambda text=text: load_config(RunConfig, None, [*required, (key, text)])) or ""
        assert secret not in refused.replace(f"{key}.{secret}", "")  # an unknown key inside is named as any other
