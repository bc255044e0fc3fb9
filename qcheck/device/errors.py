"""Why a bundle cannot be verified."""


class CannotVerify(Exception):
    """Nothing can be said about the board: what is wrong, and how to mend it. The program ends with exit code 2."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n{fix}")
        self.problem, self.fix = problem, fix
