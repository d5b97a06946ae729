"""What several files of tests read: a study of arms that follow a known law."""

import pytest

from rewarm.forecast.fitted import Study, study
from rewarm.forecast.options import Options
from tests.forecast.synthetic import arms, curve, trajectory


@pytest.fixture(scope="session")
def sound() -> Study:
    """Return a study of cosines at three max LRs, a constant LR and a short decay, held out in turn."""
    middle = curve("middle", trajectory("cosine", 3e-4))
    return study([*arms(), middle], Options(paths=()))
