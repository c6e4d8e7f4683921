import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexmix_jax.data.reports import Sections, clean, compose, parse_sections

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough.

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 The lungs are clear.  Heart: normal in size.
 There is no pleural effusion.

 IMPRESSION:

 1. No acute process.
 2. Unchanged   nodule, ___.
"""


def test_sections_of_a_report_by_its_headings():
  found = parse_sections(MIMIC)
  assert clean(found.indication) == "year old woman with cough."
  assert clean(found.findings) == (
      "The lungs are clear. Heart: normal in size. There is no pleural effusion."
  )
  assert clean(found.impression) == "No acute process. Unchanged nodule."
  assert found.language == "en"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lungs are clear.", Sections(findings="The lungs are clear.")),
        ("Impression: Normal.", Sections(impression="Normal.")),
        ("FINDINGS AND IMPRESSION: Normal.", Sections(findings="Normal.")),
        ("TITLE\nINDICATION: x\nCOMPARISON: none\n\nThe lungs\nare clear.\n\n",
         Sections(indication="x", findings="The lungs\nare clear.")),
        ("INDICATION: x\n\nClear.", Sections(indication="x", findings="Clear.")),
        ("INDICATION: x", Sections(indication="x")),
        ("FINDINGS: a. IMPRESSION: b.", Sections(findings="a.", impression="b.")),
        ("FINDINGS: a.\nIMPRESSION: b.\nFINDINGS: c.", Sections(findings="a. c.", impression="b.")),
        ("REASON FOR EXAM: x\nFINDINGS: y\nNOTIFICATION: z", Sections("x", "y", "")),
        ("", Sections()),
    ],
)  # fmt: skip
def test_headings_of_other_kinds(text, expected):
  assert parse_sections(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \n\t b ", "a b"),
        ("Compared to ___, the heart", "Compared to, the heart"),
        ("XXXX XXXX scarring. XXXX.", "scarring."),
        ("no XXXX of a pleural effusion", "no of a pleural effusion"),
        ("1. One. 2. Two. 3) Three.", "One. Two. Three."),
        ("At 1.5 cm. 12 ribs. T12. Normal", "At 1.5 cm. 12 ribs. T12. Normal"),
        ("seen (___) by [**Name 3**], ___, then", "seen by, then"),
        ("Stage 2. Then", "Stage 2. Then"),
    ],
)
def test_clean_up(text, expected):
  assert clean(text) == expected


def test_compose_takes_the_sections_in_order_and_skips_empty_ones():
  sections = Sections("Cough.", "Clear  lungs.", "___")
  assert compose(sections, ("findings", "impression")) == "Clear lungs."
  assert compose(sections, ("impression", "findings", "indication")) == "Clear lungs. Cough."


@given(st.text(alphabet=st.sampled_from("aB.:,;_X \n1)([]*"), max_size=80))
def test_cleaning_is_final_and_keeps_words(text):
  once = clean(text)
  assert clean(once) == once
  assert once == once.strip() and "  " not in once and "\n" not in once


@given(st.text(max_size=200))
def test_parsing_any_text_gives_sections(text):
  found = parse_sections(text)
  assert all(isinstance(part, str) for part in (found.indication, found.findings, found.impression))


def test_a_report_of_many_characters_is_parsed_quickly():
  assert len(clean(parse_sections("Word: " * 20_000).findings)) == 6 * 20_000 - 1
