//! Allocates the address of a VIP or a NIC on an L3 network.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use vipgate_api::ApiError;

use super::Result;
use crate::store::{AddressKey, Tx, address, network::IpRange};

/// An address that a request names. The API serves IPv4: `None` for all else.
pub(super) fn ipv4(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

/// How an address is chosen if the request names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Strategy {
    #[default]
    Random,
    FirstAvailable,
}

impl Strategy {
    const ALL: [Self; 2] = [Self::Random, Self::FirstAvailable];

    const fn name(self) -> &'static str {
        match self {
            Self::Random => "RandomIpAllocatorStrategy",
            Self::FirstAvailable => "FirstAvailableIpAllocatorStrategy",
        }
    }

    /// SYS.1007 for an unknown name; random if there is none.
    pub(super) fn of_name(name: Option<&str>) -> Result<Self> {
        let Some(name) = name else { return Ok(Self::default()) };
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| {
            ApiError::invalid_argument(format!(
                "field[allocatorStrategy]: no strategy `{name}`; there are: {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// An address that was taken.
#[derive(Debug)]
pub(super) struct Allocated {
    /// Its user refers to this uuid; deleting the user frees the address.
    pub(super) used_ip_uuid: String,
    pub(super) ip: IpAddr,
    /// The range that contains the address.
    pub(super) range: IpRange,
}

/// Takes the required address, or one chosen by the strategy, from `ranges`, which are those of the network. The router's
/// own addresses, `routers`, are never taken.
///
/// # Errors
/// L3.1000 if the required address is one of the router's, in use or outside all ranges, or if no address is free.
pub(super) async fn allocate(
    tx: &mut Tx,
    l3_network_uuid: &str,
    ranges: Vec<IpRange>,
    strategy: Strategy,
    required: Option<IpAddr>,
    routers: &BTreeSet<IpAddr>,
) -> Result<Allocated> {
    let fail = |why: &str| {
        let wanted = required.map(|ip| format!(", required ip[{ip}]")).unwrap_or_default();
        ApiError::ip_allocation(format!(
            "IP allocator strategy[{}] failed on L3 network[uuid:{l3_network_uuid}]{wanted}: {why}",
            strategy.name()
        ))
    };
    if ranges.is_empty() {
        return Err(fail("the network has no IP range"));
    }
    match required {
        Some(ip) if routers.contains(&ip) => Err(fail("it is the router's own")),
        Some(ip) => {
            let range = ranges.into_iter().find(|range| range.contains(ip));
            let range = range.ok_or_else(|| fail("no IP range of the network holds it"))?;
            let used_ip_uuid = address::take(tx, &range, ip).await?.ok_or_else(|| fail("it is in use"))?;
            Ok(Allocated { used_ip_uuid, ip, range })
        }
        None => choose(tx, ranges, strategy, routers).await?.ok_or_else(|| fail("every address is in use")),
    }
}

/// Takes a free address.
async fn choose(
    tx: &mut Tx,
    mut ranges: Vec<IpRange>,
    strategy: Strategy,
    routers: &BTreeSet<IpAddr>,
) -> Result<Option<Allocated>> {
    let mut starts = Vec::new();
    if strategy == Strategy::Random {
        let pick = random();
        let index = (pick >> 32) as usize % ranges.len();
        ranges.rotate_left(index);
        // Upwards from a random address, then all ranges: free addresses are not equally likely, but all are found.
        let range = &ranges[0];
        let last = range.last_key.offset_from(range.first_key).unwrap_or_default();
        let offset = u128::from(pick as u32) % last.saturating_add(1);
        starts.extend(range.first_key.plus(offset).map(|from| (0, from)));
    }
    starts.extend(ranges.iter().enumerate().map(|(index, range)| (index, range.first_key)));
    for (index, start) in starts {
        let mut next = Some(start);
        while let Some(from) = next
            && let Some((used_ip_uuid, ip)) = address::take_first(tx, &ranges[index], from.into()).await?
        {
            if !routers.contains(&ip) {
                return Ok(Some(Allocated { used_ip_uuid, ip, range: ranges.swap_remove(index) }));
            }
            address::free(tx, &used_ip_uuid).await?;
            next = AddressKey::from(ip).next();
        }
    }
    Ok(None)
}

/// 62 random bits: the end of a version 4 UUID.
fn random() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & (u64::MAX >> 2)
}
