"""One file per checkpoint: what goes in comes out, and a kill leaves the old file or the new one."""

import errno
import os
import pickle
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.train.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

names = st.text("abc./_-", min_size=1, max_size=8).filter(lambda name: name.strip("/"))
json_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5) | st.lists(st.integers())


@settings(deadline=None, max_examples=60)
@given(
    groups=st.dictionaries(
        st.sampled_from(["network", "average", "optimizer"]),
        st.dictionaries(names, st.lists(st.floats(width=32), max_size=4), min_size=1, max_size=3),
        min_size=1,
    ),
    facts=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, groups: dict[str, dict[str, list[float]]], facts: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    tensors = {group: {name: torch.tensor(v) for name, v in members.items()} for group, members in groups.items()}
    save_checkpoint(path, tensors, facts)
    loaded, loaded_facts = load_checkpoint(path)
    assert loaded_facts == facts
    assert {group: set(members) for group, members in loaded.items()} == {g: set(m) for g, m in groups.items()}
    for group, members in tensors.items():
        for name, tensor in members.items():
            assert loaded[group][name].numpy().tobytes() == tensor.numpy().tobytes(), "bit for bit, NaN included"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_kinds_and_layouts_of_tensors_survive(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).view(3, 4)
    group = {
        "transposed": base.T,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(base.clone()),
        "half": base.half(),
        "integers": torch.tensor([1, 2]),
        "scalar": torch.tensor(3.5),
    }
    save_checkpoint(tmp_path / "c", {"g": group}, {})
    loaded = load_checkpoint(tmp_path / "c")[0]["g"]
    for name, tensor in group.items():
        assert torch.equal(loaded[name], tensor.detach())
        assert loaded[name].dtype == tensor.dtype


def test_a_checkpoint_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_checkpoint(tmp_path / "c", {"g": {"x": torch.zeros(1)}}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_file(
    moment: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"g": {"x": torch.tensor([1.0])}}, {"step": 1})

    def fail(*_: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, fail)
        with pytest.raises(type(failure)):
            save_checkpoint(path, {"g": {"x": torch.tensor([2.0])}}, {"step": 2})
    groups, facts = load_checkpoint(path)
    assert (groups["g"]["x"].item(), facts["step"]) == (1.0, 1)
    save_checkpoint(path, {"g": {"x": torch.tensor([3.0])}}, {"step": 3})
    assert load_checkpoint(path)[1]["step"] == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "no facts", "bad facts"])
def test_what_is_no_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"g": {"x": torch.zeros(100)}}, {"step": 1})
    whole = path.read_bytes()
    path.unlink()
    content = {
        "empty": b"",
        "cut": whole[:-1],
        "text": b"no checkpoint at all",
        "pickle": pickle.dumps({"x": 1}),
        "no facts": save({"g/x": torch.zeros(1)}),
        "bad facts": save({"g/x": torch.zeros(1)}, metadata={"facts": "{"}),
    }
    path.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"c\.safetensors is damaged: delete it to start this stage again"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"restore it from a copy \(deleting it would lose updates"):
        load_checkpoint(path, paid_for=True)


def test_what_is_loaded_is_held_once_and_is_not_the_file(tmp_path: Path) -> None:
    """Not beside the bytes of the file, which for a large network are gigabytes; and the file may be replaced."""
    path, count = tmp_path / "c", 1_000_000
    save_checkpoint(path, {"g": {"x": torch.ones(count)}}, {"step": 1})
    tracemalloc.start()
    try:
        groups, _ = load_checkpoint(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count, "bytes of Python, beside the tensor's own 4 for each number"
    with path.open("r+b") as file:  # in place, where a mapping would show it
        file.seek(-4 * count, os.SEEK_END)
        file.write(bytes(4 * count))
    assert groups["g"]["x"].eq(1).all()
    assert load_checkpoint(path)[0]["g"]["x"].eq(0).all()


def test_a_checkpoint_out_of_reach_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(tmp_path)


# --- the optimizer ------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9)),
    lambda p: torch.optim.AdamW(p, lr=0.1),
    lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.SGD(p, lr=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_restored_optimizer_takes_the_same_next_steps(
    make: Callable[[Any], torch.optim.Optimizer], tmp_path: Path
) -> None:
    model = network()
    optimizer, keys = make(model.parameters()), [name for name, _ in model.named_parameters()]
    for number in range(3):
        step(model, optimizer, number)
    save_checkpoint(
        tmp_path / "c", {"network": dict(model.named_parameters()), "optimizer": optimizer_tensors(optimizer, keys)}, {}
    )
    groups, _ = load_checkpoint(tmp_path / "c")
    other = network()
    restored = make(other.parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(groups["network"][name])
    restore_optimizer(restored, keys, groups.get("optimizer", {}))
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, restored, number)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_fresh_optimizer_has_nothing_to_save() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    assert optimizer_tensors(optimizer, [name for name, _ in model.named_parameters()]) == {}


def test_names_that_begin_alike_are_kept_apart() -> None:
    """`a` and `a/b` share a prefix only as text."""
    first, second = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 2.0))
    optimizer = torch.optim.Adam([first, second])
    for parameter in (first, second):
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, ["w", "w2"])
    fresh: torch.optim.Optimizer = torch.optim.Adam([first, second])
    restore_optimizer(fresh, ["w", "w2"], tensors)
    for parameter in (first, second):
        state: dict[str, Tensor] = optimizer.state[parameter]
        assert {k: v.tolist() for k, v in fresh.state[parameter].items()} == {k: v.tolist() for k, v in state.items()}
