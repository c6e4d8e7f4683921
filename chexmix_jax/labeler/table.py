"""Labels of a CSV of reports: its other columns, then the 14 labels."""

import csv
import difflib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

from chexmix_jax.data.sources.files import LONGEST_CELL, is_utf8
from chexmix_jax.errors import UserError
from chexmix_jax.files import check_place, write_whole
from chexmix_jax.labeler.aggregate import label_report
from chexmix_jax.labels import CHEXPERT_14, UNKNOWN
from chexmix_jax.progress import progress


def label_file(input_csv: pathlib.Path, columns: Sequence[str], output_csv: pathlib.Path) -> int:
  """Writes the labels of every row's report to `output_csv`, whole or not at all.

  A report is the row's cells in `columns` (such as findings, impression) in that order, joined by a
  space, empty ones left out. The output has the input's other columns, in their order, then one a
  finding of CHEXPERT_14: 1 positive, 0 negative, -1 uncertain, empty for what is not mentioned; all
  14 are empty where the row has no text at all. Rows keep their order; they are read one at a time.

  Returns the number of rows. Raises UserError for an input that is missing, not UTF-8, without
  rows, without one of the columns, with a row of too few or too many cells or with a column named
  like a finding; and for an output that is the input or whose folder is not there.
  """
  if not columns:
    raise UserError("No column of text is named; name some, such as findings,impression.")
  if output_csv.exists() and input_csv.exists() and output_csv.samefile(input_csv):
    raise UserError(f"{output_csv} is the input; name another file for the labels.")
  check_place(output_csv)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  rows = read_rows(input_csv, columns)
  kept = [name for name in next(rows) if name not in columns]
  if clash := next((name for name in kept if name in CHEXPERT_14), None):
    raise UserError(f"{input_csv} has a column {clash!r} already; remove or rename it.")
  writer.writerow([*kept, *CHEXPERT_14])
  number = 0
  for row in progress(rows, desc="labels", unit=" reports"):
    cells = dict(row)
    report = join_cells(cells, columns)
    writer.writerow([*(cells[name] for name in kept), *(_cells(report) if report else _NOTHING)])
    number += 1
  if not number:
    raise UserError(f"{input_csv} has no rows; give a table with a report a row.")
  write_whole(output_csv, text.getvalue())
  return number


_NOTHING = ("",) * len(CHEXPERT_14)


def _cells(report: str) -> list[str]:
  return ["" if value == UNKNOWN else str(value) for value in label_report(report).tolist()]


def join_cells(cells: dict[str, str], columns: Sequence[str]) -> str:
  """The cells of `columns` as one text, empty ones left out."""
  return " ".join(cell for name in columns if (cell := cells[name].strip()))


def read_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
  """First the header (name -> name), then every row (name -> cell) of a UTF-8 CSV.

  Raises UserError for a table that is not readable, lacks one of `columns` or has a name twice, and
  for the first row that does not fit the header or is not UTF-8. Blank lines are no rows.
  """
  csv.field_size_limit(LONGEST_CELL)
  try:
    # Bytes of another encoding are kept, so that their row can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
      reader = csv.reader(file)
      header = next(reader, [])
      _check_header(path, header, columns)
      yield dict(zip(header, header, strict=True))
      for number, row in enumerate((row for row in reader if row), start=2):
        where = f"Row {number} of {path}"
        if len(row) != len(header):
          raise UserError(
              f"{where} has {len(row)} cells where the header has {len(header)}; mend the row."
          )
        if not all(is_utf8(cell) for cell in row):
          raise UserError(f"{where} is not UTF-8 text; save the file as UTF-8.")
        yield dict(zip(header, row, strict=True))
  except OSError as error:
    reason = os.strerror(error.errno) if error.errno else "damaged"
    raise UserError(f"{path} cannot be read ({reason}); mend the path.") from error
  except csv.Error as error:
    raise UserError(f"{path} is not a readable CSV table ({error}); mend the file.") from error


def _check_header(path: pathlib.Path, header: Sequence[str], columns: Sequence[str]) -> None:
  if not header:
    raise UserError(f"{path} is empty; give a CSV whose first row names its columns.")
  if not all(is_utf8(name) for name in header):
    raise UserError(f"Row 1 of {path} is not UTF-8 text; save the file as UTF-8.")
  for name in columns:
    if name not in header:
      lower = {known.lower(): known for known in header}
      near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
      known = " or ".join(repr(lower[match]) for match in near)
      hint = f"did you mean {known}?" if near else f"it has {', '.join(map(repr, header[:20]))}."
      raise UserError(f"{path} has no column {name!r}; {hint}")
  if twice := next((name for name in header if list(header).count(name) > 1), None):
    raise UserError(f"{path} has the column {twice!r} twice; rename one.")
