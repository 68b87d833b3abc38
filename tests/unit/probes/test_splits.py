"""Splits: groups stay whole, strata keep their shares, the reference's own split is reproduced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from sparse_probing.errors import DataError
from sparse_probing.probes.splits import group_split, reference_split, shared_groups


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=80), st.integers(0, 9))
def test_groups_never_cross_a_split(rows: list[tuple[int, int]], seed: int) -> None:
    groups, strata = (np.array(column) for column in zip(*rows, strict=True))
    codes = group_split(groups, strata, rng=seed)
    assert shared_groups(groups, codes) == 0
    assert (codes[groups == groups[0]] == codes[0]).all()
    np.testing.assert_array_equal(codes, group_split(groups, strata, rng=seed))


def test_every_stratum_has_its_shares() -> None:
    groups = np.arange(1000) // 2
    strata = groups % 5
    codes = group_split(groups, strata, (0.6, 0.2, 0.2), rng=1)
    for stratum in range(5):
        shares = np.bincount(codes[strata == stratum], minlength=3) / 200
        np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.02)


def test_three_groups_a_stratum_reach_all_splits_and_two_reach_train_and_test() -> None:
    codes = group_split(np.arange(9), np.repeat([0, 1, 2], 3), rng=0)
    assert [sorted(codes[part : part + 3]) for part in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert sorted(group_split(np.arange(2), rng=0)) == [0, 2]


def test_uneven_groups_still_fill_the_fractions() -> None:
    groups = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 30, 60))
    shares = np.bincount(group_split(groups, rng=2), minlength=3) / len(groups)
    np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.05)


def test_reference_split_is_that_of_scikit_learn() -> None:
    train, test = train_test_split(np.arange(101), test_size=0.3, random_state=42)
    codes = reference_split(101)
    np.testing.assert_array_equal(np.flatnonzero(codes == 2), np.sort(test))
    np.testing.assert_array_equal(np.flatnonzero(codes == 0), np.sort(train))
    carved = reference_split(101, validation_fraction=0.25)
    np.testing.assert_array_equal(carved == 2, codes == 2)
    assert (carved == 1).sum() == round(0.25 * len(train))


def test_a_reference_split_shares_groups_and_says_so() -> None:
    assert shared_groups(np.arange(100) // 5, reference_split(100)) > 0


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_bad_fractions_are_refused(fractions) -> None:
    with pytest.raises(DataError, match="fractions"):
        group_split(np.arange(5), fractions=fractions)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="strata"):
        group_split(np.arange(5), np.arange(4))
    with pytest.raises(DataError, match="2"):
        reference_split(1)
