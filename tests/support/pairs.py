"""Pairs of scores with known differences, known flips or a known true loss."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from harness.stats import Pairs

# Of each question: the score before, the score after, its image, which of two tasks it is of.
scores_of_pairs = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 4), st.booleans()
    ),
    min_size=2,
    max_size=30,
)


def pairs_of(
    differences: np.ndarray | list[float], images: list[int] | None = None, tasks: list[str] | None = None
) -> Pairs:
    """Pairs with the given differences."""
    n = len(differences)
    second = np.asarray(differences, float)
    return Pairs(tasks or ["t"] * n, list(range(n)), list(images or range(n)), np.zeros(n), second)


def pairs_with_flips(n: int, lost: int, gained: int = 0) -> Pairs:
    return pairs_of([-1.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))


def drawn_pairs(random: np.random.Generator, images: int, broken: float, mended: float, tasks: int = 2) -> Pairs:
    """Three questions an image; images differ in how hard they are and in how much pruning hurts them.

    The true loss is (broken - mended) / 2: half of the questions are answered before, half are not.
    """
    image = np.arange(tasks * images).repeat(3)
    ease, hurt = random.random(tasks * images)[image], 2 * random.random(tasks * images)[image]
    first = random.random(len(image)) < ease
    flip = random.random(len(image)) < np.where(first, broken, mended) * hurt
    task = (image // images).tolist()
    return Pairs(list(task), list(range(len(image))), image.tolist(), first.astype(float), (first ^ flip).astype(float))
