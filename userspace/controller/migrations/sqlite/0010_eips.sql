-- Elastic IPs: a VIP that is one NIC's, for every protocol and port.

CREATE TABLE eips (
    uuid           TEXT    NOT NULL PRIMARY KEY REFERENCES resources (uuid) ON DELETE CASCADE,
    name           TEXT    NOT NULL,
    description    TEXT,
    -- It has its VIP to itself.
    vip_uuid       TEXT    NOT NULL UNIQUE REFERENCES vips (uuid) ON DELETE CASCADE,
    -- NULL: it leads nowhere. A NIC that goes is detached, the elastic IP stays.
    vm_nic_uuid    TEXT    REFERENCES vm_nics (uuid) ON DELETE SET NULL,
    -- Of those of one NIC, which was attached first: the lowest.
    attach_order   INTEGER NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('Enabled', 'Disabled')),
    -- Indexes in the kernel's tables.
    service_number INTEGER NOT NULL UNIQUE,
    backend_number INTEGER NOT NULL UNIQUE,
    create_date    INTEGER NOT NULL,
    last_op_date   INTEGER NOT NULL
) STRICT;

CREATE INDEX eips_nic ON eips (vm_nic_uuid, attach_order);

CREATE TRIGGER eips_deleted AFTER DELETE ON eips
BEGIN DELETE FROM resources WHERE uuid = OLD.uuid; END;

-- Elastic IPs as their inventories show them, with the addresses of both ends.
CREATE VIEW eip_inventories AS
SELECT e.*, v.ip AS vip_ip, n.ip AS guest_ip
FROM eips e JOIN vips v ON v.uuid = e.vip_uuid LEFT JOIN vm_nics n ON n.uuid = e.vm_nic_uuid;

-- The NICs that a VIP could lead to by a network service: of user VMs, on networks of the VIP's zone that are not the
-- VIP's own and take the service, from the provider that serves the VIP if one does.
CREATE VIEW reachable_vm_nics AS
SELECT v.uuid AS vip_uuid, p.uuid AS vip_l3_network_uuid, f.network_service_type, n.*
FROM vips v
JOIN l3_networks p ON p.uuid = v.l3_network_uuid
JOIN l3_networks l ON l.zone_uuid = p.zone_uuid AND l.uuid <> p.uuid AND l.system = 0
JOIN network_service_l3_network_refs f ON f.l3_network_uuid = l.uuid
JOIN network_service_providers s ON s.uuid = f.network_service_provider_uuid
JOIN vm_nics n ON n.l3_network_uuid = l.uuid
JOIN vm_instances i ON i.uuid = n.vm_instance_uuid
WHERE s.type = IFNULL(v.service_provider, s.type) AND i.type = 'UserVm' AND i.state IN ('Running', 'Stopped');

-- Listeners, rules and elastic IPs share the indexes of services and backends.
DROP VIEW service_numbers;
CREATE VIEW service_numbers AS
SELECT number FROM load_balancer_listeners
UNION ALL SELECT service_number FROM port_forwarding_rules
UNION ALL SELECT service_number FROM eips;

DROP VIEW backend_numbers;
CREATE VIEW backend_numbers AS
SELECT number FROM load_balancer_listener_vm_nic_refs
UNION ALL SELECT backend_number FROM port_forwarding_rules
UNION ALL SELECT backend_number FROM eips;

INSERT INTO network_service_types (network_service_provider_uuid, network_service_type)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'Eip');
