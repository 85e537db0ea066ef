"""A server that is away: expected now and then, waited for, and told of in one line."""

from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

AWAY: tuple[type[Exception], ...] = (
    LostConnection,
    NoAnswer,
    OperationalError,
    InterfaceError,
    PoolTimeout,
    BrokerError,
)


def told(error: BaseException) -> str:
    """Return what went wrong in one line."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return " ".join(str(cause).split()) or type(cause).__name__
