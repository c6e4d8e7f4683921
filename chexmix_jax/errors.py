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
