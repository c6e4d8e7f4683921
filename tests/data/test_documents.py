import numpy as np
import pytest

from chexmix_jax.data.documents import (
    IMAGE,
    SPECIAL,
    TEXT,
    Form,
    Text,
    make_document,
    parse_forms,
    parse_written_form,
)
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.sentencepiece(num_text=10, num_codes=8)
BOI, EOI, EOT, OFFSET = 10, 11, 12, 13
CODES = np.array([0, 7, 3, 1], np.int32)
IMAGE_IDS = [OFFSET, OFFSET + 7, OFFSET + 3, OFFSET + 1]
# Two sentences, of two ids and of one.
REPORT = Text(np.array([5, 6, 9], np.int32), np.array([2, 3], np.int32))
PRIOR = Text(np.array([1, 2, 3, 4], np.int32), np.array([1, 4], np.int32))


def test_image_and_report_are_the_published_document():
  document = make_document([CODES, REPORT], VOCABULARY, 100)
  np.testing.assert_array_equal(document.tokens, [BOI, *IMAGE_IDS, EOI, EOT, 5, 6, 9])
  np.testing.assert_array_equal(document.targets, [*IMAGE_IDS, EOI, EOT, 5, 6, 9, BOI])
  np.testing.assert_array_equal(
      document.modality, [SPECIAL] + [IMAGE] * 4 + [SPECIAL] * 2 + [TEXT] * 3
  )
  np.testing.assert_array_equal(
      document.target_modality, [IMAGE] * 4 + [SPECIAL] * 2 + [TEXT] * 3 + [SPECIAL]
  )
  np.testing.assert_array_equal(document.part, [IMAGE] * 6 + [TEXT] * 4)
  assert document.tokens.dtype == document.targets.dtype == np.int32


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([REPORT, CODES], [EOT, 5, 6, 9, BOI, *IMAGE_IDS, EOI, BOI]),
        ([CODES, CODES[:1], REPORT],
         [BOI, *IMAGE_IDS, EOI, BOI, OFFSET, EOI, EOT, 5, 6, 9, BOI]),
        ([PRIOR, CODES, REPORT],
         [EOT, 1, 2, 3, 4, BOI, *IMAGE_IDS, EOI, EOT, 5, 6, 9, BOI]),
        ([CODES], [BOI, *IMAGE_IDS, EOI, BOI]),
        ([REPORT], [EOT, 5, 6, 9, BOI]),
    ],
)  # fmt: skip
def test_parts_come_in_any_order(parts, expected):
  document = make_document(parts, VOCABULARY, 100)
  np.testing.assert_array_equal(document.tokens, expected[:-1])
  np.testing.assert_array_equal(document.targets, expected[1:])


@pytest.mark.parametrize(("length", "last", "target"), [(9, 6, 9), (8, 5, 6), (10, 9, BOI)])
def test_a_cut_report_ends_after_a_sentence_and_does_not_teach_its_end(length, last, target):
  document = make_document([CODES, REPORT], VOCABULARY, length)
  assert document.tokens[-1] == last and document.targets[-1] == target
  assert document.target_modality[-1] == (SPECIAL if target == BOI else TEXT)


def test_a_report_before_an_image_is_cut_and_the_image_is_whole():
  document = make_document([REPORT, CODES], VOCABULARY, 9)
  np.testing.assert_array_equal(document.tokens, [EOT, 5, 6, BOI, *IMAGE_IDS, EOI])


def test_a_prior_report_leaves_room_for_the_report():
  # Of 5 tokens the prior may have 2, which end within its second sentence.
  document = make_document([PRIOR, CODES, REPORT], VOCABULARY, 13)
  np.testing.assert_array_equal(document.tokens, [EOT, 1, BOI, *IMAGE_IDS, EOI, EOT, 5, 6, 9])


def test_lengths_by_form_are_those_of_the_documents():
  for form, parts in (
      (Form(("image", "report")), [CODES, REPORT]),
      (Form(("prior", "frontal", "lateral", "report")), [PRIOR, CODES, CODES, REPORT]),
      (Form(("image",)), [CODES]),
  ):
    length = form.length(4, {"prior": np.array([4]), "report": np.array([3])})
    assert np.ravel(length).tolist() == [len(make_document(parts, VOCABULARY, 100).tokens)]
    shortest = make_document(parts, VOCABULARY, form.min_context(4))
    assert len(shortest.tokens) == form.min_context(4)


def test_a_prompt_is_where_its_tokens_are_and_the_eot_after_it():
  parts = [CODES[:2], PRIOR, REPORT]
  document = make_document(parts, VOCABULARY, 100, [False, True, False])
  plain = make_document(parts, VOCABULARY, 100)
  assert not plain.is_prompt.any() and plain.is_prompt.dtype == bool
  np.testing.assert_array_equal(document.tokens, plain.tokens)
  # Targets: i i eoi eot | 1 2 3 4 eot | 5 6 9 boi. The first eot ends the image.
  assert document.targets[document.is_prompt].tolist() == [1, 2, 3, 4, EOT]
  assert document.targets[~document.is_prompt].tolist() == [
      OFFSET, OFFSET + 7, EOI, EOT, 5, 6, 9, BOI,
  ]  # fmt: skip


def test_a_study_makes_the_forms_of_which_it_has_all_parts():
  index = {"pictures": np.array([1, 1, 0]), "question": np.array([3, 0, 5])}
  (form,) = parse_forms("image question")
  assert form.can_be(index).tolist() == [True, False, False]
  assert form.length(4, index).tolist() == [10, 7, 12]


def test_forms_are_read_with_their_weights_and_prompts():
  assert parse_forms("image report:3, frontal lateral report , (image) (question) answer:0.5") == (
      Form(("image", "report"), 3.0),
      Form(("frontal", "lateral", "report"), 1.0),
      Form(("image", "question", "answer"), 0.5, ("image", "question")),
  )


@pytest.mark.parametrize(
    "text",
    [
        "", "image text", "image:0", "report:many", "image image", "a,", "(image report)",
        "image (image)", "image (", "() report",
    ],
)  # fmt: skip
def test_what_is_no_form_is_named(text):
  with pytest.raises(UserError, match=r"data\.documents"):
    parse_forms(text)


def test_something_must_carry_loss():
  with pytest.raises(UserError, match=r"data\.documents: all of '\(image\) \(report\)' stands"):
    parse_forms("image report, (image) (report)")


def test_a_form_to_write_ends_with_a_text():
  assert parse_written_form("image (question) answer", "x").parts == ("image", "question", "answer")
  for text in ("image", "report image", "image report, report"):
    with pytest.raises(UserError, match=r"x: .* must be one form whose last part is a text"):
      parse_written_form(text, "x")
