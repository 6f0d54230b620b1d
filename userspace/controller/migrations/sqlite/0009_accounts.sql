-- Normal accounts: how much each may have, and what of others' it may see and use.

ALTER TABLE accounts ADD COLUMN description TEXT;

CREATE TABLE quotas (
    name          TEXT    NOT NULL,
    -- The account.
    identity_uuid TEXT    NOT NULL REFERENCES accounts (uuid) ON DELETE CASCADE,
    identity_type TEXT    NOT NULL DEFAULT 'AccountVO',
    value         INTEGER NOT NULL CHECK (value >= 0),
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL,
    PRIMARY KEY (identity_uuid, name)
) STRICT;

-- No account: it is shared with all.
CREATE TABLE shared_resources (
    resource_uuid TEXT NOT NULL REFERENCES resources (uuid) ON DELETE CASCADE,
    account_uuid  TEXT REFERENCES accounts (uuid) ON DELETE CASCADE
) STRICT;

CREATE UNIQUE INDEX shared_resources_pair ON shared_resources (resource_uuid, IFNULL(account_uuid, ''));
CREATE INDEX shared_resources_account ON shared_resources (account_uuid);

-- What a normal account sees: its own, and what is shared with it.
CREATE VIEW visible_resources AS
SELECT account_uuid, uuid AS resource_uuid FROM resources
UNION ALL
SELECT account_uuid, resource_uuid FROM shared_resources WHERE account_uuid IS NOT NULL
UNION ALL
SELECT a.uuid, s.resource_uuid FROM shared_resources s CROSS JOIN accounts a WHERE s.account_uuid IS NULL;
