-- Addresses of both families are ordered by keys of 16 bytes, big endian; INTEGER has 64 bits. An IPv4 address has the key of
-- its IPv4-mapped IPv6 address ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that keys order as the addresses do.
--
-- SQLite can't change a column's type, so both tables are made anew. The store migrates with foreign keys off: with them
-- on, DROP TABLE would delete what refers to its rows.

CREATE TEMP TABLE old_ranges AS SELECT * FROM main.ip_ranges ORDER BY rowid;
CREATE TEMP TABLE old_addresses AS SELECT * FROM main.used_ips ORDER BY rowid;
DROP TABLE main.used_ips;
DROP TABLE main.ip_ranges;

CREATE TABLE ip_ranges (
    uuid            TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    l3_network_uuid TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    name            TEXT    NOT NULL,
    description     TEXT,
    start_ip        TEXT    NOT NULL,
    end_ip          TEXT    NOT NULL,
    netmask         TEXT    NOT NULL,
    gateway         TEXT    NOT NULL,
    network_cidr    TEXT    NOT NULL,
    -- The keys of start_ip and end_ip, for choosing among them.
    first_key       BLOB    NOT NULL CHECK (length(first_key) = 16),
    last_key        BLOB    NOT NULL CHECK (length(last_key) = 16),
    create_date     INTEGER NOT NULL,
    last_op_date    INTEGER NOT NULL,
    CHECK (first_key <= last_key)
) STRICT;

CREATE INDEX ip_ranges_l3 ON ip_ranges (l3_network_uuid);

CREATE TRIGGER ip_ranges_deleted AFTER DELETE ON ip_ranges
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

-- An address in use. That its key is unique is what makes a double allocation impossible: a router is one routing domain, so
-- an address is used once, also where the ranges of two networks overlap. Its user (a VIP, a NIC) refers to it and frees it by
-- a trigger.
CREATE TABLE used_ips (
    uuid            TEXT NOT NULL PRIMARY KEY,
    ip_range_uuid   TEXT NOT NULL REFERENCES ip_ranges (uuid) ON DELETE CASCADE,
    l3_network_uuid TEXT NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    ip              TEXT NOT NULL,
    address_key     BLOB NOT NULL UNIQUE CHECK (length(address_key) = 16),
    -- The key of the address that follows: SQL can't add to keys. NULL for the last address of all.
    next_key        BLOB CHECK (length(next_key) = 16)
) STRICT;

CREATE INDEX used_ips_range ON used_ips (ip_range_uuid);
CREATE INDEX used_ips_l3 ON used_ips (l3_network_uuid);

INSERT INTO ip_ranges
SELECT uuid, l3_network_uuid, name, description, start_ip, end_ip, netmask, gateway, network_cidr,
       unhex(printf('00000000000000000000FFFF%08X', first_number)), unhex(printf('00000000000000000000FFFF%08X', last_number)),
       create_date, last_op_date
FROM old_ranges;

-- 255.255.255.255 is in no range, so the addresses that follow are IPv4, too.
INSERT INTO used_ips
SELECT uuid, ip_range_uuid, l3_network_uuid, ip, unhex(printf('00000000000000000000FFFF%08X', number)),
       unhex(printf('00000000000000000000FFFF%08X', number + 1))
FROM old_addresses;

DROP TABLE old_ranges;
DROP TABLE old_addresses;

-- Undoes all of this if anything refers to a row that is not there.
CREATE TEMP TABLE dangling_references (count INTEGER CHECK (count = 0));
INSERT INTO dangling_references SELECT COUNT(*) FROM pragma_foreign_key_check;
DROP TABLE dangling_references;
