"""Killed and interrupted at many points, then the same call again: the bytes of an undisturbed training.

SIGKILL strikes a forked child, which spares it the seconds of Lightning's import.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pixel_training_cases import TWO_STAGES, fit, make_set, result_bytes

from vitreous.inputs.augmentation import AugmentSettings
from vitreous.recipes import pixel_module, pixel_stage, prefix_cache  # noqa: F401 Lightning is imported before any fork
from vitreous.recipes.interrupts import deferred_interrupts
from vitreous.recipes.pixel_settings import FitSettings
from vitreous.recipes.pixel_stage import PixelStage

pytestmark = pytest.mark.usefixtures("interruptible")

SETTINGS = FitSettings(
    accumulate=2, ema=0.8, warmup_epochs=1, augment=AugmentSettings(flip=0.5, noise=0.1), prefix_views=2
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Interruption(BaseException):
    """What the handler of a command line raises."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = result_bytes(*fit(tmp_path_factory.mktemp("undisturbed"), SETTINGS, *TWO_STAGES))
    torch.set_num_threads(threads)
    return expected


def run_child(work: Callable[[], object], *, kill_after_s: float | None = None) -> int:
    """The exit status of `work` in a forked child; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            work()
        except BaseException:  # noqa: BLE001 whatever it is, the child must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(number: int, real: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """`real`, with `act` before its call `number` (from 1)."""
    calls = 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return real(*args, **kwargs)

    return counting


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(real: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.save` that is killed in the middle of its third file."""
    calls = 0

    def save(values: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        real(values, path)
        if calls == 3:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            kill()

    return save


@needs_fork
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (prefix_cache.torch.Tensor, "copy_", 2),
        (prefix_cache, "write_json", 2),
        (PixelStage, "loss", 5),
        (PixelStage, "save", 1),
        (pixel_stage, "score_logits", 2),
        (PixelStage, "loss", 9),
        (pixel_stage, "write_state", 3),
        (pixel_stage, "score_logits", 4),
    ],
    ids=[
        "first prefix", "second prefix's note", "first stage, second epoch", "before the first state", "validation",
        "second stage", "before its first state", "last validation",
    ],
)  # fmt: skip
def test_killed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes, owner: Any, name: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(number, getattr(owner, name), kill))
        assert run_child(lambda: fit(tmp_path, SETTINGS, *TWO_STAGES)) == -signal.SIGKILL
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


@needs_fork
def test_killed_while_the_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written(torch.save))
        assert run_child(lambda: fit(tmp_path, SETTINGS, *TWO_STAGES)) == -signal.SIGKILL
    assert list(tmp_path.glob(".training.pt*.part")), "the half file lies aside"
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


@needs_fork
def test_killed_again_and_again_at_any_moment(tmp_path: Path, undisturbed: bytes) -> None:
    kills = 0
    for attempt in range(12):
        status = run_child(lambda: fit(tmp_path, SETTINGS, *TWO_STAGES), kill_after_s=0.05 + 0.03 * attempt)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
    assert kills
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("owner", "name", "number", "losses"),
    [
        (PixelStage, "loss", 2, 2),
        (PixelStage, "loss", 1, 2),
        (PixelStage, "loss", 3, 3),
        (PixelStage, "loss", 8, 2),
        (pixel_stage, "score_logits", 3, 0),
    ],
    ids=["end of a step", "middle of a step", "end of the epoch", "second stage", "validation of the second stage"],
)
def test_a_signal_writes_the_state_and_tells_the_handler(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: bytes,
    signum: signal.Signals,
    owner: Any,
    name: str,
    number: int,
    losses: int,
) -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    previous = signal.signal(signum, interrupt)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, at_call(number, getattr(owner, name), lambda: signal.raise_signal(signum)))
            with pytest.raises(Interruption):
                fit(tmp_path, SETTINGS, *TWO_STAGES)
        assert signal.getsignal(signum) is interrupt
    finally:
        signal.signal(signum, previous)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    if losses:
        assert len(state["losses"]) == losses, "within the epoch"
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed


def test_a_signal_while_it_validates_keeps_the_trained_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
) -> None:
    real = pixel_stage.StageInputs.val_logits

    def interrupted(inputs: Any, on_maps: Any = None) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(inputs, on_maps)

    with monkeypatch.context() as patch:
        patch.setattr(pixel_stage.StageInputs, "val_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, SETTINGS, *TWO_STAGES)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    assert (state["epoch"], len(state["losses"])) == (0, 3), "all batches of the epoch, and it is not finished"
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed


def test_a_signal_while_the_prefix_is_computed(tmp_path: Path, undisturbed: bytes) -> None:
    train = make_set("train")

    def read(row: int) -> torch.Tensor:
        if row == 9:
            signal.raise_signal(signal.SIGINT)
        return train.read(row)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, SETTINGS, *TWO_STAGES, train=replace(train, read=read))
    assert not (tmp_path / "training.pt").exists()
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed


def test_an_impatient_second_signal_does_not_wait(tmp_path: Path, undisturbed: bytes) -> None:
    train, reads = make_set("train"), []

    def read(row: int) -> torch.Tensor:
        reads.append(row)
        if len(reads) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return train.read(row)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, SETTINGS, *TWO_STAGES, train=replace(train, read=read))
    assert len(reads) == 3
    assert result_bytes(*fit(tmp_path, SETTINGS, *TWO_STAGES)) == undisturbed


def test_ignored_signals_stay_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_an_error_of_its_own_passes_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), deferred_interrupts():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before
