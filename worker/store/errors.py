"""What can be wrong with a call to the store; each message names the remedy."""

Fault = tuple[str, str]  # field, what is wrong and what it should be


class StoreError(Exception):
    """The root of this tree."""


class NotFound(StoreError, LookupError):
    """There is no such row, it is deleted, or it is another project's."""


class AlreadyExists(StoreError, ValueError):
    """The id is taken."""


class Invalid(StoreError, ValueError):
    """Fields are faulty; `faults` names every one."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{field}: {text}" for field, text in faults))


class UnreadableSettings(StoreError):
    """Encrypted settings can not be opened."""


class UnknownKey(UnreadableSettings, LookupError):
    """Settings are encrypted with a key that is not in the ring."""

    def __init__(self, key_id: str, integrations: list[str]) -> None:
        self.integrations = integrations
        super().__init__(
            f"No key {key_id} for the settings of {', '.join(integrations)}. Put the lost key back "
            "at the end of ONWARD_SECRET_KEYS, or save the settings of these integrations anew."
        )


class Corrupt(UnreadableSettings, ValueError):
    """Encrypted settings were altered, or belong to another row."""

    def __init__(self, integration_id: str) -> None:
        super().__init__(
            f"The encrypted settings of {integration_id} are damaged or were copied from another "
            "integration. Save them anew."
        )
