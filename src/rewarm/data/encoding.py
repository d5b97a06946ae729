"""Documents become token ids: many at once, on the threads of this process or in processes beside it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from rewarm.data.documents import Cursor, Document
from rewarm.data.tokenizers import Tokenizer
from rewarm.data.words import WordEncoder
from rewarm.errors import SIGNALS, DataError

BATCH_CHARACTERS = 250_000
Ids = NDArray[np.uint32]
Rows = list[Ids]


def _batches(documents: Iterator[tuple[Document, Cursor]], at_once: int) -> Iterator[list[tuple[Document, Cursor]]]:
    batch: list[tuple[Document, Cursor]] = []
    size = 0
    for document, cursor in documents:
        batch.append((document, cursor))
        size += len(document.text) if document.ids is None else len(document.ids)
        if size >= at_once:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encoded(
    documents: Iterator[tuple[Document, Cursor]],
    tokenizer: Tokenizer,
    workers: int,
    at_once: int = BATCH_CHARACTERS,
) -> Generator[tuple[Ids, Document, Cursor]]:
    """Yield the documents, in order, with their token ids; an end-of-text token closes each text.

    Some `at_once` characters, or token ids, are waited for and encoded together. Documents that come as token ids
    keep them as they stand, and get their text. Raises `DataError` for ids that the tokenizer does not have.
    """
    end_of_text = np.uint32(tokenizer.end_of_text)
    with _encoders(tokenizer, workers) as submit:
        waiting: deque[tuple[list[tuple[Document, Cursor]], Future[Rows]]] = deque()

        def first() -> Iterator[tuple[Ids, Document, Cursor]]:
            batch, future = waiting.popleft()
            rows = iter(future.result())
            for document, cursor in batch:
                if document.ids is None:
                    yield np.append(next(rows), end_of_text), document, cursor
                else:
                    yield _checked(document.ids, tokenizer), _with_text(document, tokenizer), cursor

        for batch in _batches(documents, at_once):
            waiting.append((batch, submit([d.text for d, _ in batch if d.ids is None])))
            if len(waiting) > 2 * workers:
                yield from first()
        while waiting:
            yield from first()


def _checked(ids: NDArray[np.int64], tokenizer: Tokenizer) -> Ids:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= tokenizer.size:
        raise DataError(
            f"a document holds the token id {low if low < 0 else high:,}, but the tokenizer has ids 0 to "
            f"{tokenizer.size - 1:,}: these tokens were made with another one; set data.tokenizer to it"
        )
    return ids.astype(np.uint32)


def _with_text(document: Document, tokenizer: Tokenizer) -> Document:
    assert document.ids is not None
    return replace(document, text=tokenizer.decode(document.ids))


@contextmanager
def _encoders(tokenizer: Tokenizer, workers: int) -> Iterator[Callable[[list[str]], Future[Rows]]]:
    """Yield a function from texts to a future of their ids: encoded here, or in worker processes."""
    # Not a ProcessPoolExecutor: its workers wait on a queue of which they hold both ends themselves, and those of a
    # run that was killed (SIGKILL, out of memory) would wait for ever. Here the other end of a worker's pipe is held
    # by the parent alone: however the parent goes, the worker reads the end of its pipe and leaves.
    if workers == 0:

        def here(texts: list[str]) -> Future[Rows]:
            done: Future[Rows] = Future()
            done.set_result(tokenizer.encode(texts))
            return done

        yield here
        return
    idle: SimpleQueue[Connection] = SimpleQueue()
    processes = []
    spawn = multiprocessing.get_context("spawn")
    for _ in range(workers):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, tokenizer), daemon=True)
        process.start()
        atexit.register(process.kill)  # at the end of a command that no longer waits for the tokens
        theirs.close()
        processes.append(process)
        idle.put(ours)

    def ask(texts: list[str]) -> Rows:
        connection = idle.get()
        try:
            connection.send(texts)
            flat, lengths = connection.recv()
        except (EOFError, OSError) as error:
            raise DataError("a tokenising process ended before its time; rerun to go on") from error
        finally:
            idle.put(connection)
        return np.split(flat, np.cumsum(lengths)[:-1])

    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        yield lambda texts: pool.submit(ask, texts)
    finally:
        pool.shutdown(cancel_futures=True)
        for _ in processes:
            idle.get().close()  # a worker ends when its pipe does
        for process in processes:
            process.join()
            atexit.unregister(process.kill)


def _serve(connection: Connection, tokenizer: Tokenizer) -> None:
    """Encode texts from the pipe until it closes, which it does when the parent ends or wants no more."""
    for number in SIGNALS:  # may reach all processes of a job at once
        signal.signal(number, signal.SIG_IGN)  # the parent's business, which needs tokens until it has saved
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    encode = (WordEncoder.of(tokenizer.fast) or tokenizer).encode
    try:
        while True:
            rows = encode(connection.recv())
            lengths = [len(row) for row in rows]
            connection.send((np.concatenate(rows) if rows else np.empty(0, np.uint32), lengths))
    except (EOFError, OSError):
        return
