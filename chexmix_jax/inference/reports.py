"""Texts that are written on pictures: the prompt, how it goes on, and what comes of it.

Shape suffixes as in models/transformer.py; P tokens of a prompt.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from chexmix_jax.data.documents import IMAGE_PARTS, Form
from chexmix_jax.data.reports import clean
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


def prompt_texts(
    form: Form, prompts: Mapping[str, Sequence[str]], count: int
) -> dict[str, list[str]]:
  """The texts before the last part of a form with one picture, as records hold them.

  `prompts` are of `count` pictures, by name. Raises UserError for a form of none or several
  pictures, and where a text is missing or not asked for.
  """
  before = form.parts[:-1]
  names = [part for part in before if part not in IMAGE_PARTS]
  if len(names) != len(before) - 1:
    raise UserError(
        f"documents={' '.join(form.parts)!r} must show one picture; name image, frontal or lateral"
        " once."
    )
  for name in (*names, *prompts):
    texts = prompts.get(name, ())
    if isinstance(texts, str) or name not in names or len(texts) != count:
      raise UserError(
          f"prompts must have a list of {count} texts, one a picture, for each of"
          f" {', '.join(names) or 'nothing'} of the documents; mend its {name!r}."
      )
  is_asked = ("question", "answer")
  return {
      name: [" ".join(t.split()) if name in is_asked else clean(t) for t in prompts[name]]
      for name in names
  }


def make_prompt(vocabulary: Vocabulary, parts: Mapping[str, np.ndarray]) -> np.ndarray:
  """Token ids, int32 (P,), before a text that is to be written after `parts`.

  `parts` are the token ids of each, by its name in documents.PARTS, in their order. The prompt is
  the beginning of their document: `boi · image · eoi · eot` for an image alone.
  """
  ids: list[Sequence[int] | np.ndarray] = []
  for name, part in parts.items():
    is_image = name in IMAGE_PARTS
    ids += [[vocabulary.boi], part, [vocabulary.eoi]] if is_image else [[vocabulary.eot], part]
  return np.concatenate([*ids, [vocabulary.eot]]).astype(np.int32)


def report_options(
    vocabulary: Vocabulary, documents: Sequence[str] = ("image", "report")
) -> GenerateConfig:
  """How the last part of a document is written: greedily, at most 200 tokens.

  In the published layout the report of an image ends with eot, which is forbidden for the first 5
  tokens, and anything may be written. Else a text ends with boi, as training here has it, and
  nothing but text is written; in the published layout eot ends it too.
  """
  is_published = vocabulary.report_end == vocabulary.eot
  if is_published and tuple(documents) == ("image", "report"):
    return GenerateConfig(
        max_new=_MAX_NEW,
        stop_ids=(vocabulary.report_end,),
        min_new=_PUBLISHED_MIN_NEW,
        text_only=False,
    )
  stop_ids = tuple(dict.fromkeys((vocabulary.boi, vocabulary.report_end)))
  return GenerateConfig(max_new=_MAX_NEW, stop_ids=stop_ids)


def read_report(vocabulary: Vocabulary, tokenizer: TextTokenizer, new: np.ndarray) -> str:
  """The text of new ids (n,): what is text before the first boi.

  The published reader clamps ids to those below the image codes, where an image code becomes the
  last special id; it spells no special id, and neither does this.
  """
  before = new[: np.argmax(new == vocabulary.boi)] if np.any(new == vocabulary.boi) else new
  return tokenizer.decode(vocabulary.ids_to_text(before[vocabulary.is_text(before)]).tolist())


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
