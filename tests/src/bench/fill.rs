//! The share of new connections that find no room in a flow table, by how full it is of established ones.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use vipgate_abi::{flow::WAYS, service::Algorithm};

use super::{Effort, Report, Series};
use crate::packet::{Bench, Filling, Hook};

const TCP: u8 = 6;
const VIP: SocketAddrV4 = SocketAddrV4::new(Bench::VIP, 80);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080);
/// Address of the first client of the first table.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);
/// Number of tables that are filled, each by other clients.
const TABLES: u32 = 3;
/// Fill of the table in percent, and how many of a million connections may be refused up to it.
const FILLS: [(u32, Option<f64>); 5] = [(25, None), (50, None), (70, Some(1e3)), (80, Some(1e4)), (90, None)];

/// Fills tables; measures the share of refused connections from each percentage to the next.
pub fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let slots = effort.slots;
    let mut shares = FILLS.map(|_| Series::default());
    for table in 0..TABLES {
        let mut bench = Bench::with_buckets(Hook::Xdp, slots / WAYS as u32)?;
        bench.serve(VIP, TCP, Algorithm::Maglev, &[BACKEND])?;
        let first = Ipv4Addr::from_bits(CLIENTS.to_bits() + table * slots);
        let mut filling = Filling::new(VIP, BACKEND, slots, first);
        for ((percent, _), share) in FILLS.iter().zip(&mut shares) {
            filling.up_to(&mut bench, percent - 1)?;
            let asked = filling.up_to(&mut bench, *percent)?;
            share.push(f64::from(asked.refused) * 1e6 / f64::from(asked.all));
        }
    }
    for ((percent, goal), share) in FILLS.into_iter().zip(&shares) {
        let row = share.row(format!("refused at a fill, {slots} slots: {percent}%"), "ppm");
        report.add(if let Some(goal) = goal { row.at_most(goal) } else { row });
    }
    Ok(())
}
