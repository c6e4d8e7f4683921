"""Prompts, ends and texts of reports."""

import numpy as np
import pytest

from chexmix_jax.data.documents import Text, make_document, parse_forms
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig
from chexmix_jax.inference.reports import (
    generate_ids,
    make_prompt,
    prompt_texts,
    read_report,
    report_options,
)
from chexmix_jax.tokenizers.vocabulary import Vocabulary

PUBLISHED = Vocabulary.published()


class Spelling:
  """A text tokenizer that writes ids as numbers."""

  vocab_size = 50295
  fingerprint = "spelling"

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return " ".join(str(i) for i in ids)


def test_a_prompt_is_the_image_between_its_special_ids():
  prompt = make_prompt(PUBLISHED, {"image": np.array([50368, 50369])})
  assert prompt.dtype == np.int32
  np.testing.assert_array_equal(prompt, [50295, 50368, 50369, 50296, 50256])


def test_a_prompt_is_the_beginning_of_the_document_that_is_trained_on():
  vocabulary = Vocabulary.sentencepiece(30, 20)
  codes, question, answer = np.array([3, 1, 4]), np.array([5, 6]), np.array([7])
  for names, parts in (
      (("image", "question"), [codes, question]),
      (("prior", "frontal", "lateral"), [question, codes, codes[:1]]),
  ):
    none = np.zeros(0, np.int32)
    document = make_document(
        [Text(part, none) if part is question else part for part in (*parts, Text(answer, none))],
        vocabulary, 100,
    )  # fmt: skip
    ids = {
        name: part if part is question else vocabulary.codes_to_ids(part)
        for name, part in zip(names, parts, strict=True)
    }
    np.testing.assert_array_equal(make_prompt(vocabulary, ids), document.tokens[:-1])


def test_texts_of_a_prompt_are_cleaned_as_those_of_records():
  (form,) = parse_forms("(image) (indication) (question) report")
  given = {"indication": ["1. Cough ___ .", ""], "question": ["1.  Is it?", "A"]}
  assert prompt_texts(form, given, 2) == {
      "indication": ["Cough.", ""], "question": ["1. Is it?", "A"]
  }  # fmt: skip


@pytest.mark.parametrize(
    ("documents", "prompts", "message"),
    [
        ("image (question) answer", {}, "list of 2 texts, .* for each of question .* 'question'"),
        ("image (question) answer", {"question": ["a"]}, "mend its 'question'"),
        ("image (question) answer", {"question": "ab"}, "mend its 'question'"),
        ("image report", {"indication": ["a", "b"]}, "each of nothing .* 'indication'"),
        ("frontal lateral report", {}, "must show one picture"),
        ("question answer", {"question": ["a", "b"]}, "must show one picture"),
    ],
)
def test_a_prompt_that_lacks_something_is_refused(documents, prompts, message):
  with pytest.raises(UserError, match=message):
    prompt_texts(parse_forms(documents)[0], prompts, 2)


def test_each_layout_ends_its_reports_in_its_own_way():
  assert report_options(PUBLISHED) == GenerateConfig(
      max_new=200, stop_ids=(50256,), min_new=5, text_only=False
  )
  ours = Vocabulary.sentencepiece(30, 20)
  assert report_options(ours) == GenerateConfig(max_new=200, stop_ids=(ours.boi,))
  answer = ("image", "question", "answer")
  assert report_options(ours, answer) == report_options(ours)
  # A short answer may end at once, and ends as training here has it.
  assert report_options(PUBLISHED, answer) == GenerateConfig(max_new=200, stop_ids=(50295, 50256))


@pytest.mark.parametrize(
    ("new", "text"),
    [
        ([5, 6, 50256], "5 6"),
        ([5, 6, 50295, 7, 8], "5 6"),
        ([50295, 7], ""),
        ([5, 50400, 50367, 50300, 6], "5 6"),
        ([5, 6], "5 6"),
    ],
)
def test_a_report_is_the_text_before_the_next_image(new, text):
  assert read_report(PUBLISHED, Spelling(), np.array(new)) == text


def test_reports_are_cut_where_the_pytorch_implementation_cuts(shared, golden_params):
  _, vocabulary, _ = golden_params
  golden = np.load(shared / "parity/gen_small.npz")
  for name in golden["names"].tolist():
    # Image codes were clamped to 299, a special id, which is not spelt.
    post = golden[f"{name}/post"]
    expected = post[(post < vocabulary.num_text) & (post != vocabulary.eot)]
    text = read_report(vocabulary, Spelling(), golden[f"{name}/new"])
    assert text == " ".join(map(str, expected)), name


def test_prompts_of_any_length_go_together(model, forward):
  prompts = [np.array([9, 8, 7]), np.array([5]), np.arange(17), np.array([3, 2]), np.arange(9)]
  stop = model.vocabulary.boi
  options = GenerateConfig(max_new=4, stop_ids=(stop,), text_only=False)
  new = generate_ids(model.config, model.vocabulary, model.params, prompts, options, 2)
  for prompt, found in zip(prompts, new, strict=True):
    expected: list[int] = []
    while len(expected) < 4 and stop not in expected:
      expected.append(int(forward([*prompt, *expected])[-1].argmax()))
    assert found.tolist() == expected


def test_an_empty_prompt_is_refused(model):
  options = GenerateConfig(max_new=4, stop_ids=(model.vocabulary.boi,))
  prompts = [np.array([1]), np.array([], int)]
  with pytest.raises(UserError, match="prompt is empty"):
    generate_ids(model.config, model.vocabulary, model.params, prompts, options, 2)
