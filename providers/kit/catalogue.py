"""The events of the platform: names, titles, groups, and the other spellings met at intake."""

from types import MappingProxyType

EVENTS = MappingProxyType(
    {
        "trial_started": "Trial Started",
        "trial_converted": "Trial Converted",
        "trial_canceled": "Trial Canceled",
        "trial_billing_retry": "Trial Billing Retry",
        "trial_still_active": "Trial Still Active",
        "trial_expired": "Trial Expired",
        "subscription_started": "Subscription Started",
        "subscription_renewed": "Subscription Renewed",
        "subscription_upgraded": "Subscription Upgraded",
        "subscription_downgraded": "Subscription Downgraded",
        "subscription_product_changed": "Subscription Product Changed",
        "subscription_canceled": "Subscription Canceled",
        "subscription_billing_retry": "Subscription Billing Retry",
        "subscription_expired": "Subscription Expired",
        "subscription_refunded": "Subscription Refunded",
        "in_app_purchase": "In-App Purchase",
        "in_app_refunded": "In-App Refunded",
    }
)

ALIASES = MappingProxyType(
    {
        "trial_billing_retry_entered": "trial_billing_retry",
        "subscription_billing_retry_entered": "subscription_billing_retry",
        "inapp_purchase": "in_app_purchase",
        "in_app_purchase_refunded": "in_app_refunded",
        "trial_cancelled": "trial_canceled",
        "subscription_cancelled": "subscription_canceled",
    }
)

MONEY_IN = frozenset(
    {
        "trial_converted",
        "subscription_started",
        "subscription_renewed",
        "subscription_upgraded",
        "in_app_purchase",
    }
)
MONEY_OUT = frozenset({"subscription_refunded", "in_app_refunded"})
NO_MONEY = frozenset(EVENTS) - MONEY_IN - MONEY_OUT
