import unicodedata

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.metrics.words import RULES, Pair, cut, cut_pairs

TEXT = "FINDINGS: The heart's size is normal.No follow-up (1.5 cm, 1,200 mL)... 50% - and/or ___"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("lower_no_punctuation",
         "findings the heart's size is normal no follow-up 1.5 cm 1,200 ml 50 and or"),
        ("whitespace", TEXT),
        ("lower_alphanumeric",
         "findings the heart s size is normal no follow up 1 5 cm 1 200 ml 50 and or"),
    ],
)  # fmt: skip
def test_rules(rule, words):
  assert list(cut(TEXT, rule)) == words.split(" ")
  # Words that were cut stay as they are.
  assert cut(" ".join(cut(TEXT, rule)), rule) == cut(TEXT, rule)
  for empty in ("", " \n\t"):
    assert cut(empty, rule) == ()


def test_the_default_keeps_letters_of_all_languages_and_drops_marks():
  assert cut(TEXT) == cut(TEXT, "lower_no_punctuation")
  assert cut("Pulmón «derecho», Größe") == ("pulmón", "derecho", "größe")
  assert cut(unicodedata.normalize("NFD", "Pulmón")) == ("pulmón",)
  assert cut("-1. a- -b --c 'd' e. .5 6.") == ("1", "a", "b", "c", "d", "e", "5", "6")


def test_pairs_have_one_reference_or_several():
  pairs = cut_pairs(["A b.", ""], ["a", ["b", "C, d"]])
  assert pairs == [Pair(("a", "b"), (("a",),)), Pair((), (("b",), ("c", "d")))]
  assert cut_pairs(np.array(["A b.", ""]), [np.array(["a"]), ("b", "C, d")]) == pairs


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a", "b"], ["a", None], r"references\[1\] lacks a text"),
        (["a", "b"], ["a", []], r"references\[1\] lacks a text"),
        (["a", "b"], ["a", float("nan")], r"references\[1\] lacks a text"),
        (["a", "b"], [["a", None], "b"], r"references\[0\] lacks a text"),
        (["a", None], ["a", "b"], r"candidates\[1\] is not a text"),
        (["a", "b"], ["a"], "2 candidates and references of 1 items"),
        ([], [], "no candidates"),
        ("ab", "ab", "one text"),
    ],
)
def test_missing_texts(candidates, references, message):
  with pytest.raises(UserError, match=message):
    cut_pairs(candidates, references)


def test_unknown_rules():
  with pytest.raises(UserError, match=f"'ptb' .* use one of {', '.join(RULES)}"):
    cut_pairs(["a"], ["a"], "ptb")
