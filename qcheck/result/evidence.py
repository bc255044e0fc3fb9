"""What a report shows beyond its numbers: evidence.json holds this value, pictures/ the files that it names.

Everything is small: one scalar for each step, ring or bin, never a latent. A report can be rendered again from these
files and report.json alone.
"""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from qcheck.core.values import Number, Value
from qcheck.spec.arm import Arm

SCHEMA: Literal["qcheck-evidence/1"] = "qcheck-evidence/1"
NAME, PICTURES, FULL = "evidence.json", "pictures", "full"


def full_size(name: str) -> str:
    """The file that holds a picture in full size, where the named one was shrunk."""
    path = PurePosixPath(name)
    return str(path.parent / FULL / path.name)


class Spread(Value):
    """A scalar of every probe at several places: its mean over probes, its lowest and its highest value, [places]."""

    mean: list[Number]
    low: list[Number]
    high: list[Number]


class Along(Value):
    """How far one arm is from its reference at the strata.

    ``sqnr`` is in dB, with both evaluated at the latents that the reference f1 visited. ``apart`` is |q1 - f1| / |f1|
    of the latents of free runs before those steps; None for the base, for which it is not computed.
    """

    arm: Arm
    sqnr: Spread
    apart: Spread | None


class Histogram(Value):
    """Shares of the final latents of one channel by value, over all probes: equal bins from ``low`` to ``high``.

    ``shares`` are by f0, f1, q0, q1; values beyond the ends are counted in the outermost bins.
    """

    channel: int
    low: float
    high: float
    shares: dict[str, list[float]]


class Pictures(Value):
    """Decoded pictures of an arm, one for each probe, as paths relative to the folder.

    ``difference`` is 0.5 + amplify (q - f) / 2. ``flip`` are maps of FLIP's errors in the colours of magma, none where
    it was not measured.
    """

    arm: Arm
    reference: list[str]
    quantized: list[str]
    difference: list[str]
    flip: list[str] = Field(default_factory=list)

    def of(self, row: int) -> list[str]:
        """The pictures of a probe, without its map."""
        return [name for names in (self.reference, self.quantized, self.difference) for name in names[row : row + 1]]


class Arrival(Value):
    """How much of the adapter's change of a layer's weight arrives in its codes, expected from the weights alone.

    ``survival`` 1 is the whole change, 0 none of it; ``snr`` is the change over the noise that rounding adds, dB.
    """

    layer: str
    survival: Number
    snr: Number


class CaseEvidence(Value):
    """The evidence of one case. ``spectra`` are radial, in dB by f0, f1, q0, q1 and, of the differences, e0 and e1.

    ``survival`` is effect_survival at every stratum, ``survivals`` that of each probe. ``arrivals`` may be empty, for
    the reason in ``no_arrivals``.
    """

    scheme: str
    order: str
    along: list[Along]
    survival: Spread | None
    survivals: list[Number]
    spectra: dict[str, list[Number]]
    histograms: list[Histogram]
    pictures: list[Pictures]
    arrivals: list[Arrival]
    no_arrivals: str = ""


class Evidence(Value):
    """All cases of a check. ``strata`` are the steps, from 1, that ``timesteps`` of the report belong to.

    ``frequencies`` are those of the spectra in cycles per latent pixel, ``amplify`` how much differences are enlarged.
    ``prompts`` are those of the pictures. ``alignment`` holds, in dB for every changed layer of the denoiser, how much
    more the layer's inputs amplify the adapter's change than a random change of its size; rounding noise is nearly
    random.
    """

    schema_: Literal["qcheck-evidence/1"] = Field(default=SCHEMA, alias="schema")
    strata: list[int]
    frequencies: list[float]
    amplify: int
    prompts: list[str]
    alignment: dict[str, Number] = Field(default_factory=dict)
    cases: list[CaseEvidence]

    @property
    def pictures(self) -> list[Pictures]:
        """The pictures of all cases."""
        return [pictures for case in self.cases for pictures in case.pictures]

    def to_json(self) -> str:
        """JSON with the key ``schema``; non-finite numbers become the strings NaN, Infinity."""
        return self.model_dump_json(by_alias=True) + "\n"
