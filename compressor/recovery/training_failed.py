"""The error of a training that another value of an option can mend."""

from compressor.errors import ModelError


class TrainingFailed(ModelError):
    """A training failed. The fix is to `change` ("lower") the `option` that the recovery asked for."""

    def __init__(self, text: str, change: str, option: str) -> None:
        super().__init__(text)
        self.change, self.option = change, option
