"""A thread that does the same again and again, whatever happens."""

import logging
import threading

log = logging.getLogger(__name__)


class Repeating(threading.Thread):
    """Calls `step` after `first` seconds, then every `seconds`, until stopped."""

    def __init__(self, name: str, seconds: float, first: float) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._first = first
        self._stopped = threading.Event()

    def run(self) -> None:
        """Go on until stopped; trouble is logged once per kind and tried again."""
        trouble, pause = "", self._first
        while not self._stopped.wait(pause):
            pause = self._seconds
            try:
                self.step()
                trouble = ""
            except Exception as error:  # noqa: BLE001  a thread that ends would stop the service
                if str(error) != trouble:
                    log.warning("A step of the %s failed (%s); trying again", self.name, error)
                trouble = str(error)

    def step(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the repeating."""
        self._stopped.set()
