-- Port forwarding: ports of a VIP that lead to as many of a NIC.

CREATE TABLE port_forwarding_rules (
    uuid               TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name               TEXT    NOT NULL,
    description        TEXT,
    vip_uuid           TEXT    NOT NULL REFERENCES vips (uuid) ON DELETE CASCADE,
    vip_port_start     INTEGER NOT NULL CHECK (vip_port_start BETWEEN 1 AND 65535),
    vip_port_end       INTEGER NOT NULL CHECK (vip_port_end BETWEEN vip_port_start AND 65535),
    private_port_start INTEGER NOT NULL CHECK (private_port_start BETWEEN 1 AND 65535),
    private_port_end   INTEGER NOT NULL CHECK (private_port_end BETWEEN private_port_start AND 65535),
    -- NULL: it leads nowhere. A NIC that goes is detached, the rule stays.
    vm_nic_uuid        TEXT    REFERENCES vm_nics (uuid) ON DELETE SET NULL,
    protocol_type      TEXT    NOT NULL CHECK (protocol_type IN ('TCP', 'UDP')),
    state              TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    allowed_cidr       TEXT    NOT NULL,
    -- Indexes in the kernel's tables.
    service_number     INTEGER NOT NULL UNIQUE,
    backend_number     INTEGER NOT NULL UNIQUE,
    create_date        INTEGER NOT NULL,
    last_op_date       INTEGER NOT NULL,
    CHECK (vip_port_start = vip_port_end OR vip_port_end - vip_port_start = private_port_end - private_port_start)
) STRICT;

CREATE INDEX port_forwarding_rules_vip ON port_forwarding_rules (vip_uuid);
CREATE INDEX port_forwarding_rules_nic ON port_forwarding_rules (vm_nic_uuid);

CREATE TRIGGER port_forwarding_rules_deleted AFTER DELETE ON port_forwarding_rules
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

-- Rules as their inventories show them, with the addresses of both ends.
CREATE VIEW port_forwarding_rule_inventories AS
SELECT r.*, v.ip AS vip_ip, n.ip AS guest_ip
FROM port_forwarding_rules r JOIN vips v ON v.uuid = r.vip_uuid LEFT JOIN vm_nics n ON n.uuid = r.vm_nic_uuid;

-- Listeners and rules share the indexes of services and backends.
CREATE VIEW service_numbers AS
SELECT number FROM load_balancer_listeners UNION ALL SELECT service_number FROM port_forwarding_rules;

CREATE VIEW backend_numbers AS
SELECT number FROM load_balancer_listener_vm_nic_refs UNION ALL SELECT backend_number FROM port_forwarding_rules;

UPDATE numbers SET name = 'service' WHERE name = 'listener';

INSERT INTO network_service_types (network_service_provider_uuid, network_service_type)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'PortForwarding');
