-- Zones, L2 and L3 networks, their address ranges, and the network services that an L3 network takes from a provider.

CREATE TABLE zones (
    uuid         TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name         TEXT    NOT NULL,
    description  TEXT,
    state        TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    type         TEXT    NOT NULL,
    create_date  INTEGER NOT NULL,
    last_op_date INTEGER NOT NULL
) STRICT;

CREATE TRIGGER zones_deleted AFTER DELETE ON zones
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE l2_networks (
    uuid               TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name               TEXT    NOT NULL,
    description        TEXT,
    zone_uuid          TEXT    NOT NULL REFERENCES zones (uuid) ON DELETE CASCADE,
    -- The router's own device on this network.
    physical_interface TEXT    NOT NULL,
    type               TEXT    NOT NULL CHECK (type IN ('L2NoVlanNetwork', 'L2VlanNetwork')),
    vlan               INTEGER CHECK (vlan BETWEEN 1 AND 4094),
    create_date        INTEGER NOT NULL,
    last_op_date       INTEGER NOT NULL,
    CHECK ((type = 'L2VlanNetwork') = (vlan IS NOT NULL))
) STRICT;

CREATE INDEX l2_networks_zone ON l2_networks (zone_uuid);

CREATE TRIGGER l2_networks_deleted AFTER DELETE ON l2_networks
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE l3_networks (
    uuid            TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name            TEXT    NOT NULL,
    description     TEXT,
    type            TEXT    NOT NULL,
    zone_uuid       TEXT    NOT NULL REFERENCES zones (uuid) ON DELETE CASCADE,
    l2_network_uuid TEXT    NOT NULL REFERENCES l2_networks (uuid) ON DELETE CASCADE,
    state           TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    dns_domain      TEXT,
    system          INTEGER NOT NULL CHECK (system IN (0, 1)),
    category        TEXT    NOT NULL CHECK (category IN ('Public', 'Private', 'System')),
    create_date     INTEGER NOT NULL,
    last_op_date    INTEGER NOT NULL,
    CHECK ((category = 'System') = (system = 1))
) STRICT;

CREATE INDEX l3_networks_zone ON l3_networks (zone_uuid);
CREATE INDEX l3_networks_l2 ON l3_networks (l2_network_uuid);

CREATE TRIGGER l3_networks_deleted AFTER DELETE ON l3_networks
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE l3_network_dns (
    l3_network_uuid TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    dns             TEXT    NOT NULL,
    create_date     INTEGER NOT NULL,
    last_op_date    INTEGER NOT NULL,
    PRIMARY KEY (l3_network_uuid, dns)
) STRICT;

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
    -- start_ip and end_ip as numbers, for choosing among them.
    first_number    INTEGER NOT NULL,
    last_number     INTEGER NOT NULL,
    create_date     INTEGER NOT NULL,
    last_op_date    INTEGER NOT NULL,
    CHECK (first_number <= last_number)
) STRICT;

CREATE INDEX ip_ranges_l3 ON ip_ranges (l3_network_uuid);

CREATE TRIGGER ip_ranges_deleted AFTER DELETE ON ip_ranges
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

-- An address in use. The key over its number is what makes a double allocation impossible: a router is one routing
-- domain, so an address is used once, also where the ranges of two networks overlap. Its user (a VIP, a NIC) refers to it
-- and frees it by a trigger.
CREATE TABLE used_ips (
    uuid            TEXT    NOT NULL PRIMARY KEY,
    ip_range_uuid   TEXT    NOT NULL REFERENCES ip_ranges (uuid) ON DELETE CASCADE,
    l3_network_uuid TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    ip              TEXT    NOT NULL,
    number          INTEGER NOT NULL UNIQUE
) STRICT;

CREATE INDEX used_ips_range ON used_ips (ip_range_uuid);
CREATE INDEX used_ips_l3 ON used_ips (l3_network_uuid);

CREATE TABLE network_service_providers (
    uuid         TEXT    NOT NULL PRIMARY KEY,
    name         TEXT    NOT NULL,
    description  TEXT,
    type         TEXT    NOT NULL UNIQUE,
    create_date  INTEGER NOT NULL,
    last_op_date INTEGER NOT NULL
) STRICT;

-- What each provider offers. A type gets its row here once it works.
CREATE TABLE network_service_types (
    network_service_provider_uuid TEXT NOT NULL REFERENCES network_service_providers (uuid) ON DELETE CASCADE,
    network_service_type          TEXT NOT NULL,
    PRIMARY KEY (network_service_provider_uuid, network_service_type)
) STRICT;

INSERT INTO network_service_providers (uuid, name, description, type, create_date, last_op_date)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'vrouter', 'vipgate, this router', 'vrouter',
        unixepoch() * 1000, unixepoch() * 1000);

INSERT INTO network_service_types (network_service_provider_uuid, network_service_type)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'LoadBalancer');

-- A router serves every L2 network that it is told of.
CREATE VIEW network_service_provider_l2_network_refs AS
SELECT p.uuid AS network_service_provider_uuid, n.uuid AS l2_network_uuid
FROM network_service_providers p CROSS JOIN l2_networks n;

CREATE TABLE network_service_l3_network_refs (
    l3_network_uuid               TEXT NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    network_service_provider_uuid TEXT NOT NULL,
    network_service_type          TEXT NOT NULL,
    PRIMARY KEY (l3_network_uuid, network_service_type),
    FOREIGN KEY (network_service_provider_uuid, network_service_type)
        REFERENCES network_service_types (network_service_provider_uuid, network_service_type) ON DELETE CASCADE
) STRICT;
