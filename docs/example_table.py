"""Writes generated radiographs as a lab would have its own: pictures and two tables.

  python docs/example_table.py runs/mine/raw [--studies=300]

Makes OUTPUT/pictures/*.png, OUTPUT/studies.csv (study, patient, image, indication, findings,
impression) and OUTPUT/questions.csv (study, patient, image, question, answer).
"""

import argparse
import csv
import pathlib

import numpy as np
from PIL import Image

from chexmix_jax import labels as labels_lib
from chexmix_jax import phantom

_SEED = 7  # Not that of the quickstart: other patients.
_SIZE = 128
_INDICATIONS = ("Cough.", "Fever.", "Chest pain.", "Shortness of breath.", "Follow-up.")
_ASKED = ("Cardiomegaly", "Pleural Effusion", "Pneumothorax")


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("output", type=pathlib.Path)
  parser.add_argument("--studies", type=int, default=300)
  args = parser.parse_args()
  (args.output / "pictures").mkdir(parents=True)
  studies, questions = [], []
  for number in range(args.studies):
    study = phantom.make_study(_SEED, number, _SIZE)
    study_id, patient_id, _ = phantom.identify(_SEED, number)
    image = f"pictures/{study_id}.png"
    Image.fromarray(study.image).save(args.output / image)
    there = {
        name
        for name in labels_lib.CHEXPERT_14
        if study.labels[labels_lib.INDEX[name]] == labels_lib.POSITIVE
    }
    common = {"study": study_id, "patient": patient_id, "image": image}
    rng = np.random.default_rng([_SEED, number])
    studies.append({
        **common, "indication": rng.choice(_INDICATIONS), "findings": study.report,
        "impression": f"{', '.join(sorted(there)).capitalize()}.",
    })  # fmt: skip
    for name in _ASKED:
      answer = "Yes." if name in there else "No."
      questions.append({**common, "question": f"Is there {name.lower()}?", "answer": answer})
  for name, rows in (("studies", studies), ("questions", questions)):
    with (args.output / f"{name}.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  print(f"{args.output}: {len(studies)} studies, {len(questions)} questions")


if __name__ == "__main__":
  main()
