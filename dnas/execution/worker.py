"""A worker process: it makes its bench, then carries tasks out until nobody sends any. Started by `local`.

It ends with the process that started it, however that ends: its end of the lifeline, a pipe, is closed then.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection

from dnas.execution.executors import Done, Refused, Setting, Told, sendable


def serve(connection: Connection) -> None:
    """Read a setting, then one task after the other; sends reports."""
    current = ""

    def send(message: object, live: bool) -> None:
        connection.send(Told(current, message, live))

    setting: Setting = connection.recv()
    refusal: BaseException | None = None
    try:
        bench = setting.prepare(send, *setting.arguments)
    except BaseException as error:
        refusal = error
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        current = task.id
        try:
            if refusal is not None:
                raise refusal
            report: Done | Refused = Done(task.id, bench(task))
        except BaseException as error:
            report = Refused(task.id, sendable(error, lambda error: pickle.loads(pickle.dumps(error))))
        connection.send(report)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    os._exit(1)


def main() -> None:
    """Serve the connection whose file descriptors are the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    try:
        serve(connection)
    except (BrokenPipeError, ConnectionResetError):
        pass


if __name__ == "__main__":
    main()
