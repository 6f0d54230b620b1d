//! How the database orders addresses: by keys of 16 bytes, big endian, which SQLite compares as bytes.
//!
//! An IPv4 address has the key of its IPv4-mapped IPv6 address `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2). So the addresses of each
//! family are in their own order, and none has the key of another one. (An IPv4-mapped address is no IPv6 address that a
//! host could have: RFC 4291 has it stand for the IPv4 address.)

use std::net::{IpAddr, Ipv6Addr};

use sqlx::{
    Decode, Encode, Sqlite, Type,
    encode::IsNull,
    error::BoxDynError,
    sqlite::{SqliteArgumentsBuffer, SqliteTypeInfo, SqliteValueRef},
};

/// The key of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressKey(u128);

impl AddressKey {
    /// The key of the address that follows; `None` after the last one of all.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        self.plus(1)
    }

    /// The key of the address so many further on; `None` if there is none.
    #[must_use]
    pub const fn plus(self, offset: u128) -> Option<Self> {
        match self.0.checked_add(offset) {
            Some(key) => Some(Self(key)),
            None => None,
        }
    }

    /// How many addresses further on this one is than `first`; `None` if it is before that.
    #[must_use]
    pub const fn offset_from(self, first: Self) -> Option<u128> {
        self.0.checked_sub(first.0)
    }
}

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        })
    }
}

impl From<AddressKey> for IpAddr {
    fn from(key: AddressKey) -> Self {
        Ipv6Addr::from_bits(key.0).to_canonical()
    }
}

impl Type<Sqlite> for AddressKey {
    fn type_info() -> SqliteTypeInfo {
        <[u8] as Type<Sqlite>>::type_info()
    }
}

impl Encode<'_, Sqlite> for AddressKey {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        <Vec<u8> as Encode<Sqlite>>::encode(self.0.to_be_bytes().to_vec(), buffer)
    }
}

impl<'r> Decode<'r, Sqlite> for AddressKey {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        let bytes = <&[u8] as Decode<Sqlite>>::decode(value)?;
        Ok(Self(u128::from_be_bytes(bytes.try_into()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> AddressKey {
        AddressKey::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_key_is_one_address_of_either_family() {
        for text in ["0.0.0.0", "10.0.0.7", "255.255.255.255", "::", "2001:db8::7", "fe80::1"] {
            assert_eq!(IpAddr::from(key(text)).to_string(), text);
        }
    }

    #[test]
    fn keys_order_as_addresses_do() {
        let sorted = ["::1", "9.255.255.255", "10.0.0.9", "10.0.0.10", "200.0.0.1", "2001:db8::", "fe80::1"];
        assert!(sorted.map(key).is_sorted());
        assert!(sorted.map(|text| key(text).0.to_be_bytes()).is_sorted());
    }

    #[test]
    fn the_key_after_an_address_is_that_of_the_next_address() {
        assert_eq!(key("10.0.0.255").next(), Some(key("10.0.1.0")));
        assert_eq!(key("2001:db8::ffff").next(), Some(key("2001:db8::1:0")));
        assert_eq!(key("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").next(), None);
        assert_eq!(key("10.0.1.0").offset_from(key("10.0.0.0")), Some(256));
        assert_eq!(key("10.0.0.0").offset_from(key("10.0.1.0")), None);
    }
}
