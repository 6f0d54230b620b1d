-- A NIC's weight on a listener is a system tag of the listener; it goes when the NIC leaves it.

CREATE TRIGGER load_balancer_listener_vm_nic_refs_deleted AFTER DELETE ON load_balancer_listener_vm_nic_refs
BEGIN
    DELETE FROM system_tags
    WHERE resource_uuid = OLD.listener_uuid
      AND substr(tag, 1, length('balancerWeight::' || OLD.vm_nic_uuid || '::')) = 'balancerWeight::' || OLD.vm_nic_uuid || '::';
END;
