-- Who owns what: accounts, the register of all resources, and the tags that any resource can carry.
--
-- Conventions of every table here:
--   * a column is an API field in snake_case, so the query engine maps names by rule;
--   * dates are milliseconds since 1970-01-01T00:00:00Z;
--   * uuids are 32 lower-case hexadecimal digits;
--   * booleans are 0 and 1.

CREATE TABLE accounts (
    uuid          TEXT    NOT NULL PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    type          TEXT    NOT NULL CHECK (type IN ('SystemAdmin', 'Normal')),
    -- Salted hash of what the client sends as its password; NULL: nobody can log in to it yet.
    password_hash TEXT,
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL
) STRICT;

-- The uuid under which every installation of the real system knows its administrator.
INSERT INTO accounts (uuid, name, type, create_date, last_op_date)
VALUES ('36c27e8ff05c4780bf6d2fa65700f22e', 'admin', 'SystemAdmin',
        unixepoch() * 1000, unixepoch() * 1000);

-- Every resource has its row here and in the table of its type. The register makes a uuid unique over all types and is
-- what tags hang on. Each type's table deletes its register row by a trigger, so no cascade can leave one behind.
CREATE TABLE resources (
    uuid         TEXT NOT NULL PRIMARY KEY,
    -- Name of the real system's class, e.g. 'VipVO': what its errors and tags call the type.
    type         TEXT NOT NULL,
    account_uuid TEXT NOT NULL REFERENCES accounts (uuid) ON DELETE CASCADE
) STRICT;

CREATE INDEX resources_account ON resources (account_uuid);

CREATE TABLE system_tags (
    uuid          TEXT    NOT NULL PRIMARY KEY,
    resource_uuid TEXT    NOT NULL REFERENCES resources (uuid) ON DELETE CASCADE,
    resource_type TEXT    NOT NULL,
    tag           TEXT    NOT NULL,
    type          TEXT    NOT NULL DEFAULT 'System',
    inherent      INTEGER NOT NULL DEFAULT 0 CHECK (inherent IN (0, 1)),
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL,
    UNIQUE (resource_uuid, tag)
) STRICT;

CREATE TABLE user_tags (
    uuid          TEXT    NOT NULL PRIMARY KEY,
    resource_uuid TEXT    NOT NULL REFERENCES resources (uuid) ON DELETE CASCADE,
    resource_type TEXT    NOT NULL,
    tag           TEXT    NOT NULL,
    type          TEXT    NOT NULL DEFAULT 'User',
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL,
    UNIQUE (resource_uuid, tag)
) STRICT;
