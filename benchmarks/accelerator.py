"""All that is to be known of rewarm on a GPU. `python -m benchmarks.accelerator --out FOLDER`.

Parts, each of which leaves what it found in `--out` before the next begins:

- tests: the tests that need a GPU (FP16 killed and resumed, no wait for the device within a step, the micro-batch);
- losses: FP16 and BF16 losses of a Pythia-70M against its FP32 losses, 500 steps;
- exactness: which runs are equal to the last bit, made twice or killed and resumed, compiled and not;
- study: the paper's first two questions for a Pythia-70M shape on real text (`benchmarks.real_data`);
- profile: where the time of a step goes at the paper's context, compiled and not;
- speeds, speeds-llama: rewarm and its peers side by side (`python -m benchmarks`).

`--parts a+b,c` runs a and b side by side, as long as none of them measures a speed, and then c. `--small` shrinks
everything, so that a CPU can rehearse it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_data import shuffled
from benchmarks.speed import QUIET

ROOT = Path(__file__).resolve().parents[1]
PARTS = "tests+losses+exactness+study,profile,speeds,speeds-llama"


@dataclass(frozen=True)
class Work:
    """What is to be done, and how large."""

    out: Path
    end: float
    """When all must have ended, by the clock that only goes forward."""
    model: str
    small: bool
    upstream: Path | None
    downstream: Path | None
    tokenizer: Path | None
    repetitions: int
    contenders: str
    tests: str

    def run(self, name: str, command: list[str]) -> bool:
        """Run a command, its output in a file of its own; return whether it ended well."""
        start = time.perf_counter()
        with (self.out / f"{name}.txt").open("w") as file:
            try:
                limit = max(1.0, self.end - time.monotonic())
                found = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                found = -1
        said = f"exit code {found}" if found else "ended"
        print(f"{name}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
        return found == 0

    def train(self, name: str, *overrides: str) -> bool:
        """Train from random weights in `name` under `out`."""
        return self.run(name, self.command(name, *overrides))

    def command(self, name: str, *overrides: str) -> list[str]:
        """Return the command that does."""
        rewarm = [sys.executable, "-m", "rewarm", "train", "init=scratch", *QUIET]
        return [*rewarm, *overrides, f"run_dir={self.out / name}"]

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Return a run's lines of metrics."""
        return [json.loads(line) for line in (self.out / name / "metrics.jsonl").read_text().splitlines()]


def environment() -> dict[str, str]:
    """Return what the commands of all parts see."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def tests(work: Work) -> None:
    """Run the tests that need a GPU."""
    work.run("tests", [sys.executable, "-m", "pytest", "-q", "-rs", "tests/training", "-k", work.tests])
    print((work.out / "tests.txt").read_text()[-600:], flush=True)


def losses(work: Work) -> None:
    """Print how far the losses of 16-bit products lie from those of FP32, the same steps of the same model."""
    steps, batch, context = (6, 2, 32) if work.small else (500, 16, 512)
    data = ["model.tokenizer=builtin"]
    if work.upstream and work.tokenizer:
        text = shuffled(work.upstream, work.out / "text.jsonl")
        data = ["data=files", f"data.tokenizer={work.tokenizer}", f"data.upstream={{path:{text}}}"]
        data += [
            f"data.downstream={{path:{text}}}",
            "data.train=upstream",
            "data.shard_tokens=1M",
            "data.max_bad_share=0.01",
        ]
    size = [f"train.batch_size={batch}", f"train.context={context}", f"budget={steps * batch * context}"]
    shape = ["model=pythia-14m" if work.small else "model=pythia-70m", "schedule=cosine", "max_lr=1e-3", *size]
    found: dict[str, list[float]] = {}
    rest = ["train.log_every=1", "evaluation.every=100", "data.validation_tokens=65536"]
    precisions = ("fp32", "fp16", "bf16")

    def trained(precision: str) -> bool:
        return work.train(f"losses-{precision}", *shape, *data, *rest, f"precision={precision}")

    with ThreadPoolExecutor() as pool:
        ended = [name for name, ok in zip(precisions, pool.map(trained, precisions), strict=True) if ok]
    for precision in ended:
        rows = work.metrics(f"losses-{precision}")
        found[precision] = [row["train/loss"] for row in rows if "train/loss" in row]
        ends = {key: value for key, value in rows[-1].items() if key.endswith("/loss")}
        print(f"losses: {precision} ends at {ends}, {rows[-1]['skipped']:.0f} steps skipped", flush=True)
    for precision, values in found.items():
        away = [abs(a - b) / b for a, b in zip(values, found["fp32"], strict=True)]
        last = sum(away[-100:]) / len(away[-100:])
        print(
            f"losses: {precision}, {len(away)} steps from {values[0]:.4f} to {values[-1]:.4f}: away from FP32 by at "
            f"most {max(away):.1e}, on average {sum(away) / len(away):.1e}, in the last hundred {last:.1e}",
            flush=True,
        )


def digest(folder: Path) -> str:
    """Return what tells the weights of a run's last checkpoint apart."""
    last = max(
        folder.glob("checkpoints/*/model.safetensors"), key=lambda path: int(path.parent.name.removeprefix("step-"))
    )
    return f"{last.parent.name} {hashlib.sha256(last.read_bytes()).hexdigest()[:12]}"


def exactness(work: Work) -> None:
    """Print which runs end with the same weights: made twice, and killed in the middle and resumed."""
    batch, context, steps = (2, 32, 12) if work.small else (16, 512, 120)
    shape = ["model=pythia-14m", "model.tokenizer=builtin", f"train.batch_size={batch}", f"train.context={context}"]
    shape += [f"budget={steps * batch * context}", f"checkpoint.every={steps // 3}", "train.log_every=1"]
    shape += [f"train.micro_batch_size={batch // 2}", "schedule=cosine"]

    def compare(kind: str) -> None:
        compiled, deterministic = str("compiled" in kind).lower(), str("deterministic" in kind).lower()
        given = [*shape, f"train.compile={compiled}", f"train.deterministic={deterministic}"]
        given += [] if work.small else ["precision=fp16"]
        names = [f"exact-{kind}-{name}" for name in ("once", "again", "killed")]
        with ThreadPoolExecutor() as pool:
            if not all(pool.map(lambda name: work.train(name, *given), names[:2])):
                return
        killed = work.out / names[2]
        command = work.command(names[2], *given)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        while process.poll() is None and not list(killed.glob(f"checkpoints/*{steps // 3}/manifest.json")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not work.train(names[2], *given):
            return
        rows = [[(row["step"], row.get("train/loss")) for row in work.metrics(name)] for name in names]
        same = [digest(work.out / name) == digest(work.out / names[0]) for name in names]
        print(
            f"exactness, {kind}: weights of the second run equal: {same[1]}; of the killed and resumed: {same[2]}; "
            f"losses: {rows[1] == rows[0]}, {rows[2] == rows[0]}",
            flush=True,
        )

    kinds = ("eager", "eager-deterministic", "compiled", "compiled-deterministic")
    with ThreadPoolExecutor(1 if work.small else len(kinds)) as pool:
        list(pool.map(compare, kinds))


def study(work: Work) -> None:
    """Ask the paper's first two questions of a Pythia-70M shape and real text."""
    if not (work.upstream and work.downstream and work.tokenizer):
        print("study: left out; it needs --upstream, --downstream and --tokenizer", flush=True)
        return
    command = [sys.executable, "-m", "benchmarks.real_data", f"--upstream={work.upstream}"]
    command += [f"--downstream={work.downstream}", f"--tokenizer={work.tokenizer}", f"--folder={work.out / 'study'}"]
    sizes = ("0.02M", "0.01M", "0.01M") if work.small else ("8M", "2M", "1M")
    command += ["--model=pythia-14m" if work.small else "--model=pythia-70m", f"--pretraining={sizes[0]}"]
    command += [f"--horizon={sizes[1]}", f"--short={sizes[2]}", f"--report={work.out / 'study-report'}"]
    work.run("study", command)


def profile(work: Work) -> None:
    """Profile a step at the paper's context."""
    batch, context = (2, 64) if work.small else (32, 2048)
    model = "pythia-14m" if work.small else work.model
    shape = [f"model={model}", "model.tokenizer=builtin", f"train.batch_size={batch}", f"train.context={context}"]
    shape += [f"budget={9 * batch * context}", "profile=true"] + ([] if work.small else ["precision=fp16"])
    for kind, compiled in (("compiled", "true"), ("eager", "false")):
        work.train(f"profile-{kind}", *shape, f"train.compile={compiled}")


def speeds(work: Work, setting: str = "gpu") -> None:
    """Time rewarm and its peers."""
    steps = 8 if work.small else 20
    command = [sys.executable, "-m", "benchmarks", f"--setting={'local' if work.small else setting}"]
    command += [f"--repetitions={work.repetitions}", f"--steps={steps}", f"--out={work.out / f'{setting}.json'}"]
    work.run(f"speeds-{setting}", [*command, f"--only={work.contenders}"] if work.contenders else command)
    print((work.out / f"speeds-{setting}.txt").read_text()[-3000:], flush=True)


DO: dict[str, Callable[[Work], None]] = {
    "tests": tests,
    "losses": losses,
    "exactness": exactness,
    "study": study,
    "profile": profile,
    "speeds": speeds,
    "speeds-llama": lambda work: speeds(work, "gpu-llama"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for everything that is found")
    parser.add_argument("--parts", default=PARTS, help=f"a,b+c: {PARTS}")
    parser.add_argument("--minutes", type=float, default=9.5, help="what has not ended by then is ended")
    parser.add_argument("--model", default="pythia-410m", help="one of conf/model, for the profile")
    parser.add_argument("--upstream", type=Path, help="real text, as benchmarks.real_data takes it")
    parser.add_argument("--downstream", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--only", default="", help="contenders, as `python -m benchmarks` takes them")
    parser.add_argument("--tests", default="gpu or cuda", help="which tests, as pytest's -k takes them")
    parser.add_argument("--small", action="store_true", help="a rehearsal that a CPU ends in minutes")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    text = [path and path.resolve() for path in (given.upstream, given.downstream, given.tokenizer)]
    work = Work(out, end, given.model, given.small, *text, given.repetitions, given.only, given.tests)
    for group in given.parts.split(","):
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(DO[name], work) for name in group.split("+")]:
                if error := done.exception():
                    print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
