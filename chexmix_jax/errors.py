"""The one exception for what a user can mend."""


class UserError(Exception):
  """Bad input, said in one sentence that names the file, row or key and the mend.

  Entry points print the sentence and exit with status 2, without a traceback.
  """
