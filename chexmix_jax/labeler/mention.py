"""What a report says of one finding in one place."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mention:
  """One place where a report speaks of a finding.

  Attributes:
    finding: a name in CHEXPERT_14.
    value: POSITIVE, NEGATIVE or UNCERTAIN, of chexmix_jax.labels.
    side: left, right or bilateral; "" where none is named.
    zone: upper, mid or lower; "" where none is named and for what has no zone (the heart, the
      mediastinum, bones, devices). Lobes count as the zone that they mostly lie in: apices are
      upper, the middle lobe and the lingula mid, bases and what is behind the heart lower.
    doubt: why the value is UNCERTAIN, "" for other values: "possible" (may be, cannot be excluded),
      "probable", "alternative" (one of two: this or that), "borderline", or "sign" (what is seen
      only hints at the finding, as a blunted angle at an effusion).
  """

  finding: str
  value: int
  side: str
  zone: str = ""
  doubt: str = ""
