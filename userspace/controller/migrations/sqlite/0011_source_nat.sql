-- Source NAT: guest networks whose connections to the outside leave by an address of the router.

-- 1: the address is the router's own, and the VIP is made and removed by the router. It may lie outside its IP range's
-- start and end, but in the range's network.
ALTER TABLE vips ADD COLUMN own INTEGER NOT NULL DEFAULT 0 CHECK (own IN (0, 1));

-- A guest network, and a VIP by which it leaves: one for each public network of its zone.
CREATE TABLE source_nats (
    l3_network_uuid TEXT    NOT NULL REFERENCES l3_networks (uuid) ON DELETE CASCADE,
    vip_uuid        TEXT    NOT NULL REFERENCES vips (uuid) ON DELETE CASCADE,
    -- Indexes in the kernel's tables.
    service_number  INTEGER NOT NULL UNIQUE,
    backend_number  INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (l3_network_uuid, vip_uuid)
) STRICT;

CREATE INDEX source_nats_vip ON source_nats (vip_uuid);

-- Whatever is a service shares the indexes of services and backends.
DROP VIEW service_numbers;
CREATE VIEW service_numbers AS
SELECT number FROM load_balancer_listeners
UNION ALL SELECT service_number FROM port_forwarding_rules
UNION ALL SELECT service_number FROM eips
UNION ALL SELECT service_number FROM source_nats;

DROP VIEW backend_numbers;
CREATE VIEW backend_numbers AS
SELECT number FROM load_balancer_listener_vm_nic_refs
UNION ALL SELECT backend_number FROM port_forwarding_rules
UNION ALL SELECT backend_number FROM eips
UNION ALL SELECT backend_number FROM source_nats;

INSERT INTO network_service_types (network_service_provider_uuid, network_service_type)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'SNAT');
