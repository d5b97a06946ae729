"""How well public loss curves of other trainers are predicted from the CSV files as they were published.

    python -m benchmarks.forecast_public FOLDER

FOLDER holds `SIZE_SCHEDULE.csv`, the curves of Luo et al. 2025 (arXiv 2503.12811): a line in 128 updates, from the
end of the warm-up on. By their own split the laws are fitted on three schedules and predict six others. R2 and mean
absolute error (nats a token) are means over the six, as they publish them: .9988 and .00376 at 25M parameters, .9983
and .00435 at 100M. Exit code 1 where the multi-power law explains less than 0.997 of a size's variance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from rewarm.forecast.csv_curves import read_csv
from rewarm.forecast.features import units_of
from rewarm.forecast.fit import fit, points_of
from rewarm.forecast.holdout import Errors, errors_of, mae, r2
from rewarm.forecast.laws import LAWS, form_of
from rewarm.forecast.options import Logged

FITTED = ("constant_24000", "cosine_24000", "wsdcon_9")
PREDICTED = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
LEAST_R2 = 0.997


def predicted(folder: Path, size: str, law: str) -> list[Errors]:
    """Return the errors of a law on the six schedules that it was not fitted on."""
    curves = {name: read_csv(folder / f"{size}_{name}.csv", Logged()) for name in (*FITTED, *PREDICTED)}
    fitted = [curves[name] for name in FITTED]
    units = units_of([curve.trajectory for curve in fitted])
    points = points_of(fitted, "loss", units)
    found = fit(form_of(law, points.features, None), points, units, np.random.default_rng(0))
    return [errors_of(found, curves[name], "loss") for name in PREDICTED]


def scores(errors: list[Errors]) -> tuple[float, float]:
    """Return R2 and mean absolute error, each the mean over the schedules."""
    return float(np.mean([r2([e]) for e in errors])), float(np.mean([mae([e]) for e in errors]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    least = 1.0
    for size in sorted({path.name.split("_")[0] for path in folder.glob("*_cosine_24000.csv")}):
        for law in LAWS:
            errors = predicted(folder, size, law)
            explained, wrong = scores(errors)
            each = "  ".join(f"{name} {r2([e]):.4f}" for name, e in zip(PREDICTED, errors, strict=True))
            print(f"{size:>5}  {law:<15} R2 {explained:.4f}  MAE {wrong:.5f}   {each}")
            least = min(least, explained) if law == "multipower" else least
    return 0 if least >= LEAST_R2 else 1


if __name__ == "__main__":
    sys.exit(main())
