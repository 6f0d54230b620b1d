//! The SQL that reads the desired state.

/// Joins the device `d` of the network of `$row`.
macro_rules! device_sql {
    ($row:literal) => {
        concat!(
            " JOIN l3_networks l ON l.uuid = ",
            $row,
            ".l3_network_uuid JOIN l2_networks d ON d.uuid = l.l2_network_uuid "
        )
    };
}

/// Joins the NIC `n` of `$row`, its device `d`, and its VM instance `i`.
macro_rules! nic_sql {
    ($row:literal) => {
        concat!(
            " JOIN vm_nics n ON n.uuid = ",
            $row,
            ".vm_nic_uuid ",
            device_sql!("n"),
            " JOIN vm_instances i ON i.uuid = n.vm_instance_uuid "
        )
    };
}

macro_rules! vips_sql {
    ($where:literal) => {
        concat!(
            "SELECT v.uuid, v.ip, v.netmask, v.state, v.own, d.physical_interface FROM vips v",
            device_sql!("v"),
            $where,
            " ORDER BY v.uuid"
        )
    };
}

macro_rules! listeners_sql {
    ($where:literal) => {
        concat!(
            "SELECT b.vip_uuid, s.uuid, o.account_uuid, s.number, s.protocol, s.load_balancer_port, s.instance_port
             FROM load_balancer_listeners s
             JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
             JOIN resources o ON o.uuid = s.uuid ",
            $where,
            " ORDER BY s.number"
        )
    };
}

macro_rules! tags_sql {
    ($where:literal) => {
        concat!(
            "SELECT t.resource_uuid, t.tag FROM system_tags t
             JOIN load_balancer_listeners s ON s.uuid = t.resource_uuid
             JOIN load_balancers b ON b.uuid = s.load_balancer_uuid ",
            $where
        )
    };
}

macro_rules! backends_sql {
    ($where:literal) => {
        concat!(
            "SELECT r.listener_uuid, r.vm_nic_uuid, r.number, n.ip, d.physical_interface,
                    i.state = 'Running' AS running, r.healthy
             FROM load_balancer_listener_vm_nic_refs r",
            nic_sql!("r"),
            "JOIN load_balancer_listeners s ON s.uuid = r.listener_uuid
             JOIN load_balancers b ON b.uuid = s.load_balancer_uuid ",
            $where,
            " ORDER BY r.number"
        )
    };
}

macro_rules! forwards_sql {
    ($where:literal) => {
        concat!(
            "SELECT r.vip_uuid, r.uuid, r.service_number, r.backend_number, r.protocol_type, r.vip_port_start,
                    r.vip_port_end, r.private_port_start, r.allowed_cidr, n.ip, d.physical_interface
             FROM port_forwarding_rules r",
            nic_sql!("r"),
            "WHERE r.state = 'Enabled' AND i.state = 'Running'",
            $where,
            " ORDER BY r.service_number"
        )
    };
}

/// An elastic IP leads if its NIC has none in force that was attached earlier and has its VIP on the same device.
macro_rules! elastic_sql {
    ($where:literal) => {
        concat!(
            "WITH in_force AS NOT MATERIALIZED (
                 SELECT e.*, d.physical_interface FROM eips e
                 JOIN vips v ON v.uuid = e.vip_uuid",
            device_sql!("v"),
            "WHERE e.state = 'Enabled')
             SELECT e.vip_uuid, e.uuid, e.service_number, e.backend_number, n.ip, d.physical_interface,
                    NOT EXISTS (SELECT 1 FROM in_force o
                                WHERE o.vm_nic_uuid = e.vm_nic_uuid AND o.attach_order < e.attach_order
                                  AND o.physical_interface = e.physical_interface) AS leads
             FROM in_force e",
            nic_sql!("e"),
            "WHERE i.state = 'Running'",
            $where
        )
    };
}

macro_rules! masquerades_sql {
    ($where:literal) => {
        // All ranges of a network share one CIDR.
        concat!(
            "SELECT DISTINCT s.vip_uuid, s.l3_network_uuid, s.service_number, s.backend_number, r.network_cidr,
                             d.physical_interface
             FROM source_nats s
             JOIN ip_ranges r ON r.l3_network_uuid = s.l3_network_uuid",
            device_sql!("s"),
            $where,
            " ORDER BY s.service_number"
        )
    };
}

macro_rules! limits_sql {
    ($where:literal) => {
        concat!(
            "SELECT vip_uuid, uuid, number, port, inbound_bandwidth, outbound_bandwidth FROM vip_qos ",
            $where,
            " ORDER BY number"
        )
    };
}

/// The statements that read VIPs and what they lead to.
pub(super) struct Statements {
    pub(super) vips: &'static str,
    pub(super) listeners: &'static str,
    pub(super) tags: &'static str,
    pub(super) backends: &'static str,
    pub(super) forwards: &'static str,
    pub(super) elastic: &'static str,
    pub(super) masquerades: &'static str,
    pub(super) limits: &'static str,
}

/// Of all VIPs.
pub(super) const ALL: Statements = Statements {
    vips: vips_sql!(""),
    listeners: listeners_sql!(""),
    tags: tags_sql!(""),
    backends: backends_sql!(""),
    forwards: forwards_sql!(""),
    elastic: elastic_sql!(""),
    masquerades: masquerades_sql!(""),
    limits: limits_sql!(""),
};

/// Of the VIPs whose uuids are in a JSON array.
pub(super) const LISTED: Statements = Statements {
    vips: vips_sql!("WHERE v.uuid IN (SELECT value FROM json_each($1))"),
    listeners: listeners_sql!("WHERE b.vip_uuid IN (SELECT value FROM json_each($1))"),
    tags: tags_sql!("WHERE b.vip_uuid IN (SELECT value FROM json_each($1))"),
    backends: backends_sql!("WHERE b.vip_uuid IN (SELECT value FROM json_each($1))"),
    forwards: forwards_sql!(" AND r.vip_uuid IN (SELECT value FROM json_each($1))"),
    elastic: elastic_sql!(" AND e.vip_uuid IN (SELECT value FROM json_each($1))"),
    masquerades: masquerades_sql!("WHERE s.vip_uuid IN (SELECT value FROM json_each($1))"),
    limits: limits_sql!("WHERE vip_uuid IN (SELECT value FROM json_each($1))"),
};
