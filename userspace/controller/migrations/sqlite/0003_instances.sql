-- VM instances and their NICs: records only; this router runs no VM.

CREATE TABLE vm_instances (
    uuid                    TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name                    TEXT    NOT NULL,
    description             TEXT,
    zone_uuid               TEXT    NOT NULL REFERENCES zones (uuid) ON DELETE CASCADE,
    cluster_uuid            TEXT,
    host_uuid               TEXT,
    last_host_uuid          TEXT,
    image_uuid              TEXT,
    instance_offering_uuid  TEXT,
    root_volume_uuid        TEXT,
    platform                TEXT    NOT NULL,
    default_l3_network_uuid TEXT    REFERENCES l3_networks (uuid) ON DELETE SET NULL,
    type                    TEXT    NOT NULL,
    hypervisor_type         TEXT    NOT NULL,
    memory_size             INTEGER NOT NULL,
    cpu_num                 INTEGER NOT NULL,
    cpu_speed               INTEGER NOT NULL,
    allocator_strategy      TEXT,
    state                   TEXT    NOT NULL CHECK (state IN ('Running', 'Stopped')),
    -- Counts all instances ever made.
    internal_id             INTEGER NOT NULL UNIQUE,
    create_date             INTEGER NOT NULL,
    last_op_date            INTEGER NOT NULL
) STRICT;

CREATE INDEX vm_instances_zone ON vm_instances (zone_uuid);
CREATE INDEX vm_instances_default_l3 ON vm_instances (default_l3_network_uuid);

CREATE TRIGGER vm_instances_deleted AFTER DELETE ON vm_instances
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

CREATE TABLE vm_nics (
    uuid             TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    vm_instance_uuid TEXT    NOT NULL REFERENCES vm_instances (uuid) ON DELETE CASCADE,
    used_ip_uuid     TEXT    NOT NULL UNIQUE REFERENCES used_ips (uuid) ON DELETE CASCADE,
    l3_network_uuid  TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    ip               TEXT    NOT NULL,
    mac              TEXT    NOT NULL UNIQUE,
    netmask          TEXT    NOT NULL,
    gateway          TEXT    NOT NULL,
    meta_data        TEXT,
    internal_name    TEXT    NOT NULL,
    device_id        INTEGER NOT NULL,
    create_date      INTEGER NOT NULL,
    last_op_date     INTEGER NOT NULL,
    UNIQUE (vm_instance_uuid, device_id)
) STRICT;

CREATE INDEX vm_nics_l3 ON vm_nics (l3_network_uuid);

CREATE TRIGGER vm_nics_deleted AFTER DELETE ON vm_nics
BEGIN
    DELETE FROM used_ips WHERE uuid = OLD.used_ip_uuid;
    DELETE FROM resources WHERE uuid = OLD.uuid;
END;
