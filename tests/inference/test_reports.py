"""Prompts, ends and texts of reports."""

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig
from chexmix_jax.inference.reports import (
    generate_ids,
    read_report,
    report_options,
    report_prompts,
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
  prompts = report_prompts(PUBLISHED, np.array([[50368, 50369], [58559, 58560]]))
  assert prompts.dtype == np.int32
  np.testing.assert_array_equal(
      prompts, [[50295, 50368, 50369, 50296, 50256], [50295, 58559, 58560, 50296, 50256]]
  )


def test_each_layout_ends_its_reports_in_its_own_way():
  assert report_options(PUBLISHED) == GenerateConfig(
      max_new=200, stop_ids=(50256,), min_new=5, text_only=False
  )
  ours = Vocabulary.sentencepiece(30, 20)
  assert report_options(ours) == GenerateConfig(max_new=200, stop_ids=(ours.boi,))


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
