"""CheXpert labels from a report's text, by rules: offline, fast, without jax.

In the manner of the NegBio (Peng et al. 2018, arXiv 1712.05898) and CheXpert (Irvin et al. 2019,
arXiv 1901.07031) labelers: mentions by pattern; negation and uncertainty by cues, with scopes
inside a clause of a sentence instead of a parse tree; then aggregation over the mentions.

phrases.py has the words, reader.py the rules, aggregate.py the labels of a report; table.py labels
a CSV, and measure.py counts errors. docs/labeler.md has what was measured.
"""

from chexmix_jax.labeler.aggregate import label_report
from chexmix_jax.labeler.mention import Mention
from chexmix_jax.labeler.reader import find_mentions

__all__ = ["Mention", "find_mentions", "label_report"]
