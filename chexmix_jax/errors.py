"""The exceptions for what a user can mend."""


class UserError(Exception):
  """Bad input, said in one sentence that names the file, row or key and the mend.

  Entry points print the sentence and exit with status 2, without a traceback.
  """


class BadRow(UserError):
  """A row of a table or a picture that cannot be used, while the rest can.

  Attributes:
    kind: what is wrong in a few words, the same for all rows of one kind; accounts count by it.
  """

  def __init__(self, kind: str, sentence: str):
    super().__init__(sentence)
    self.kind = kind


class Stopped(Exception):
  """A run that SIGTERM ended in good order, said in one sentence."""


class ProcessError(UserError):
  """What another process did that this one cannot go on without, said in one sentence.

  Attributes:
    status: what the program ends with: that of the other process where it has ended with a reason,
      and 1, as after a crash, where it is only late.
  """

  def __init__(self, sentence: str, status: int = 1):
    super().__init__(sentence)
    self.status = status


def exit_status(error: BaseException) -> int:
  """What a program ends with that `error` ended; as a shell has it for signals."""
  if isinstance(error, ProcessError):
    return error.status
  if isinstance(error, UserError):
    return 2
  if isinstance(error, Stopped):
    return 143
  if isinstance(error, SystemExit):
    return error.code if isinstance(error.code, int) else 1
  return 130 if isinstance(error, KeyboardInterrupt) else 1
