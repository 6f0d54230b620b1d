//! The types of the inventories by resource, and what programs derive from the types: names of fields, schemas.

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    account::{AccountInventory, QuotaInventory},
    eip::EipInventory,
    l2::L2NetworkInventory,
    l3::{IpRangeInventory, L3NetworkInventory},
    load_balancer::{
        ListenerCertificateRefInventory, ListenerInventory, ListenerNicRefInventory, LoadBalancerInventory,
    },
    network_service::{NetworkServiceProviderInventory, NetworkServiceRefInventory},
    port_forwarding::PortForwardingRuleInventory,
    resource::Resource,
    session::SessionInventory,
    tag::{SystemTagInventory, UserTagInventory},
    vip::{VipInventory, VipUsedPortsInventory},
    vip_qos::VipQosInventory,
    vm::{VmInstanceInventory, VmNicInventory},
    zone::ZoneInventory,
};

/// Calls a generic function with the type of a resource's inventory: the one list of these types.
macro_rules! of_inventory {
    ($resource:expr, $($function:ident)::+) => {
        match $resource {
            Resource::Zone => $($function)::+::<ZoneInventory>(),
            Resource::L2Network | Resource::L2VlanNetwork => $($function)::+::<L2NetworkInventory>(),
            Resource::L3Network => $($function)::+::<L3NetworkInventory>(),
            Resource::IpRange => $($function)::+::<IpRangeInventory>(),
            Resource::VmInstance => $($function)::+::<VmInstanceInventory>(),
            Resource::VmNic => $($function)::+::<VmNicInventory>(),
            Resource::NetworkServiceProvider => $($function)::+::<NetworkServiceProviderInventory>(),
            Resource::NetworkServiceRef => $($function)::+::<NetworkServiceRefInventory>(),
            Resource::Vip => $($function)::+::<VipInventory>(),
            Resource::VipUsedPorts => $($function)::+::<VipUsedPortsInventory>(),
            Resource::VipQos => $($function)::+::<VipQosInventory>(),
            Resource::LoadBalancer => $($function)::+::<LoadBalancerInventory>(),
            Resource::Listener => $($function)::+::<ListenerInventory>(),
            Resource::ListenerNicRef => $($function)::+::<ListenerNicRefInventory>(),
            Resource::ListenerCertificateRef => $($function)::+::<ListenerCertificateRefInventory>(),
            Resource::PortForwardingRule => $($function)::+::<PortForwardingRuleInventory>(),
            Resource::Eip => $($function)::+::<EipInventory>(),
            Resource::SystemTag => $($function)::+::<SystemTagInventory>(),
            Resource::UserTag => $($function)::+::<UserTagInventory>(),
            Resource::Account => $($function)::+::<AccountInventory>(),
            Resource::Quota => $($function)::+::<QuotaInventory>(),
            Resource::Session => $($function)::+::<SessionInventory>(),
        }
    };
}

impl Resource {
    /// The schema of its inventory, by its type.
    pub fn inventory_schema(self) -> NamedSchema {
        of_inventory!(self, NamedSchema::of)
    }

    /// The names of its inventory's members, in the order of its type.
    pub fn fields(self) -> &'static [&'static str] {
        of_inventory!(self, members)
    }
}

/// The names of a structure's members on the wire. Only its deserialiser is given them.
fn members<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Asked<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("there is nothing to read, only to be asked"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &[&str] = &[];
    // This always fails, but only after it has passed the names.
    let _ = T::deserialize(Asked(&mut fields));
    fields
}

/// The schema of a type that clients receive.
#[allow(missing_debug_implementations, reason = "schemas have none")]
pub struct NamedSchema {
    /// Name of the type.
    pub name: String,
    pub schema: RefOr<Schema>,
    /// The schemas that this one refers to, by name.
    pub others: Vec<(String, RefOr<Schema>)>,
}

impl NamedSchema {
    pub fn of<T: ToSchema>() -> Self {
        let mut others = Vec::new();
        T::schemas(&mut others);
        Self { name: T::name().into_owned(), schema: T::schema(), others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_spelt_as_inventories_are_printed() {
        assert_eq!(Resource::VipUsedPorts.fields(), ["uuid", "protocol", "usedPorts"]);
        assert!(Resource::Listener.fields().contains(&"vmNicRefs"));
        assert!(Resource::SystemTag.fields().contains(&"resourceType"));
    }
}
