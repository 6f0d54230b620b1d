-- What the REST layer must not forget: sessions, asynchronous jobs, and the web hooks that wait to be called.

CREATE TABLE sessions (
    -- SHA-256 of the session's uuid, in hexadecimal: who reads this file cannot act as its users.
    uuid_hash    TEXT    NOT NULL PRIMARY KEY,
    account_uuid TEXT    NOT NULL REFERENCES accounts (uuid) ON DELETE CASCADE,
    create_date  INTEGER NOT NULL,
    expired_date INTEGER NOT NULL
) STRICT;

CREATE INDEX sessions_account ON sessions (account_uuid);
CREATE INDEX sessions_expired ON sessions (expired_date);

CREATE TABLE jobs (
    uuid        TEXT    NOT NULL PRIMARY KEY,
    -- Name of the call.
    api         TEXT    NOT NULL,
    -- Applying: its changes are stored, the kernel may not hold them yet.
    state       TEXT    NOT NULL CHECK (state IN ('Applying', 'Succeeded', 'Failed')),
    -- Applying: JSON of what is to be applied, and of what is answered then.
    change      TEXT,
    reply       TEXT,
    -- The finished body.
    result      TEXT,
    -- The caller wants the schema in it.
    with_schema INTEGER NOT NULL CHECK (with_schema IN (0, 1)),
    create_date INTEGER NOT NULL,
    finish_date INTEGER,
    CHECK ((state = 'Applying') = (finish_date IS NULL)),
    CHECK ((state = 'Applying') = (result IS NULL)),
    CHECK ((state = 'Applying') = (change IS NOT NULL AND reply IS NOT NULL))
) STRICT;

CREATE INDEX jobs_finished ON jobs (finish_date);

-- The row goes when the hook was called or given up.
CREATE TABLE web_hooks (
    job_uuid TEXT    NOT NULL PRIMARY KEY REFERENCES jobs (uuid) ON DELETE CASCADE,
    url      TEXT    NOT NULL,
    -- Calls that failed so far.
    failures INTEGER NOT NULL
) STRICT;
