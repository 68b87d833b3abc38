"""Splits by group, near-duplicates, shared rows with a floor of positives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_probing.datasets.sampling import (
    NearDuplicates,
    assign_splits,
    order_key,
    random_positions,
    sample_rows,
    split_quotas,
)
from sparse_probing.errors import DataError
from sparse_probing.schemas import SPLITS

FRACTIONS = (0.6, 0.2, 0.2)


@given(n=st.integers(3, 5000), cut=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)))
def test_quotas_add_up_and_leave_no_split_empty(n: int, cut: tuple[float, float]) -> None:
    first = cut[0]
    second = (1 - first) * cut[1]
    quotas = split_quotas(n, (first, second, 1 - first - second))
    assert sum(quotas) == n
    assert min(quotas) >= 1


def test_quotas_by_hand() -> None:
    assert split_quotas(10, FRACTIONS) == (6, 2, 2)
    assert split_quotas(3, FRACTIONS) == (1, 1, 1)
    assert split_quotas(62, FRACTIONS) == (37, 13, 12)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_class_has_groups_in_every_split_in_any_order(sizes: list[int], seed: int, shuffle: object) -> None:
    groups = {f"{label}-{i}": {str(label)} for label, size in enumerate(sizes) for i in range(size)}
    splits = assign_splits(groups, FRACTIONS, seed=seed)
    assert set(splits) == set(groups)
    for label, size in enumerate(sizes):
        counts = [sum(splits[f"{label}-{i}"] == split for i in range(size)) for split in SPLITS]
        assert tuple(counts) == split_quotas(size, FRACTIONS)
    names = list(groups)
    shuffle.shuffle(names)  # type: ignore[attr-defined]
    assert assign_splits({name: groups[name] for name in names}, FRACTIONS, seed=seed) == splits


def test_a_group_of_two_classes_has_one_split() -> None:
    groups = {"both": {"a", "b"}, **{f"a{i}": {"a"} for i in range(3)}, **{f"b{i}": {"b"} for i in range(3)}}
    for seed in range(20):
        splits = assign_splits(groups, FRACTIONS, seed=seed)
        for label in "ab":
            assert {splits[name] for name in groups if label in groups[name]} == set(SPLITS)


def test_too_few_groups_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="Class 'rare' has 2 projects; at least 3"):
        assign_splits({"x": {"rare"}, "y": {"rare"}}, FRACTIONS, seed=0, unit="projects")


def test_shared_groups_that_leave_a_split_empty_are_refused() -> None:
    # The three groups of b are the first three of a's four, each class's scarcest first: this can be met.
    groups = {"g": {"a", "b"}, "h": {"a", "b"}, "i": {"a", "b"}, "j": {"a"}}
    splits = assign_splits(groups, FRACTIONS, seed=1)
    assert {splits[name] for name in "ghi"} == set(SPLITS)
    # Seven classes on seven groups as the lines and points of the Fano plane: no three-colouring serves every line.
    lines = ("012", "034", "056", "135", "146", "236", "245")
    fano = {point: {line for line in lines if point in line} for point in "0123456"}
    with pytest.raises(DataError, match="its 3 groups are shared with other classes"):
        assign_splits(fano, FRACTIONS, seed=0)


def test_seeds_differ() -> None:
    groups = {str(i): {"a"} for i in range(30)}
    assert assign_splits(groups, FRACTIONS, seed=0) != assign_splits(groups, FRACTIONS, seed=1)
    assert order_key(0, "a", "bc") != order_key(0, "ab", "c")


SENTENCE = "The committee will meet again in the spring to discuss the budget of the northern harbour."


@pytest.mark.parametrize(
    ("text", "is_new"),
    [
        (SENTENCE, False),
        (SENTENCE.upper(), False),
        (SENTENCE.replace(" ", "  ").replace(".", "!"), False),
        (SENTENCE.replace("spring", "autumn"), False),
        ("He said: " + SENTENCE + " Nobody else spoke at all.", False),
        ("A quite different sentence about boats, nets, and the price of herring in winter.", True),
        ("Short.", True),
    ],
)
def test_repeats_are_recognised(text: str, is_new: bool) -> None:
    seen = NearDuplicates()
    assert seen.add(SENTENCE)
    assert seen.add(text) is is_new
    assert seen.add(text) is False


def test_short_texts_repeat_only_when_equal() -> None:
    seen = NearDuplicates()
    assert [seen.add(text) for text in ("Yes.", "No.", "yes", "---", "+++", "---")] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def make_rows(seed: int, n: int, prevalences: list[float]) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    positive = generator.random((n, len(prevalences))) < np.array(prevalences)
    allowed = generator.random((n, len(prevalences))) < 0.95
    split = generator.choice(3, size=n, p=FRACTIONS)
    priority = generator.integers(0, 1 << 63, size=n, dtype=np.uint64)
    return positive, allowed, split, priority


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), max_rows=st.integers(1500, 4000), floor=st.sampled_from([0.05, 0.1, 0.2, 0.4]))
def test_rows_keep_their_promises(seed: int, max_rows: int, floor: float) -> None:
    prevalences = [0.5, 0.1, 0.03, 0.9]
    positive, allowed, split, priority = make_rows(seed, 5000, prevalences)
    names = [str(p) for p in prevalences]
    sample = sample_rows(
        positive, allowed, split, priority, features=names, max_rows=max_rows, fractions=FRACTIONS, floor=floor
    )
    assert len(np.unique(np.concatenate(sample.rows))) <= max_rows
    for number, rows in enumerate(sample.rows):
        assert len(np.unique(rows)) == len(rows)
        assert allowed[rows, number].all()
        for index in range(3):
            labels = positive[rows[split[rows] == index], number]
            assert labels.mean() >= floor - 1e-9
    common = set(sample.rows[0].tolist()) & set(sample.rows[3].tolist())
    assert len(common) > 0.5 * min(len(sample.rows[0]), len(sample.rows[3])), "features share rows"


def test_rows_do_not_depend_on_order() -> None:
    positive, allowed, split, priority = make_rows(3, 3000, [0.3, 0.05])
    shuffled = np.random.default_rng(0).permutation(3000)
    options = {"features": ["a", "b"], "max_rows": 900, "fractions": FRACTIONS, "floor": 0.2}
    straight = sample_rows(positive, allowed, split, priority, **options)
    turned = sample_rows(positive[shuffled], allowed[shuffled], split[shuffled], priority[shuffled], **options)
    for here, there in zip(straight.rows, turned.rows, strict=True):
        np.testing.assert_array_equal(here, np.sort(shuffled[there]))


def test_topped_up_positives_and_negatives_stay_random_samples() -> None:
    """A second property, independent of the feature given its class, keeps its rate among positives and negatives."""
    positive, allowed, split, priority = make_rows(5, 60_000, [0.02, 0.03, 0.5])
    allowed[:] = True
    rows = sample_rows(
        positive,
        allowed,
        split,
        priority,
        features=["a", "b", "c"],
        max_rows=9000,
        fractions=FRACTIONS,
        floor=0.2,
    ).rows[2]
    # 5 standard errors of a rate of 0.02 over some 2,500 rows: had the top-up of `a` leaked in, the rate were 0.2.
    for side in (True, False):
        rate = positive[rows[positive[rows, 2] == side], 0].mean()
        assert rate == pytest.approx(0.02, abs=0.014)


def test_a_feature_without_positives_is_refused_by_name() -> None:
    positive, allowed, split, priority = make_rows(1, 500, [0.5, 0.0])
    with pytest.raises(DataError, match="Feature 'none' has no positive row in train"):
        sample_rows(
            positive,
            allowed,
            split,
            priority,
            features=["half", "none"],
            max_rows=100,
            fractions=FRACTIONS,
            floor=0.2,
        )


def test_random_positions_are_distinct_and_within() -> None:
    for seed in range(20):
        positions = random_positions(5, 9, 2, seed=seed, key=("x",))
        assert len(set(positions.tolist())) == 2
        assert positions.min() >= 5
        assert positions.max() < 9
    assert random_positions(5, 7, 10, seed=0, key=()).tolist() == [5, 6]
