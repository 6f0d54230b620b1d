-- Bandwidth limits of VIPs.

CREATE TABLE vip_qos (
    -- Not in the register: a limit is a part of its VIP, with no owner and no tags of its own.
    uuid               TEXT    NOT NULL PRIMARY KEY,
    vip_uuid           TEXT    NOT NULL REFERENCES vips (uuid) ON DELETE CASCADE,
    -- NULL: the whole VIP, but for ports with limits of their own.
    port               INTEGER CHECK (port BETWEEN 1 AND 65535),
    -- Bits per second; NULL: not limited.
    inbound_bandwidth  INTEGER CHECK (inbound_bandwidth > 0),
    outbound_bandwidth INTEGER CHECK (outbound_bandwidth > 0),
    type               TEXT    NOT NULL,
    -- Index in the kernel's tables.
    number             INTEGER NOT NULL UNIQUE,
    create_date        INTEGER NOT NULL,
    last_op_date       INTEGER NOT NULL,
    CHECK (inbound_bandwidth IS NOT NULL OR outbound_bandwidth IS NOT NULL)
) STRICT;

-- One of the whole VIP and one a port.
CREATE UNIQUE INDEX vip_qos_place ON vip_qos (vip_uuid, IFNULL(port, 0));

INSERT INTO numbers (name, last) VALUES ('limit', 0);

INSERT INTO network_service_types (network_service_provider_uuid, network_service_type)
VALUES ('9f1c5d0e7a3b4c68a2d4e5f60718293a', 'VipQos');
