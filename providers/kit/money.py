"""Amounts: which one, in which currency, before or after commission, in how many digits."""

from decimal import ROUND_HALF_EVEN, Decimal

from providers.kit.catalogue import NO_MONEY
from providers.kit.event import Event, Money
from providers.kit.settings import Settings

# ISO 4217 minor units other than 2
_NO_MINOR = frozenset(
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split()  # noqa: SIM905
)
_THOUSANDTHS = frozenset("BHD IQD JOD KWD LYD OMR TND".split())  # noqa: SIM905


def minor_digits(currency: str) -> int:
    """Return how many decimals `currency` has: JPY 0, USD 2, KWD 3."""
    if currency in _NO_MINOR:
        return 0
    return 3 if currency in _THOUSANDTHS else 2


def revenue_of(event: Event, settings: Settings, basis: str = "as_is") -> Money | None:
    """Return `stated_revenue`, but None of an event that moves no money by the catalogue.

    A name the catalogue does not know may move some: its producer says so by the amount.
    """
    return None if event.name in NO_MONEY else stated_revenue(event, settings, basis)


def stated_revenue(event: Event, settings: Settings, basis: str = "as_is") -> Money | None:
    """Return the revenue the event came with, or None: it has none, or it is switched off.

    For those who pass the event on as it is; an upstream that counts gets `revenue_of`.

    `basis`: "gross" and "net" (also "proceeds") convert by `proceeds_rate`; without a rate the
    amount stays as it is. Rounded half-even to the currency's minor unit where converted.
    """
    money = event.revenue
    if money is None or not settings.sends_revenue(event.name):
        return None
    rate = money.proceeds_rate
    if basis == "as_is" or not rate or money.is_proceed == (basis in ("net", "proceeds")):
        return money
    factor = rate / 100 if basis in ("net", "proceeds") else 100 / rate
    return Money(
        value=rounded(money.value * factor, money.currency),
        value_usd=rounded(money.value_usd * factor, "USD"),
        currency=money.currency,
        is_proceed=not money.is_proceed,
        proceeds_rate=rate,
    )


def amount_of(money: Money, basis: str) -> tuple[Decimal, str]:
    """Return (amount, currency): the dollar value for "usd", else the store's own."""
    return (money.value_usd, "USD") if basis == "usd" else (money.value, money.currency)


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Return `amount` half-even in the currency's minor unit."""
    return amount.quantize(Decimal(1).scaleb(-minor_digits(currency)), ROUND_HALF_EVEN)


def plain(amount: Decimal) -> str:
    """Return the amount in plain notation: the digits it has, no exponent, no thousands mark."""
    return f"{amount:f}"
