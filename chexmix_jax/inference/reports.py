"""Reports of pictures: the prompt, how it goes on, and the text of what comes of it.

Shape suffixes as in models/transformer.py; P tokens of a prompt.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.inference.embeddings import pad_texts
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.text import TextTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_MAX_NEW = 200
_PUBLISHED_MIN_NEW = 5


def report_prompts(vocabulary: Vocabulary, image_ids: np.ndarray) -> np.ndarray:
  """`boi · image · eoi · eot`, int32 (N, n+3), of token ids (N, n)."""
  ends = np.tile([vocabulary.eoi, vocabulary.eot], (len(image_ids), 1))
  first = np.full((len(image_ids), 1), vocabulary.boi)
  return np.concatenate([first, image_ids, ends], axis=1).astype(np.int32)


def report_options(vocabulary: Vocabulary) -> GenerateConfig:
  """How reports are written: greedily, at most 200 tokens.

  In the published layout they end with eot, which is forbidden for the first 5 tokens, and anything
  may be written; in our own layout they end with boi, and nothing but text is written.
  """
  is_published = vocabulary.report_end == vocabulary.eot
  return GenerateConfig(
      max_new=_MAX_NEW,
      stop_ids=(vocabulary.report_end,),
      min_new=_PUBLISHED_MIN_NEW if is_published else 0,
      text_only=not is_published,
  )


def read_report(vocabulary: Vocabulary, tokenizer: TextTokenizer, new: np.ndarray) -> str:
  """The text of new ids (n,): what is text before the first boi.

  The published reader clamps ids to those below the image codes, where an image code becomes the
  last special id; it spells no special id, and neither does this.
  """
  before = new[: np.argmax(new == vocabulary.boi)] if np.any(new == vocabulary.boi) else new
  return tokenizer.decode(before[vocabulary.is_text(before)])


def generate_ids(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    prompts: Sequence[np.ndarray],
    options: GenerateConfig,
    batch_size: int,
    description: str = "",
) -> list[np.ndarray]:
  """The new ids after each of N prompts (arrays of ids), int32, their stop id included."""
  if min(map(len, prompts)) < 1:
    raise UserError("A prompt is empty; begin each of them with boi or another id.")
  tokens, is_token = pad_texts(vocabulary, prompts)
  lengths = is_token.sum(axis=1)
  starts: Iterable[int] = range(0, len(prompts), batch_size)
  if description:
    starts = progress(starts, desc=description, unit="batch", leave=False)
  new = []
  with jax.set_mesh(make_mesh()):
    for start in starts:
      # The last batch is filled up with its last row, so that it is of the same size.
      take = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)
      new.append(
          generate(config, params, vocabulary, tokens[take], lengths[take], options, start)
      )
  new_BN = np.concatenate(new)[: len(prompts)]
  is_stop_BN = np.isin(new_BN, options.stop_ids)
  ends = np.where(is_stop_BN.any(axis=1), is_stop_BN.argmax(axis=1) + 1, options.max_new)
  return [new[:end] for new, end in zip(new_BN, ends, strict=True)]
