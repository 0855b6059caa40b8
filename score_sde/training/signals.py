"""Asked to stop: the first signal is acknowledged at once and ends training in good order, the second ends it at once.

Python runs its handlers between two of its own instructions, which may be a compilation of a minute apart.  So a thread
listens where the system itself notes each signal.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_ONE_PRESS = 0.2  # seconds in which signals are one: a wrapper may pass on what the terminal has sent already


class Signals:
    """Remembers the first SIGINT, SIGTERM or SIGHUP in `received`; ends the process at a second one.

    Ending at once loses nothing that was saved: every file is written beside its place and moved there when whole.  A
    SIGHUP that is ignored, as under nohup, stays ignored.
    """

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        watched = [s for s in WATCHED if s != getattr(signal, "SIGHUP", None) or signal.getsignal(s) != signal.SIG_IGN]
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old = {s: signal.signal(s, lambda *_: None) for s in watched}  # a handler, so that they are noted at all
        self._thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self._thread.start()
        return self

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as notes:
            while number := notes.read(1)[0]:
                if number not in self._old:
                    continue
                if self.received is None:
                    self.received, first = number, time.monotonic()
                    _write(f"\n{signal.Signals(number).name}: stopping after this step; press again to stop now\n")
                elif time.monotonic() - first > _ONE_PRESS:
                    _write("stopped; what was saved is there\n")
                    os._exit(128 + number)

    def __exit__(self, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._writer)

    def unless_received(self, work: Callable[[], None]) -> bool:
        """Do `work` in a thread of its own; True once it is done, False as soon as a signal comes, work going on.

        What `work` raises is raised.
        """
        raised: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # of any kind: it is raised below
                raised.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        while thread.is_alive():
            if self.received is not None:
                return False
            thread.join(0.05)
        if raised:
            raise raised[0]
        return True


def _write(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:  # nobody reads it any more
        pass
