"""The laws on real curves of another trainer, as published: they lie beside the checkout, or the tests skip."""

import pytest
from benchmarks.forecast_public import predicted, scores

from tests.conftest import ROOT

CURVES = ROOT.parent / "shared" / "data" / "curves"


@pytest.mark.skipif(not CURVES.is_dir(), reason="needs the public curves in ../shared/data/curves")
@pytest.mark.parametrize("size", ["25M", "100M"])
def test_curves_that_start_after_their_warm_up_are_predicted_as_their_authors_do(size: str) -> None:
    explained, wrong = scores(predicted(CURVES, size, "multipower"))
    assert explained > 0.9975
    assert wrong < 0.005
