"""What an export says of a form that could not be made."""

from __future__ import annotations

import pytest

from mapsage_kaggle.engine.jobs.export import _reason
from mapsage_kaggle.errors import JobError
from mapsage_kaggle.outside import MAX_SHOWN


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such size\nat all"), "ValueError: no such size"),
        (KeyError(), "KeyError: no message"),
        (JobError("The logits differ."), "The logits differ."),
    ],
)
def test_a_form_s_reason_is_the_first_line_of_the_error(error: Exception, said: str) -> None:
    assert _reason(error) == said


def test_a_reason_of_pages_is_cut_short() -> None:
    assert len(_reason(RuntimeError("Given input size: " + "(s73 + 1)//2 * " * 4000))) <= MAX_SHOWN + 20
