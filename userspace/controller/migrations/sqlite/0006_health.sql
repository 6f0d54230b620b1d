-- What the health checks found last. Kept, so that a controller that starts anew goes on with the rings that were there.
-- A reference that is not healthy is Inactive, as that of a stopped VM is.

ALTER TABLE load_balancer_listener_vm_nic_refs ADD COLUMN healthy INTEGER NOT NULL DEFAULT 1 CHECK (healthy IN (0, 1));
