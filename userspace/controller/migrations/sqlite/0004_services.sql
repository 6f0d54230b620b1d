-- VIPs, load balancers, listeners and the NICs behind them.

CREATE TABLE vips (
    uuid             TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name             TEXT    NOT NULL,
    description      TEXT,
    l3_network_uuid  TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    ip_range_uuid    TEXT    NOT NULL REFERENCES ip_ranges (uuid) ON DELETE CASCADE,
    used_ip_uuid     TEXT    NOT NULL UNIQUE REFERENCES used_ips (uuid) ON DELETE CASCADE,
    ip               TEXT    NOT NULL,
    state            TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    gateway          TEXT    NOT NULL,
    netmask          TEXT    NOT NULL,
    -- Type of the provider that serves it; NULL until a service is bound.
    service_provider TEXT,
    -- The services on it, joined by commas in the order in which they came; NULL: none.
    use_for          TEXT,
    create_date      INTEGER NOT NULL,
    last_op_date     INTEGER NOT NULL
) STRICT;

CREATE INDEX vips_l3 ON vips (l3_network_uuid);
CREATE INDEX vips_range ON vips (ip_range_uuid);

CREATE TRIGGER vips_deleted AFTER DELETE ON vips
BEGIN
    DELETE FROM used_ips WHERE uuid = OLD.used_ip_uuid;
    DELETE FROM resources WHERE uuid = OLD.uuid;
END;

-- The guest networks that a VIP's services reach.
CREATE TABLE vip_peer_l3_networks (
    vip_uuid        TEXT NOT NULL REFERENCES vips (uuid) ON DELETE CASCADE,
    l3_network_uuid TEXT NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    PRIMARY KEY (vip_uuid, l3_network_uuid)
) STRICT;

CREATE INDEX vip_peer_l3_networks_l3 ON vip_peer_l3_networks (l3_network_uuid);

CREATE TABLE load_balancers (
    uuid          TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name          TEXT    NOT NULL,
    description   TEXT,
    state         TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    vip_uuid      TEXT    NOT NULL REFERENCES vips (uuid) ON DELETE CASCADE,
    -- Fixed by the first NIC that is added; NULL until then.
    provider_type TEXT,
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL
) STRICT;

CREATE INDEX load_balancers_vip ON load_balancers (vip_uuid);

CREATE TRIGGER load_balancers_deleted AFTER DELETE ON load_balancers
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE load_balancer_listeners (
    uuid               TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name               TEXT    NOT NULL,
    description        TEXT,
    load_balancer_uuid TEXT    NOT NULL REFERENCES load_balancers (uuid) ON DELETE CASCADE,
    instance_port      INTEGER NOT NULL CHECK (instance_port BETWEEN 1 AND 65535),
    load_balancer_port INTEGER NOT NULL CHECK (load_balancer_port BETWEEN 1 AND 65535),
    protocol           TEXT    NOT NULL CHECK (protocol IN ('tcp', 'udp', 'http', 'https')),
    -- Index in the kernel's tables.
    number             INTEGER NOT NULL UNIQUE,
    create_date        INTEGER NOT NULL,
    last_op_date       INTEGER NOT NULL
) STRICT;

CREATE INDEX load_balancer_listeners_lb ON load_balancer_listeners (load_balancer_uuid);

CREATE TRIGGER load_balancer_listeners_deleted AFTER DELETE ON load_balancer_listeners
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE load_balancer_listener_vm_nic_refs (
    id            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    listener_uuid TEXT    NOT NULL REFERENCES load_balancer_listeners (uuid) ON DELETE CASCADE,
    vm_nic_uuid   TEXT    NOT NULL REFERENCES vm_nics (uuid) ON DELETE CASCADE,
    -- Pending: written, the kernel does not hold it yet. Inactive: its VM is stopped.
    status        TEXT    NOT NULL CHECK (status IN ('Pending', 'Active', 'Inactive')),
    -- Index in the kernel's tables.
    number        INTEGER NOT NULL UNIQUE,
    create_date   INTEGER NOT NULL,
    last_op_date  INTEGER NOT NULL,
    UNIQUE (listener_uuid, vm_nic_uuid)
) STRICT;

CREATE INDEX load_balancer_listener_vm_nic_refs_nic ON load_balancer_listener_vm_nic_refs (vm_nic_uuid);

-- The last number given out of each set of kernel table indexes: numbers are given in turn, so that one that was given
-- back rests as long as possible (flows that drain from a removed backend keep their entry meanwhile).
CREATE TABLE numbers (
    name TEXT    NOT NULL PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT;

INSERT INTO numbers (name, last) VALUES ('listener', 0), ('backend', 0), ('instance', 0);
