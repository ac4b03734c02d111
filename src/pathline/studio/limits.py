"""What the studio lets one visitor ask for: every number that bounds memory, time and traffic."""

from __future__ import annotations

from dataclasses import dataclass

from pathline.core.errors import UsageError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of a studio.

    Args:
        workers: jobs that compute at one time.
        queue: jobs that may wait.
        per_session: jobs that one visitor may have, waiting or running.
        samples, steps: of one solve.
        evaluations: samples × steps × network calls of all that a job asks for.
        recipes: rows of a comparison.
        prompt: characters.
        body: bytes of a request.
        upload: bytes of one picture.
        side: pixels along the longer side of a picture that is sent.
        seconds: that a job may compute.
        lease: seconds after which a job is stopped that nobody asks about.
        threads: of torch, for each job.
    """

    workers: int = 1
    queue: int = 64
    per_session: int = 2
    samples: int = 64
    steps: int = 200
    evaluations: int = 20_000
    recipes: int = 8
    prompt: int = 200
    body: int = 12 * MIB
    upload: int = 4 * MIB
    side: int = 4096
    seconds: float = 600.0
    lease: float = 15.0
    threads: int = 1

    def whole(self, name: str, value: object, least: int, most: int) -> int:
        """Return a number that a visitor typed, as a whole number between two bounds.

        Raises:
            UsageError: it is none, or out of bounds.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise UsageError(f"{name} is a whole number, not {value!r}.")
        if not least <= value <= most:
            raise UsageError(f"{name} = {int(value)}: choose from {least} to {most}.")
        return int(value)

    def count(self, name: str, evaluations: int) -> int:
        """Return the evaluations that a job comes to, having made sure that they are not too many.

        Raises:
            UsageError: they are.
        """
        if evaluations > self.evaluations:
            raise UsageError(
                f"{name} comes to {evaluations} evaluations, and this studio allows "
                f"{self.evaluations}: take fewer samples or steps."
            )
        return evaluations
