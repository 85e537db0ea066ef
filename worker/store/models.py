"""The tables. Rows are read into these classes as plain records; no session is used.

Ids of integrations are exactly eight characters, yet `varchar`: PostgreSQL compares a `char(8)`
column with a text parameter by casting the column, past its index.
"""

from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER keys


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC, on SQLite too (which keeps it as naive UTC text)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  the base class's signature
        """Return the time in UTC; raise ValueError for one without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time needs its zone: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  the base class's signature
        """Return the stored time as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What all tables share: names of constraints, and times in UTC."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcTime}  # noqa: RUF012  read by SQLAlchemy as it stands

    @classmethod
    def table(cls) -> Table:
        """Return the table itself, for statements."""
        found = cls.__table__
        assert isinstance(found, Table)  # noqa: S101  every model here maps one table
        return found

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """Return the record of a row of `select(cls.table())`."""
        return cls(**row._asdict())


class Project(Base):
    """A customer's app or family of apps. `notify`: who is told of it, encrypted JSON."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    notify: Mapped[str | None] = mapped_column(Text)


class ProjectKey(Base):
    """A key of a project: its hash, and a prefix by which people recognise it."""

    __tablename__ = "project_keys"
    __table_args__ = (
        CheckConstraint("kind IN ('secret', 'sdk')", name="kind"),
        CheckConstraint("mode IN ('live', 'test')", name="mode"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    prefix: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256, hex
    kind: Mapped[str] = mapped_column(String(8))
    mode: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Integration(Base):
    """A project's use of a provider. `settings` is encrypted JSON, null until first saved.

    `epoch` moves with each suspension and each re-activation: failures counted under an older one
    are void. While `probation_epoch` equals it, the first refusal of credentials suspends again.
    """

    __tablename__ = "integrations"
    __table_args__ = (
        CheckConstraint("active IN (0, 1, 2)", name="active"),
        Index(None, "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    slug: Mapped[str] = mapped_column(String(64))
    platform: Mapped[str] = mapped_column(String(16))
    title: Mapped[str] = mapped_column(Text)
    active: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    probation_epoch: Mapped[int | None]
    settings: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    last_delivery_at: Mapped[datetime | None]
    last_error_at: Mapped[datetime | None]
    last_error_message: Mapped[str | None] = mapped_column(Text)
    last_error_reason: Mapped[str | None] = mapped_column(Text)
    delivery_error_count: Mapped[int] = mapped_column(server_default=text("0"))
    first_error_at: Mapped[datetime | None]  # of the present streak

    @property
    def fails(self) -> bool:
        """Whether it is active and had errors since its last delivery."""
        return self.active == 1 and self.delivery_error_count > 0


class Delivery(Base):
    """How one event ended for one integration."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index(None, "integration_id", "id"),
        Index(None, "project_id", "event_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    integration_id: Mapped[str] = mapped_column(Text)
    project_id: Mapped[str] = mapped_column(Text)
    event_id: Mapped[str] = mapped_column(Text)
    event_name: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int | None]  # HTTP
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    accepted_at: Mapped[datetime | None]
    finished_at: Mapped[datetime]
    entry_id: Mapped[str | None] = mapped_column(Text)  # in the intake stream


class DeadLetter(Base):
    """What was given up: the event's exact bytes, and why. Null ids: they are not known."""

    __tablename__ = "dead_letters"
    __table_args__ = (
        Index(None, "integration_id", "id"),
        Index(None, "project_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    project_id: Mapped[str | None] = mapped_column(Text)
    integration_id: Mapped[str | None] = mapped_column(Text)
    event_id: Mapped[str | None] = mapped_column(Text)
    event_name: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    faults: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    request: Mapped[str | None] = mapped_column(Text)  # masked
    response: Mapped[str | None] = mapped_column(Text)  # masked
    status: Mapped[int | None]  # HTTP
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime]
    replayed_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class JournalMark(Base):
    """How far a shard's journal is recorded; moves in the transaction of its rows."""

    __tablename__ = "journal_marks"

    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_id: Mapped[str] = mapped_column(Text)


class Tally(Base):
    """Terminal outcomes recorded for an integration; the audit compares them with Redis."""

    __tablename__ = "tallies"

    integration_id: Mapped[str] = mapped_column(Text, primary_key=True)
    outcome: Mapped[str] = mapped_column(Text, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class AuditRow(Base):
    """Who changed what; `before` and `after` are JSON with secrets masked."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index(None, "integration_id", "id"),
        Index(None, "project_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    project_id: Mapped[str | None] = mapped_column(Text)
    integration_id: Mapped[str | None] = mapped_column(Text)
    before: Mapped[str | None] = mapped_column(Text)
    after: Mapped[str | None] = mapped_column(Text)


class Notification(Base):
    """Outbox of what operators are told; written in the transaction of what it tells of."""

    __tablename__ = "notifications"
    __table_args__ = (
        Index(
            "ix_notifications_unsent",
            "id",
            sqlite_where=text("sent_at IS NULL"),
            postgresql_where=text("sent_at IS NULL"),
        ),
        Index(None, "integration_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(Text)
    project_id: Mapped[str | None] = mapped_column(Text)
    integration_id: Mapped[str | None] = mapped_column(Text)
    payload: Mapped[str] = mapped_column(Text)
    sent_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    next_at: Mapped[datetime | None]  # not before; null: at once


class Attribution(Base):
    """A user's Apple Ads attribution as `searchads` resolved it."""

    __tablename__ = "attributions"

    project_id: Mapped[str] = mapped_column(Text, primary_key=True)
    user_key: Mapped[str] = mapped_column(Text, primary_key=True)
    record: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class IdempotencyKey(Base):
    """The answer a project's `Idempotency-Key` had, for a day."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  # of the request's body, SHA-256, hex
    status: Mapped[int] = mapped_column(SmallInteger)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)
