import time

import pytest

from pmmrec.data.wording import MAX_CHARACTERS, cleaned


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        (" \t\r\n\u00a0\u3000", None),
        ("\x00", None),
        ("  red \n\t shirt\u00a0", "red shirt"),
        ("Tom &amp; Jerry &lt;3 &#39;s", "Tom & Jerry <3 's"),
        ("a\x00b\ud800c", "abc"),
        ("&#0;x", "\ufffdx"),
        ("cafe\u0301", "caf\u00e9"),
        ("\U0001f600 \u05e9\u05dc\u05d5\u05dd", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"),
    ],
)
def test_texts_are_cleaned(text: str | None, expected: str | None) -> None:
    assert cleaned(text) == expected


def test_cleaning_twice_changes_nothing_more() -> None:
    once = cleaned("  &lt;b&gt; e\u0301 \x00 x ")
    assert cleaned(once) == once


def test_long_texts_are_cut() -> None:
    assert cleaned("x" * 1_000_000) == "x" * MAX_CHARACTERS


def test_a_hostile_run_of_accents_takes_no_time() -> None:
    start = time.process_time()
    assert len(cleaned("a" + "\u0301\u0327" * 500_000) or "") <= MAX_CHARACTERS
    assert time.process_time() - start < 1
