"""Progress bars."""

from chexmix_jax.progress import progress


def test_a_bar_passes_everything_through_and_shows_where_it_is(capsys):
  assert list(progress(range(3), desc="walk", unit="step")) == [0, 1, 2]
  assert "walk: 100%" in capsys.readouterr().err


def test_a_log_file_gets_a_line_every_ten_seconds_only(capsys):
  with progress(total=1000, desc="walk") as bar:
    for _ in range(1000):
      bar.update()
    assert bar.mininterval == 10.0
  # The first and the last state, however many updates there were.
  assert capsys.readouterr().err.count("walk:") == 2


def test_a_bar_goes_on_where_an_earlier_start_stopped(capsys):
  with progress(total=10, initial=6, desc="walk") as bar:
    bar.update(2)
    assert bar.n == 8
  assert "8/10" in capsys.readouterr().err


def test_a_quiet_bar_shows_nothing_and_passes_everything_through(capsys):
  assert list(progress(range(3), quiet=True, desc="walk")) == [0, 1, 2]
  assert not capsys.readouterr().err
