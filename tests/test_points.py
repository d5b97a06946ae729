import pytest

from rewarm.points import pareto_front, spread_out


@pytest.mark.parametrize(
    ("count", "most", "wanted"), [(5, 120, [0, 1, 2, 3, 4]), (1000, 3, [0, 500, 999]), (1, 9, [0])]
)
def test_what_is_shown_of_many_points_is_spread_out_and_keeps_both_ends(
    count: int, most: int, wanted: list[int]
) -> None:
    assert spread_out(count, most).tolist() == wanted


def test_no_point_of_the_front_is_beaten_and_every_other_is() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (2.0, 2.0), (4.0, 1.0), (0.5, 9.0)]
    assert pareto_front(points) == [6, 1, 2, 4, 0]


def test_no_points_have_no_front() -> None:
    assert pareto_front([]) == []
