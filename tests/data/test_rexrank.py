import pytest

from chexmix_jax.data.rexrank import read_cases
from chexmix_jax.errors import UserError


def test_cases_in_their_order(tmp_path):
  path = tmp_path / "cases.json"
  path.write_text('{"b": {"image_path": "b.png"}, "a": {}}', encoding="utf-8")
  assert list(read_cases(path).items()) == [("b", {"image_path": "b.png"}), ("a", {})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "is no ReXrank JSON"),
        (b"{}", "is no ReXrank JSON"),
        (b'{"a": 1}', "is no ReXrank JSON"),
    ],
)
def test_other_files(tmp_path, content, message):
  path = tmp_path / "cases.json"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    read_cases(path)


def test_a_missing_file(tmp_path):
  with pytest.raises(UserError, match=r"none\.json cannot be read"):
    read_cases(tmp_path / "none.json")
