"""Splits into train, validation and test: by group, and the reference's random split.

Codes everywhere in `probes`: 0 train, 1 validation, 2 test. No probe is fitted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
Codes = NDArray[np.int8]


def group_split(
    groups: ArrayLike,
    strata: ArrayLike | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    rng: np.random.Generator | int = 0,
) -> Codes:
    """Assign whole groups to train, validation and test, each stratum in the same proportions.

    Within a stratum, groups come in random order and each goes to the split that is furthest behind its share of the
    *samples*; where a stratum has at least as many groups as splits, no split goes without one.

    Parameters
    ----------
    groups:
        (n_samples,) what must not be split: document, pair, person, project.
    strata:
        (n_samples,) e.g. labels or sources. A group belongs to the stratum most of its samples have.
    fractions:
        Shares of train, validation and test.
    rng:
        Generator or seed.

    Returns
    -------
    (n_samples,) int8 codes.

    Raises
    ------
    DataError
        If lengths differ or the fractions are not three non-negative parts of 1 with a training part.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import group_split
    >>> documents = np.arange(300) // 3
    >>> split = group_split(documents, rng=0)
    >>> np.bincount(split).tolist()
    [180, 60, 60]
    >>> all(len(set(split[documents == one])) == 1 for one in range(100))
    True
    """
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (3,) or shares.min() < 0 or shares[0] <= 0 or abs(shares.sum() - 1) > 1e-9:
        raise DataError(f"Split fractions are {tuple(fractions)}; expected train, validation and test parts of 1.")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n_samples = len(group)
    if n_samples == 0:
        return np.empty(0, np.int8)
    stratum = np.zeros(n_samples, np.intp)
    if strata is not None:
        stratum = np.unique(np.asarray(strata), return_inverse=True)[1]
        if len(stratum) != n_samples:
            raise DataError(f"{n_samples} groups with {len(stratum)} strata; expected one each.")
    generator = np.random.default_rng(rng)
    sizes = np.bincount(group)
    votes = np.bincount(group * (stratum.max() + 1) + stratum, minlength=len(sizes) * (stratum.max() + 1))
    stratum_of_group = votes.reshape(len(sizes), -1).argmax(axis=1)
    code_of_group = np.zeros(len(sizes), np.int8)
    # Between equals, training before test before validation: a probe without a test says nothing.
    used = np.array([code for code in (TRAIN, TEST, VALIDATION) if shares[code] > 0])
    for value in np.unique(stratum_of_group):
        members = generator.permutation(np.flatnonzero(stratum_of_group == value))
        behind = shares * sizes[members].sum()
        for rank, member in enumerate(members):
            left = len(members) - rank
            empty = [code for code in used if not np.any(code_of_group[members[:rank]] == code)] if left <= 3 else []
            # With as many splits still empty as groups left, those come first.
            choice = empty[0] if 0 < len(empty) == left < len(members) else int(used[np.argmax(behind[used])])
            code_of_group[member] = choice
            behind[choice] -= sizes[member]
    return code_of_group[group]


def reference_split(n_samples: int, *, validation_fraction: float = 0.0, seed: int = 42) -> Codes:
    """The reference's random 70/30 split of samples (seed 42), groups ignored: for comparison with its numbers only.

    The 70/30 partition is that of scikit-learn's ``train_test_split(test_size=0.3, random_state=seed)``. The reference
    has no validation part; where one is asked for, it is the last `validation_fraction` of the shuffled training part, so
    that the test part stays the reference's own.

    Raises
    ------
    DataError
        If there are fewer than two samples.
    """
    from sklearn.model_selection import train_test_split

    if n_samples < 2:
        raise DataError(f"{n_samples} samples; a train and test split needs at least 2.")
    train, test = train_test_split(np.arange(n_samples), test_size=0.3, random_state=seed)
    codes = np.zeros(n_samples, np.int8)
    codes[test] = TEST
    n_validation = round(validation_fraction * len(train))
    if n_validation:
        codes[train[-n_validation:]] = VALIDATION
    return codes


def shared_groups(groups: ArrayLike, split: ArrayLike) -> int:
    """Number of groups with samples in more than one split: 0 for an honest split."""
    pairs = np.unique(np.stack([np.unique(np.asarray(groups), return_inverse=True)[1], np.asarray(split)]), axis=1)
    return int(np.count_nonzero(np.bincount(pairs[0].astype(np.intp)) > 1)) if pairs.size else 0
