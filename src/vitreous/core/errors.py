"""Every error a user can meet: one sentence saying what, got, where and remedy.

The command line exits 2 for a :class:`UserError` (the user must change something) and 1 for any
other :class:`VitreousError` (the run failed).
"""

from collections.abc import Sequence


class VitreousError(Exception):
    """The run failed. Base of all errors raised on purpose."""


class UserError(VitreousError):
    """The user must change something: a file, an option, a location."""


class ConfigError(UserError):
    """A study file or override is wrong.

    Args:
        problems: one sentence each; all problems of a study are reported together.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} problems in the study:\n  - "
        super().__init__(head + "\n  - ".join(self.problems))


class CheckpointError(UserError):
    """A checkpoint cannot be read safely, or does not match the encoder completely."""


class SampleError(UserError):
    """The table, the labels, the splits or the files do not fit together.

    Args:
        codes: of the leaks among the problems; see :mod:`vitreous.core.leak`.
    """

    def __init__(self, message: str, codes: Sequence[str] = ()) -> None:
        self.codes = tuple(codes)
        super().__init__(message)


class LeakError(UserError):
    """The leak gate refuses a study.

    Args:
        codes: of the leaks, each once.
    """

    def __init__(self, message: str, codes: Sequence[str]) -> None:
        self.codes = tuple(codes)
        super().__init__(message)


class LocationError(UserError):
    """A path, bucket or key does not exist or may not be read."""


class StudyMismatchError(UserError):
    """The run directory was made by other settings."""


class StorageError(VitreousError):
    """Bytes could not be fetched whole and verified, after all retries."""


class InputError(VitreousError):
    """One file cannot be used. The sample is quarantined and the run goes on."""


class RunError(VitreousError):
    """A run cannot go on, through no fault of its settings."""


class CircumstanceError(InputError):
    """One file cannot be used as things stand: a limit, a missing decoder, a permission. Its content may be sound.

    Such a sample is quarantined in this run and tried again in the next; nothing is remembered about it.
    """


class TooManyQuarantinedError(VitreousError):
    """More samples were quarantined than the study allows."""
