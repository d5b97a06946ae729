from __future__ import annotations

import pickle

import pytest

from rewarm import errors
from rewarm.errors import PeerFailedError, PreemptedError, RewarmError, nearest

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RewarmError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_reaches_another_process_whole(kind: type[RewarmError]) -> None:
    given = {PreemptedError: ("a line", 143), PeerFailedError: (3,)}.get(kind, ("a line",))
    error = kind(*given)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_code) == (kind, str(error), error.exit_code)


def test_a_name_far_from_all_others_is_not_guessed() -> None:
    assert nearest("max_lrr", ["max_lr", "budget"]) == ", did you mean 'max_lr'?"
    assert not nearest("zzz", ["max_lr", "budget"])
