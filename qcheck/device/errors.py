"""Why a bundle cannot be verified, and what a machine refuses that its user can mend."""

import errno

SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSALS = SPACE | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class CannotVerify(Exception):
    """Nothing can be said about the board: what is wrong, and how to mend it. The program ends with exit code 2."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n{fix}")
        self.problem, self.fix = problem, fix
