import numpy as np
import pytest

from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.sentences import SentenceEnds

REPORT = "The heart is large. Is it 1.5 cm? Yes, approx. No change!"


@pytest.fixture(scope="module", params=["sentencepiece", "bpe"])
def tokenizer(request, bpe_dir, tmp_path_factory):
  if request.param == "bpe":
    return BPETokenizer.load(bpe_dir)
  path = tmp_path_factory.mktemp("sp") / "sp.model"
  return text.train_sentencepiece([REPORT, "Clear lungs. 2.5 cm."] * 3, 320, path, at_most=True)


def test_texts_are_cut_after_a_full_stop_before_a_space_or_the_end(tokenizer):
  ids = np.array(tokenizer.encode(REPORT))
  ends = SentenceEnds(tokenizer)(ids)
  assert ends.dtype == np.int32
  assert [tokenizer.decode(ids[:end].tolist()).strip() for end in ends] == [
      "The heart is large.",
      "The heart is large. Is it 1.5 cm?",
      "The heart is large. Is it 1.5 cm? Yes, approx.",
      REPORT,
  ]


def test_nothing_and_a_text_without_a_full_stop_have_no_end(tokenizer):
  ends = SentenceEnds(tokenizer)
  assert ends(np.zeros(0, np.int32)).tolist() == []
  assert ends(np.array(tokenizer.encode("Clear lungs"))).tolist() == []
