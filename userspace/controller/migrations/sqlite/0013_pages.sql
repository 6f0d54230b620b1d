-- What a page of a big table is read by. A query goes through the rows in their order and ends when its page is full, or
-- starts at the few rows that a related one names: so each order that clients ask for and each way between resources has
-- its index.

-- The version of Unicode by which the indexes with our collation are ordered (`store/fold.rs`).
CREATE TABLE collations (
    name    TEXT NOT NULL PRIMARY KEY,
    unicode TEXT NOT NULL
) STRICT;

-- Rules and elastic IPs hold the addresses of both ends, so that they have an order by them.
DROP VIEW port_forwarding_rule_inventories;
DROP VIEW eip_inventories;

-- Kept by triggers, as are those of elastic IPs.
ALTER TABLE port_forwarding_rules ADD COLUMN vip_ip TEXT;
ALTER TABLE port_forwarding_rules ADD COLUMN guest_ip TEXT;
ALTER TABLE eips ADD COLUMN vip_ip TEXT;
ALTER TABLE eips ADD COLUMN guest_ip TEXT;

UPDATE port_forwarding_rules
SET vip_ip = (SELECT ip FROM vips WHERE uuid = vip_uuid), guest_ip = (SELECT ip FROM vm_nics WHERE uuid = vm_nic_uuid);
UPDATE eips
SET vip_ip = (SELECT ip FROM vips WHERE uuid = vip_uuid), guest_ip = (SELECT ip FROM vm_nics WHERE uuid = vm_nic_uuid);

CREATE TRIGGER port_forwarding_rules_made AFTER INSERT ON port_forwarding_rules
BEGIN
    UPDATE port_forwarding_rules
    SET vip_ip = (SELECT ip FROM vips WHERE uuid = NEW.vip_uuid), guest_ip = (SELECT ip FROM vm_nics WHERE uuid = NEW.vm_nic_uuid)
    WHERE uuid = NEW.uuid;
END;

CREATE TRIGGER port_forwarding_rules_moved AFTER UPDATE OF vm_nic_uuid ON port_forwarding_rules
BEGIN
    UPDATE port_forwarding_rules SET guest_ip = (SELECT ip FROM vm_nics WHERE uuid = NEW.vm_nic_uuid) WHERE uuid = NEW.uuid;
END;

CREATE TRIGGER eips_made AFTER INSERT ON eips
BEGIN
    UPDATE eips
    SET vip_ip = (SELECT ip FROM vips WHERE uuid = NEW.vip_uuid), guest_ip = (SELECT ip FROM vm_nics WHERE uuid = NEW.vm_nic_uuid)
    WHERE uuid = NEW.uuid;
END;

CREATE TRIGGER eips_moved AFTER UPDATE OF vm_nic_uuid ON eips
BEGIN
    UPDATE eips SET guest_ip = (SELECT ip FROM vm_nics WHERE uuid = NEW.vm_nic_uuid) WHERE uuid = NEW.uuid;
END;

CREATE TRIGGER vips_moved AFTER UPDATE OF ip ON vips
BEGIN
    UPDATE port_forwarding_rules SET vip_ip = NEW.ip WHERE vip_uuid = NEW.uuid;
    UPDATE eips SET vip_ip = NEW.ip WHERE vip_uuid = NEW.uuid;
END;

CREATE INDEX vm_instances_created ON vm_instances (create_date, uuid);
CREATE INDEX vm_instances_name ON vm_instances (name COLLATE folded, create_date, uuid);

CREATE INDEX vm_nics_created ON vm_nics (create_date, uuid);
CREATE INDEX vm_nics_ip ON vm_nics (ip COLLATE folded, create_date, uuid);

CREATE INDEX vips_created ON vips (create_date, uuid);
CREATE INDEX vips_name ON vips (name COLLATE folded, create_date, uuid);
CREATE INDEX vips_ip ON vips (ip COLLATE folded, create_date, uuid);

CREATE INDEX load_balancers_created ON load_balancers (create_date, uuid);
CREATE INDEX load_balancers_name ON load_balancers (name COLLATE folded, create_date, uuid);

CREATE INDEX load_balancer_listeners_created ON load_balancer_listeners (create_date, uuid);
CREATE INDEX load_balancer_listeners_name ON load_balancer_listeners (name COLLATE folded, create_date, uuid);
CREATE INDEX load_balancer_listeners_port ON load_balancer_listeners (load_balancer_port, create_date, uuid);

CREATE INDEX port_forwarding_rules_created ON port_forwarding_rules (create_date, uuid);
CREATE INDEX port_forwarding_rules_name ON port_forwarding_rules (name COLLATE folded, create_date, uuid);
CREATE INDEX port_forwarding_rules_port ON port_forwarding_rules (vip_port_start, create_date, uuid);
CREATE INDEX port_forwarding_rules_vip_ip ON port_forwarding_rules (vip_ip COLLATE folded, create_date, uuid);
CREATE INDEX port_forwarding_rules_guest_ip ON port_forwarding_rules (guest_ip COLLATE folded, create_date, uuid);

CREATE INDEX eips_created ON eips (create_date, uuid);
CREATE INDEX eips_name ON eips (name COLLATE folded, create_date, uuid);
CREATE INDEX eips_vip_ip ON eips (vip_ip COLLATE folded, create_date, uuid);
CREATE INDEX eips_guest_ip ON eips (guest_ip COLLATE folded, create_date, uuid);

CREATE INDEX vip_qos_created ON vip_qos (create_date, uuid);

CREATE INDEX system_tags_created ON system_tags (create_date, uuid);
CREATE INDEX system_tags_tag ON system_tags (tag COLLATE folded);
CREATE INDEX user_tags_created ON user_tags (create_date, uuid);
CREATE INDEX user_tags_tag ON user_tags (tag COLLATE folded);

CREATE INDEX network_service_l3_network_refs_provider ON network_service_l3_network_refs (network_service_provider_uuid);
