import pytest

from rewarm.text import marked, text_table, tokens_text


def test_a_table_has_names_flush_left_and_figures_flush_right() -> None:
    rows = [("short", "1.5", ""), ("a longer name", "10.25", "")]
    assert text_table(("run", "loss", "always empty"), rows) == (
        "run             loss\nshort            1.5\na longer name  10.25\n"
    )


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (512, "512"), (2048, "2.05k"), (2_048_000, "2.05M"), (296_860_000_000, "297B"), (5e12, "5T")],
)
def test_tokens_are_written_as_people_write_them(tokens: float, text: str) -> None:
    assert tokens_text(tokens) == text


def test_old_data_that_a_proxy_stands_in_for_are_called_so_and_commands_keep_their_words() -> None:
    text = (
        "Upstream loss rises; run: rewarm train data.upstream=x data.train=upstream; runs/upstream keeps the old data"
    )
    assert marked(text, proxy=False) == text
    assert marked(text, proxy=True) == (
        "Upstream (proxy) loss rises; run: rewarm train data.upstream=x data.train=upstream; runs/upstream keeps the "
        "old data (proxy)"
    )
    assert marked(marked(text, proxy=True), proxy=True) == marked(text, proxy=True)
    table = "nats a token              upstream                   downstream\n"
    assert marked(table, proxy=True) == "nats a token      upstream (proxy)                   downstream\n"
