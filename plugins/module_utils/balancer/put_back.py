# Copyright: (c) 2026, The lbops.xdp authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the programs of an interface back on their hooks when a switch fails, whatever the reason."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from ..errors import EngineError
from ..kernel import attachments, bpf, link, tc

# A driver that is short of memory, or busy with its queues, may take the program a moment later.
TRIES = 3
PAUSE = 0.2  # seconds
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that end a process wait until the interface carries a program again."""
    waiting: list[int] = []
    # Another thread may take a signal that this one blocks; Python then calls the handler in the main thread.
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # None: a handler that Python did not set, and cannot set again.
        handlers = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for number in handlers:
            signal.signal(number, lambda received, _frame: waiting.append(received))
        yield
    finally:
        # Whatever was blocked goes to the list as well.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in waiting:
            signal.raise_signal(received)


class Kept:
    """The programs on the hooks of an interface, with descriptors that keep them while they are on none.

    When the block fails, they are put back, `undo` follows, and the error says so. What others attached meanwhile is
    left alone.
    """

    def __init__(
        self,
        interface: str,
        look: Callable[[], list[link.Attached]],
        undo: Callable[[], list[str]] | None = None,
    ) -> None:
        self._interface, self._look, self._undo = interface, look, undo
        self._descriptors: dict[link.Attached, int] = {}
        self._tried: set[int] = set()
        self._stack = ExitStack()

    @property
    def programs(self) -> list[link.Attached]:
        """In the order in which packets meet them."""
        return list(self._descriptors)

    def descriptor(self, hook: str) -> int | None:
        """That of the program on this hook."""
        return next((fd for attached, fd in self._descriptors.items() if attached.hook == hook), None)

    def tried(self, program: int) -> None:
        """The program with this descriptor may be on a hook when the block fails, and is taken off then."""
        self._tried.add(bpf.program_info(program).id)

    def __enter__(self) -> Kept:
        with ExitStack() as stack:
            for attached in self._look():
                try:
                    descriptor = bpf.program_fd(attached.program_id)
                except OSError as error:
                    raise EngineError(
                        f"{self._interface}: program {attached.program_id} on the {attached.hook} hook cannot be "
                        f"opened ({error.strerror}), so a failure would lose it; nothing was changed, try again"
                    ) from None
                stack.callback(os.close, descriptor)
                self._descriptors[attached] = descriptor
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                return
            with undisturbed():
                done, failures = self._put_back()
                left = self._undone()
        if isinstance(error, link.HookRefused) and not failures:
            # Another hook may be tried; only if none takes the program, this is worth saying. What is left of a
            # preparation the error says itself.
            error.put_back = "; ".join(done)
            return
        words = "; ".join([*done, *failures, *left])
        if not isinstance(error, Exception):
            error.args = (*error.args, words) if words else error.args
        elif isinstance(error, EngineError):
            if words:
                raise EngineError(f"{error}; {words}", error.result) from None
        else:
            raise EngineError(f"{self._interface}: {_words(error)}; {words or 'nothing was changed'}") from error

    def _put_back(self) -> tuple[list[str], list[str]]:
        """What was put back, and what could not be, in sentences."""
        for attempt in range(TRIES):
            try:
                return self._try_to_put_back(), []
            except Exception as error:
                failure = error
                time.sleep(PAUSE if attempt + 1 < TRIES else 0)
        return [], [self._failed(failure)]

    def _undone(self) -> list[str]:
        """What could not be undone, in sentences."""
        try:
            return self._undo() if self._undo else []
        except Exception as error:
            return [f"what was prepared on {self._interface} could not be put back: {_words(error)}"]

    def _failed(self, error: Exception) -> str:
        if not link.exists(self._interface):
            return f"{self._interface} went away, and its programs with it; apply again once it is back"
        try:
            now = _names(self._look())
        except Exception:
            now = "something that cannot be read"
        return (
            f"{_names(self.programs) or 'no program'} could not be put back: {_words(error)}; {self._interface} "
            f"carries {now or 'no program, so its packets are not balanced'} now: apply the balancer "
            "again"
        )

    def _try_to_put_back(self) -> list[str]:
        done = []
        for hook_is_tc in (True, False):
            before = next((item for item in self._descriptors if (item.hook == "tc") == hook_is_tc), None)
            now = next((item for item in self._look() if (item.hook == "tc") == hook_is_tc), None)
            if before == now:
                continue
            if now and now.program_id not in self._tried and now not in self._descriptors:
                other = attachments.describe_program(now.program_id)
                raise EngineError(f"somebody else attached {other} to the {now.hook} hook meanwhile")
            if before is None:
                if now:
                    self._take_off(now)
                continue
            if hook_is_tc:
                tc.attach(self._interface, self._descriptors[before])
            else:
                self._put_on_xdp(before, now)
            done.append(f"{attachments.describe_program(before.program_id)} is back on the {before.hook} hook")
        return done

    def _put_on_xdp(self, before: link.Attached, now: link.Attached | None) -> None:
        if now and now.hook != before.hook:
            self._take_off(now)
            now = None
        with ExitStack() as stack:
            replaced = None
            if now:
                replaced = bpf.program_fd(now.program_id)
                stack.callback(os.close, replaced)
            link.attach(self._interface, self._descriptors[before], before.hook, replaced)

    def _take_off(self, now: link.Attached) -> None:
        if now.hook == "tc":
            tc.detach(self._interface)
            return
        descriptor = bpf.program_fd(now.program_id)
        try:
            link.detach(self._interface, now.hook, descriptor)
        finally:
            os.close(descriptor)


def _names(programs: list[link.Attached]) -> str:
    return ", ".join(
        f"{attachments.describe_program(attached.program_id)} on the {attached.hook} hook" for attached in programs
    )


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
