"""First tables: projects and integrations, the record, and what operators see.

Revises:
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "c3b0a2ebd59c"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "projects",
    "project_keys",
    "idempotency_keys",
    "integrations",
    "attributions",
    "deliveries",
    "dead_letters",
    "journal_marks",
    "tallies",
    "audit_log",
    "notifications",
)


def upgrade() -> None:
    """Apply it."""
    _projects()
    _integrations()
    _deliveries()
    _dead_letters()
    _positions()
    _operators()


def downgrade() -> None:
    """Take it back."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", kind, nullable=False)


def _text(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=null)


def _time(name: str, *, null: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)


def _of_project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=f"fk_{table}_project_id")


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(64), nullable=False),
        _text("name"),
        _time("created_at"),
        _time("deleted_at", null=True),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    op.create_table(
        "project_keys",
        _id(),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        _time("created_at"),
        _time("revoked_at", null=True),
        _time("last_used_at", null=True),
        sa.CheckConstraint("kind IN ('secret', 'sdk')", name=op.f("ck_project_keys_kind")),
        sa.CheckConstraint("mode IN ('live', 'test')", name=op.f("ck_project_keys_mode")),
        _of_project("project_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_project_keys"),
        sa.UniqueConstraint("digest", name="uq_project_keys_digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_project_keys_project_id", "project_keys", ["project_id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        _text("body"),
        _time("created_at"),
        _of_project("idempotency_keys"),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def _integrations() -> None:
    op.create_table(
        "integrations",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("slug", sa.String(64), nullable=False),
        sa.Column("platform", sa.String(16), nullable=False),
        _text("title"),
        sa.Column("active", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        _count("epoch"),
        sa.Column("probation_epoch", sa.Integer()),
        _text("settings", null=True),
        _time("created_at"),
        _time("updated_at"),
        _time("deleted_at", null=True),
        _time("last_delivery_at", null=True),
        _time("last_error_at", null=True),
        _text("last_error_message", null=True),
        _text("last_error_reason", null=True),
        _count("delivery_error_count"),
        _time("first_error_at", null=True),
        sa.CheckConstraint("active IN (0, 1, 2)", name=op.f("ck_integrations_active")),
        _of_project("integrations"),
        sa.PrimaryKeyConstraint("id", name="pk_integrations"),
    )
    op.create_index(
        "ix_integrations_project_id_created_at", "integrations", ["project_id", "created_at"]
    )
    op.create_table(
        "attributions",
        _text("project_id"),
        _text("user_key"),
        _text("record", null=True),
        _text("state"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("project_id", "user_key", name="pk_attributions"),
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        _id(),
        _text("integration_id"),
        _text("project_id"),
        _text("event_id"),
        _text("event_name"),
        _text("outcome"),
        _text("reason", null=True),
        _text("message", null=True),
        sa.Column("status", sa.Integer()),
        _count("attempts"),
        _time("accepted_at", null=True),
        _time("finished_at"),
        _text("entry_id", null=True),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_integration_id_id", "deliveries", ["integration_id", "id"])
    op.create_index("ix_deliveries_project_id_event_id", "deliveries", ["project_id", "event_id"])


def _dead_letters() -> None:
    op.create_table(
        "dead_letters",
        _id(),
        _text("project_id", null=True),
        _text("integration_id", null=True),
        _text("event_id", null=True),
        _text("event_name", null=True),
        _text("reason"),
        _text("message", null=True),
        sa.Column("faults", sa.JSON(none_as_null=True)),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _text("request", null=True),
        _text("response", null=True),
        sa.Column("status", sa.Integer()),
        _count("attempts"),
        _time("created_at"),
        _time("replayed_at", null=True),
        _time("expires_at", null=True),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_dead_letters_integration_id_id", "dead_letters", ["integration_id", "id"])
    op.create_index("ix_dead_letters_project_id_id", "dead_letters", ["project_id", "id"])


def _positions() -> None:
    op.create_table(
        "journal_marks",
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        _text("last_id"),
        sa.PrimaryKeyConstraint("shard", name="pk_journal_marks"),
    )
    op.create_table(
        "tallies",
        _text("integration_id"),
        _text("outcome"),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("integration_id", "outcome", name="pk_tallies"),
    )


def _operators() -> None:
    op.create_table(
        "audit_log",
        _id(),
        _time("at"),
        _text("actor"),
        _text("action"),
        _text("project_id", null=True),
        _text("integration_id", null=True),
        _text("before", null=True),
        _text("after", null=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_integration_id_id", "audit_log", ["integration_id", "id"])
    op.create_index("ix_audit_log_project_id_id", "audit_log", ["project_id", "id"])
    op.create_table(
        "notifications",
        _id(),
        _time("at"),
        _text("kind"),
        _text("project_id", null=True),
        _text("integration_id", null=True),
        _text("payload"),
        _time("sent_at", null=True),
        _count("attempts"),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sqlite_autoincrement=True,
    )
    unsent = sa.text("sent_at IS NULL")
    op.create_index(
        "ix_notifications_unsent",
        "notifications",
        ["id"],
        sqlite_where=unsent,
        postgresql_where=unsent,
    )
