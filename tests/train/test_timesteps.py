"""The law of timesteps against the law it is the inverse of."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dpldm.train.timesteps import Timesteps

parts = st.lists(
    st.tuples(st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.01, 10)).map(
        lambda p: (p[0], min(1.0, p[0] + p[1]), p[2])
    ),
    min_size=1,
    max_size=4,
)


@given(shares=parts, count=st.integers(1, 1000))
def test_shares_of_evenly_spread_numbers_are_those_asked_for(
    shares: list[tuple[float, float, float]], count: int
) -> None:
    units = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = Timesteps(count, tuple(shares)).at(units)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < count
    expected = torch.zeros(count, dtype=torch.float64)
    for start, end, share in shares:
        first = min(int(start * count), count - 1)
        last = max(first + 1, int(end * count))
        expected[first:last] += share / sum(each for _, _, each in shares) / (last - first)
    found = drawn.bincount(minlength=count) / 20_000
    assert float((found.cumsum(0) - expected.cumsum(0)).abs().max()) < 1e-3


def test_by_default_every_timestep_is_as_frequent() -> None:
    units = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert Timesteps(1000).at(units).bincount().tolist() == [10] * 1000


def test_the_largest_and_smallest_numbers_stay_inside() -> None:
    extremes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert Timesteps(1000, ((0.2, 0.4, 1.0), (0.5, 0.8, 0.3))).at(extremes).tolist() == [200, 799]
