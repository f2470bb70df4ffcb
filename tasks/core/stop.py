"""Stopping: one flag that everything that waits looks at, so that a flow going down leaves nobody behind."""

import threading

_stop = threading.Event()


class Stopped(BaseException):
    """The flow is going down; not an error of the stage, so no `except Exception` may swallow it."""


def stop() -> None:
    """End every running child and every wait of this process, and let none start."""
    _stop.set()


def allow() -> None:
    """Take `stop` back, for the next flow in this process."""
    _stop.clear()


def check() -> None:
    """Raise Stopped if the flow is going down."""
    if _stop.is_set():
        raise Stopped("the run was stopped")
