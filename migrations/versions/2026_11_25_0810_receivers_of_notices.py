"""Receivers of a project's notices, and when a notice is tried again.

The previous release runs on it: all columns are nullable, and it reads rows by name. The table of
notices is small, so its index is built under an ordinary, short lock.

Revises: c3b0a2ebd59c
"""

import sqlalchemy as sa
from alembic import op

revision = "7d1f5a90c2b4"
down_revision = "c3b0a2ebd59c"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.add_column("projects", sa.Column("notify", sa.Text()))
    op.add_column("notifications", sa.Column("next_at", sa.DateTime(timezone=True)))
    op.create_index("ix_notifications_integration_id_id", "notifications", ["integration_id", "id"])


def downgrade() -> None:
    """Take it back."""
    op.drop_index("ix_notifications_integration_id_id", "notifications")
    op.drop_column("notifications", "next_at")
    op.drop_column("projects", "notify")
