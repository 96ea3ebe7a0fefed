from __future__ import annotations

import pytest

from jaxwrap.train.photographs import EVALUATION, FINE_TUNING, photograph_paths


def test_nothing_is_trained_on_what_is_reported() -> None:
    assert not set(EVALUATION) & set(FINE_TUNING)
    assert all(path.is_file() for path in photograph_paths(EVALUATION + FINE_TUNING))


def test_a_picture_that_is_not_bundled_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"does not bundle lena\.png"):
        photograph_paths(("lena.png", "coffee.png"))
