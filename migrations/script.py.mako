"""${message}.

Before you commit:
- Does the previous release still run against this schema? If not, say why here.
- Locks: add columns nullable or with a server default; on PostgreSQL build an index on a big table
  with `postgresql_concurrently=True` in an autocommit block.
- The downgrade is true: `tests/migrations` walks up, down and up, and compares with the models.

Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Apply it."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Take it back."""
    ${downgrades if downgrades else "pass"}
