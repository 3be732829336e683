"""What belongs to a thread."""

import threading
from typing import Any

__all__ = ["OfThread"]


class OfThread(threading.local):
    """A value of each thread, None at first, which a copy or a pickle begins anew."""

    def __init__(self) -> None:
        self.value: Any = None  # on the instance: torch.compile does not guard what a class has too

    def __reduce__(self) -> tuple[type["OfThread"], tuple[()]]:
        return OfThread, ()
