"""The four ways to start and train the generator: what is loaded, and how fast each part then learns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """One row of the table.

    Attributes:
        reuse: whether g2 and d come from an earlier task (g1 is always new).
        help: one phrase for the command line.
    """

    reuse: bool
    help: str
    fixed_rate: float | None = None  # factor on lr_g for the reused parts; None: the --finetune_factor flag

    def part_rates(self, finetune_factor: float) -> dict[str, float]:
        """Factor on lr_g, inner and meta, for each part; 0 freezes weights and BN statistics."""
        reused = finetune_factor if self.fixed_rate is None else self.fixed_rate
        return {"g1": 1.0, "g2": reused, "d": reused}


MODES = {
    "anew": Mode(False, "g1, g2, d start at random", 1.0),
    "reuse_common": Mode(True, "g2, d are loaded and trained like g1", 1.0),
    "reuse_finetune": Mode(True, "g2, d are loaded and trained more slowly"),
    "reuse_fix": Mode(True, "g2, d are loaded and frozen", 0.0),
}


def method_name(mode: str, hl: bool, no_aea: bool) -> str:
    """What a run's folder and the tables call it: the mode, and what was done about the hard loss."""
    return mode + ("-hl-noaea" if no_aea else "-hl") * hl
