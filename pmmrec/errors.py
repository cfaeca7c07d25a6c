"""What can go wrong, for whom, and the exit code that says so."""

from collections.abc import Sequence

OTHER_CACHE = "another cache (--cache FOLDER; cache=FOLDER in a recipe)"  # ends what is told of one that cannot be used


class PMMRecError(Exception):
    """An error whose message says where it happened, what was wrong and what would be right."""

    exit_code = 1
    met_by = ""  # the process that met it, where several work together and the others did not


class RecipeError(PMMRecError):
    """The recipe or the arguments are wrong: the user can mend them."""

    exit_code = 2


class DataError(PMMRecError):
    """Data of a user cannot be read or breaks a rule of its format."""

    exit_code = 3


class CheckpointError(DataError):
    """A checkpoint is incomplete, was changed after it was written, or does not fit the model."""


class MachineError(PMMRecError):
    """The machine cannot do what was asked: a missing package, device, process or free space."""

    exit_code = 4


class LostProcessError(MachineError):
    """Another process of the run has ended or is out of reach. It has said why, if it could."""


class DivergenceError(PMMRecError):
    """Training left the finite numbers."""


class StoppedError(PMMRecError):
    """A run was asked to end before it was over; it goes on from the state it kept. EX_TEMPFAIL: try again."""

    exit_code = 75


def not_installed(what: str, packages: Sequence[str], extra: str) -> MachineError:
    """The error of `what` where packages are missing that `extra` of this project installs."""
    verb = "is" if len(packages) == 1 else "are"
    names = " and ".join(packages)
    return MachineError(
        f"{what}: {names} {verb} not installed; pip install -e '.[{extra}]' in the checkout of pmmrec, elsewhere "
        f"pip install {' '.join(packages)}"
    )
