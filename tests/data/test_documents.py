import numpy as np

from chexmix_jax.data.documents import IMAGE, SPECIAL, TEXT, make_document, min_context
from chexmix_jax.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.sentencepiece(num_text=10, num_codes=8)
BOI, EOI, EOT, OFFSET = 10, 11, 12, 13
CODES, TEXT_IDS = np.array([0, 7, 3, 1], np.int32), np.array([5, 6, 9], np.int32)


def test_a_document_is_image_then_report_and_ends_in_the_next_ones_start():
  document = make_document(CODES, TEXT_IDS, VOCABULARY, 100)
  image = [OFFSET, OFFSET + 7, OFFSET + 3, OFFSET + 1]
  np.testing.assert_array_equal(document.tokens, [BOI, *image, EOI, EOT, 5, 6, 9])
  np.testing.assert_array_equal(document.targets, [*image, EOI, EOT, 5, 6, 9, BOI])
  np.testing.assert_array_equal(
      document.modality, [SPECIAL] + [IMAGE] * 4 + [SPECIAL] * 2 + [TEXT] * 3
  )
  np.testing.assert_array_equal(
      document.target_modality, [IMAGE] * 4 + [SPECIAL] * 2 + [TEXT] * 3 + [SPECIAL]
  )
  assert document.tokens.dtype == document.targets.dtype == np.int32


def test_a_cut_report_does_not_teach_its_end():
  document = make_document(CODES, TEXT_IDS, VOCABULARY, 9)
  assert document.tokens[-1] == 6 and document.targets[-1] == 9
  assert document.target_modality[-1] == TEXT


def test_min_context_holds_one_token_of_the_report():
  document = make_document(CODES, TEXT_IDS, VOCABULARY, min_context(4))
  assert document.tokens[-1] == 5
