"""Ctrl-C while requests for pictures are submitted and awaited: at any bytecode, and of a process."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import handmade
import interrupts
import pytest

import stepfuse as sf

TIMEOUT = 30  # seconds: nothing here takes ten; a hang must end
CAT = sf.PromptRequest("a cat", seed=5, steps=2)

#: Where Ctrl-C comes: in the code that queues and awaits requests. The rest of a call holds nothing that could be lost.
MODULES = tuple(
    f"stepfuse.{name}" for name in ("serving.", "pipeline.service", "pipeline.job", "pipeline.text_to_image")
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("interrupts") / "bundle")


CALLS = {
    "call": lambda pipe: pipe("a cat", seed=5, steps=2),
    "submit": lambda pipe: pipe.submit(CAT).result(TIMEOUT),
    "stream": lambda pipe: list(pipe.stream(CAT)),
    "asample": lambda pipe: asyncio.run(pipe.asample("a cat", seed=5, steps=2)),
    "cancel": lambda pipe: pipe.submit(CAT).cancel(),
    "close": lambda pipe: pipe.close(),
    "abort": lambda pipe: pipe.close(abort=True, timeout=TIMEOUT),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a stream that is let go just then
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_pipeline_survives_ctrl_c_at_any_bytecode(bundle, call):
    at = 1
    while interrupt_and_check(bundle, call, at):
        at += 1 + at // 4


def interrupt_and_check(bundle, call, at):
    """Whether the call came as far as the ``at``-th opcode."""
    pipe = sf.TextToImage.load(bundle, threads=1)
    interrupt = interrupts.Interrupt(at, MODULES)
    try:
        with interrupt:
            call(pipe)
    except KeyboardInterrupt:
        pass
    if pipe._service._stages.phase.name == "Open":
        assert len(pipe.submit(CAT).result(TIMEOUT)) == 1
    assert interrupts.ended(pipe.close, TIMEOUT), f"close() waits for ever after opcode {at}"
    counts = pipe.totals()
    assert not pipe._service._jobs.jobs
    assert not pipe._service._jobs.in_flight
    assert (counts["waiting"], counts["running"]) == (0, 0)
    return interrupt.seen >= at


# A shell starts what runs in the background with SIGINT ignored.
SETTING = """
import asyncio, signal, sys, time, stepfuse as sf
from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend
signal.signal(signal.SIGINT, signal.default_int_handler)
forward = OnnxRuntimeBackend.forward
OnnxRuntimeBackend.forward = lambda self, rows: (time.sleep(SECONDS), forward(self, rows))
pipe = sf.TextToImage.load(sys.argv[1], threads=1, max_rows=2)
futures = [pipe.submit(sf.PromptRequest("a cat", seed=i, steps=20)) for i in range(NUMBER)]
async def main():
    await asyncio.gather(*(pipe.asample("a cat", steps=20) for i in range(9)))
print("goes on", flush=True)
"""

# Each has a minute of requests queued when Ctrl-C comes.
INTERRUPTED = {
    "result": "futures[-1].result()",
    "asyncio": "asyncio.run(main())",
    "context": """
with pipe: futures[-1].result()""",
    "exit-code": """
try: futures[-1].result()
except KeyboardInterrupt: sys.exit(130)""",
}


def process(bundle, code, *, number=300, seconds=0.01):
    setting = SETTING.replace("NUMBER", str(number)).replace("SECONDS", str(seconds))
    return subprocess.Popen(
        [sys.executable, "-c", setting + code, str(bundle.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_the_process_at_once_wherever_it_comes(bundle):
    programs = {name: process(bundle, code) for name, code in INTERRUPTED.items()}
    for program in programs.values():
        assert program.stdout.readline() == "goes on\n"
    time.sleep(0.1)
    began = time.monotonic()
    for program in programs.values():
        program.send_signal(signal.SIGINT)
    for name, program in programs.items():
        _, err = program.communicate(timeout=TIMEOUT)
        assert program.returncode == (130 if name == "exit-code" else -signal.SIGINT), f"{name}: {err}"
    assert time.monotonic() - began < 20  # of sixty, on a machine that is busy, too


def test_the_exit_draws_what_was_submitted_through_all_stages(bundle, tmp_path):
    program = process(
        bundle,
        f"""
for i, future in enumerate(futures):
    future.add_done_callback(lambda one, i=i: one.result().save(f"{tmp_path}/{{i}}.png"))
""",
        number=5,
        seconds=0.001,
    )
    _, err = program.communicate(timeout=TIMEOUT)
    assert program.returncode == 0, err
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [f"{i}.png" for i in range(5)]
