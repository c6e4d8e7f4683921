from chexmix_jax.metrics.ngrams import count_ngrams


def test_every_run_counts_where_it_stands():
  words = ["no", "no", "no", "edema"]
  assert count_ngrams(words, 1) == {("no",): 3, ("edema",): 1}
  assert count_ngrams(words, 2) == {("no", "no"): 2, ("no", "edema"): 1}
  assert count_ngrams(words, 4) == {tuple(words): 1}
  assert count_ngrams(words, 5) == count_ngrams([], 1) == {}
