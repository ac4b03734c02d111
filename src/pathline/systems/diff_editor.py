"""DiffEditor: feature energies, regional noise and time travel, where every answer is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property

from pathline.edit.diff_tasks import Move
from pathline.systems.diff_editor_emoji import OnPhotos
from pathline.systems.diff_editor_exact import Exact
from pathline.systems.diff_editor_glyphs import Glyphs
from pathline.systems.system import Claim, System, register

ALONE = 200.0
"""η κ of edits that the energies make alone, without copied noise."""


class Experiment:
    """Edits of glyphs, exact parts, and emoji on photographs; made when first asked for."""

    def __init__(self) -> None:
        self.glyphs = Glyphs()
        self.exact = Exact(self.glyphs)
        self.photos = OnPhotos()

    @cached_property
    def guided(self) -> tuple[int, int, int]:
        """Copies that the energies guide: exact, stayed, other glyphs."""
        return self.glyphs.counted()

    @cached_property
    def untouched(self) -> tuple[int, int, int]:
        """Neither copies nor energies."""
        return self.glyphs.counted(copies=False, strength=0.0)

    @cache  # noqa: B019 - lives as long as the run
    def unchanged(self, guided: bool) -> float:
        """Return how far a move by nothing is off the reconstruction: rms with g, else largest."""
        edit = self.glyphs.edits[0]
        editor = self.glyphs.editor if guided else replace(self.glyphs.editor, strength=0.0)
        made = self.glyphs.edited(0, editor, Move(edit.task.mask))
        off = made.x - made.reconstruction
        if not guided:
            return float(off.abs().max())
        return float(off.square().mean().sqrt() / made.reconstruction.square().mean().sqrt())


CLAIMS = (
    Claim("guided", "of 12 moves of a glyph, copied noise and guided: exact", lambda e: e.guided[0],
          11.0, "higher", headline=True),
    Claim("copy", "copied noise alone", lambda e: e.glyphs.counted(strength=0.0)[0], 10.0),
    Claim("neither", "neither: of 12 the object stays in 12 ± 0", lambda e: e.untouched[1], 12.0,
          "equal"),
    Claim("energy", "energies alone, with η κ = 200", lambda e: e.glyphs.counted(
        copies=False, strength=ALONE)[0], 10.0, "higher"),
    Claim("noise", "guided, with η = 0.4 of noise inside", lambda e: e.glyphs.counted(
        eta_sde=0.4)[0], 10.0, "higher"),
    Claim("travel", "with time travel in addition", lambda e: e.glyphs.counted(
        eta_sde=0.4, travel=3)[0], 11.0, "higher"),
    Claim("outside", "outside the mask a regional step is that of the ODE bit for bit: off by at "
          "most 0", lambda e: e.exact.leak(), 0.0, "equal"),
    Claim("inside", "Gaussian data of variance 0.05 to 1, η of 0.2, 0.4 and 1, VP-linear, 50 even "
          "steps: the variance inside is off the marginal's after the window, relatively, by",
          lambda e: e.exact.variance_off(), 0.01),
    Claim("separated", "a gradient in the other one's region: 0",
          lambda e: e.exact.gradient_leak(), 0.0, "equal"),
    Claim("differences", "separated gradients against central differences, relatively",
          lambda e: e.exact.gradient_off(), 1e-5),
    Claim("falls", "w/(1 + 4 S) rises with S from −0.2 to 1 at so many of 100 000 places: 0",
          lambda e: e.exact.rises(), 0.0, "equal"),
    Claim("pole", "1/|1 + 4 S| at S = −1/4 + 1e-9, as the formula has it", lambda e: e.exact.pole(),
          1e8, "higher"),
    Claim("held", "with its denominator held at 0.2 it is at most",
          lambda e: e.exact.most(safe=False), 5.0),
    Claim("safe", "with S⁺ it is at most", lambda e: e.exact.most(safe=True), 1.0),
    Claim("unchanged", "a move by nothing, without g: off the reconstruction by at most",
          lambda e: e.unchanged(False), 1e-6),
    Claim("unchanged-guided", "with g, as a root mean square, relatively",
          lambda e: e.unchanged(True), 0.02),
    Claim("photos", "50 emoji moved or pasted on photographs: the share found within 1.5 pixels of "
          "where they were sent", lambda e: e.photos.placed("guided"), 0.8, "higher",
          needs="training"),
    Claim("photos-centroid", "the share where the centroid of all that differs from the true "
          "background is off by as little", lambda e: e.photos.centred("guided"), 0.8, "higher",
          needs="training"),
    Claim("photos-background", "the PSNR of what is to stay, over that of the inversion alone, "
          "in dB", lambda e: e.photos.background("guided"), -1.0, "higher", needs="training"),
    Claim("photos-copy", "the first share, of noise that is copied without guidance, at most",
          lambda e: e.photos.placed("copied"), 1.0, needs="training"),
)  # fmt: skip

register(System(
    slug="diff-editor",
    title="DiffEditor",
    paper="Mou et al. 2024, arXiv:2402.02583",
    summary="Moves, resizes, drags, restyles and pastes objects by energies of a model's features.",
    experiment=Experiment,
    claims=CLAIMS,
))  # fmt: skip
