//! The store on real files: opening, durability, cascades, addresses and numbers.

mod address_keys;

use std::{net::IpAddr, path::Path};

use futures::poll;
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use vipgate_state::Source;

use super::{
    Error, Store, Tx, address, collation,
    network::{self, IpRange, L2Network, L3Network, Zone},
    number::{self, Numbers},
    resource,
};

const ADMIN: &str = "36c27e8ff05c4780bf6d2fa65700f22e";

async fn fresh() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&url(&dir)).await.unwrap();
    (dir, store)
}

fn url(dir: &TempDir) -> String {
    format!("sqlite://{}/vipgate.db", dir.path().display())
}

async fn sound(store: &Store) -> bool {
    let mut tx = store.read().await.unwrap();
    let found: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(tx.conn()).await.unwrap();
    found == "ok"
}

/// A zone `z`, an L2 network `l2` on device `eth0`, an L3 network `l3` and a range `r` of 10.0.0.2 to 10.0.0.5.
async fn with_range(store: &Store) -> IpRange {
    let mut tx = store.begin().await.unwrap();
    for (kind, uuid) in [("ZoneVO", "z"), ("L2NetworkVO", "l2"), ("L3NetworkVO", "l3"), ("IpRangeVO", "r")] {
        resource::register(&mut tx, kind, uuid, ADMIN).await.unwrap();
    }
    let zone = Zone { uuid: "z".into(), name: "zone".into(), description: None, kind: "zstack".into() };
    network::insert_zone(&mut tx, &zone).await.unwrap();
    let l2 = L2Network {
        uuid: "l2".into(),
        name: "wire".into(),
        description: None,
        zone_uuid: "z".into(),
        physical_interface: "eth0".into(),
        kind: "L2NoVlanNetwork".into(),
        vlan: None,
    };
    network::insert_l2(&mut tx, &l2).await.unwrap();
    let l3 = L3Network {
        uuid: "l3".into(),
        name: "net".into(),
        description: None,
        kind: "L3BasicNetwork".into(),
        zone_uuid: "z".into(),
        l2_network_uuid: "l2".into(),
        dns_domain: None,
        system: false,
        category: "Public".into(),
    };
    network::insert_l3(&mut tx, &l3).await.unwrap();
    let range = IpRange {
        uuid: "r".into(),
        l3_network_uuid: "l3".into(),
        name: "range".into(),
        description: None,
        start_ip: "10.0.0.2".into(),
        end_ip: "10.0.0.5".into(),
        netmask: "255.255.255.0".into(),
        gateway: "10.0.0.1".into(),
        network_cidr: "10.0.0.0/24".into(),
        first_key: IpAddr::from([10, 0, 0, 2]).into(),
        last_key: IpAddr::from([10, 0, 0, 5]).into(),
    };
    network::insert_range(&mut tx, &range).await.unwrap();
    tx.commit().await.unwrap();
    range
}

#[tokio::test]
async fn what_is_committed_is_there_after_reopening() {
    let (dir, store) = fresh().await;
    with_range(&store).await;
    store.close().await;
    let store = Store::open(&url(&dir)).await.unwrap();
    let mut tx = store.read().await.unwrap();
    assert_eq!(network::range(&mut tx, "r").await.unwrap().unwrap().end_ip, "10.0.0.5");
}

#[tokio::test]
async fn indexes_of_another_order_are_made_anew() {
    let (dir, store) = fresh().await;
    store.close().await;
    let other = SqliteConnectOptions::new().filename(dir.path().join("vipgate.db")).foreign_keys(false);
    let other = other.collation(collation::NAME, |a, b| collation::compare(b, a));
    let mut other = other.connect().await.unwrap();
    for tag in ["a", "b", "c"] {
        let insert = "INSERT INTO user_tags VALUES ($1, 'r', 'ZoneVO', $1, 'User', 0, 0)";
        sqlx::query(insert).bind(tag).execute(&mut other).await.unwrap();
    }
    let store = Store::open(&url(&dir)).await.unwrap();
    assert!(!sound(&store).await, "the other order is ours");
    store.close().await;
    sqlx::query("UPDATE collations SET unicode = '1.1.0'").execute(&mut other).await.unwrap();
    let store = Store::open(&url(&dir)).await.unwrap();
    assert!(sound(&store).await);
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing() {
    let (_dir, store) = fresh().await;
    let mut tx = store.begin().await.unwrap();
    resource::register(&mut tx, "ZoneVO", "z", ADMIN).await.unwrap();
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(resource::kind_of(&mut tx, "z").await.unwrap(), None);
}

#[tokio::test]
async fn readers_see_the_last_commit_while_a_writer_is_busy() {
    let (_dir, store) = fresh().await;
    let mut writer = store.begin().await.unwrap();
    resource::register(&mut writer, "ZoneVO", "z", ADMIN).await.unwrap();
    let mut reader = store.read().await.unwrap();
    assert_eq!(resource::kind_of(&mut reader, "z").await.unwrap(), None);
    drop(reader);
    writer.commit().await.unwrap();
    let mut reader = store.read().await.unwrap();
    assert_eq!(resource::kind_of(&mut reader, "z").await.unwrap().as_deref(), Some("ZoneVO"));
}

#[tokio::test]
async fn a_reader_can_not_write() {
    let (_dir, store) = fresh().await;
    let mut reader = store.read().await.unwrap();
    let error = resource::register(&mut reader, "ZoneVO", "z", ADMIN).await.unwrap_err();
    assert!(matches!(error, Error::Database(_)), "{error}");
}

#[tokio::test]
async fn writers_take_turns() {
    let (_dir, store) = fresh().await;
    let writers = (0..20).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut tx = store.begin().await.unwrap();
            resource::register(&mut tx, "ZoneVO", &format!("z{writer}"), ADMIN).await.unwrap();
            tx.commit().await.unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let mut tx = store.read().await.unwrap();
    assert!(resource::kind_of(&mut tx, "z19").await.unwrap().is_some());
}

async fn zone(store: &Store, uuid: &str) -> Option<String> {
    resource::kind_of(&mut store.read().await.unwrap(), uuid).await.unwrap()
}

/// A transaction that has written this zone and waits for the disk, and one that runs meanwhile.
async fn together(store: &Store, uuid: &'static str) -> (impl Future<Output = Result<(), Error>> + use<>, Tx) {
    let mut first = store.begin().await.unwrap();
    let mut second = Box::pin(store.begin());
    assert!(poll!(second.as_mut()).is_pending());
    resource::register(&mut first, "ZoneVO", uuid, ADMIN).await.unwrap();
    let mut first = Box::pin(first.commit());
    tokio::select! {
        _ = &mut first => panic!("it has not waited for who waited"),
        second = second => (first, second.unwrap()),
    }
}

#[tokio::test]
async fn writers_that_wait_at_the_same_time_share_a_commit() {
    let (_dir, store) = fresh().await;
    let (first, mut second) = together(&store, "z1").await;
    assert_eq!(zone(&store, "z1").await, None, "not told, not stored");
    resource::register(&mut second, "ZoneVO", "z2", ADMIN).await.unwrap();
    let (first, second) = tokio::join!(first, second.commit());
    first.and(second).unwrap();
    assert!(zone(&store, "z1").await.and(zone(&store, "z2").await).is_some());
}

#[tokio::test]
async fn a_writer_undoes_nothing_of_those_it_shares_a_commit_with() {
    let (_dir, store) = fresh().await;
    let (first, mut second) = together(&store, "z1").await;
    resource::register(&mut second, "ZoneVO", "z2", ADMIN).await.unwrap();
    drop(second);
    first.await.unwrap();
    let (first, mut second) = together(&store, "z3").await;
    resource::register(&mut second, "ZoneVO", "z4", ADMIN).await.unwrap();
    second.rollback().await.unwrap();
    first.await.unwrap();
    assert!(zone(&store, "z1").await.and(zone(&store, "z3").await).is_some());
    assert_eq!(zone(&store, "z2").await.or(zone(&store, "z4").await), None);
}

#[tokio::test]
async fn a_writer_that_goes_away_while_it_begins_fails_nobody_it_shares_a_commit_with() {
    let (_dir, store) = fresh().await;
    for _ in 0..100 {
        let first = store.begin().await.unwrap();
        // In this order, before the commit.
        let [mut second, mut gone, mut last] = [(); 3].map(|()| Box::pin(store.begin()));
        for waiting in [&mut second, &mut gone, &mut last] {
            assert!(poll!(waiting.as_mut()).is_pending());
        }
        let mut first = Box::pin(first.commit());
        assert!(poll!(first.as_mut()).is_pending());
        let mut second = Box::pin(second.await.unwrap().commit());
        assert!(poll!(second.as_mut()).is_pending());
        assert!(poll!(gone.as_mut()).is_pending());
        drop(gone);
        let last = last.await.unwrap().commit();
        let (first, second, last) = tokio::join!(first, second, last);
        first.and(second).and(last).unwrap();
    }
}

#[tokio::test]
async fn what_the_database_gives_up_is_told_to_all_who_wait_for_it() {
    let (_dir, store) = fresh().await;
    let (first, mut second) = together(&store, "z1").await;
    // SQLite does so by itself when the disk is full.
    sqlx::query("ROLLBACK").execute(second.conn()).await.unwrap();
    let (first, second) = tokio::join!(first, second.commit());
    assert!(matches!(first, Err(Error::Commit(_))) && matches!(second, Err(Error::Commit(_))), "{first:?} {second:?}");
    let mut third = store.begin().await.unwrap();
    resource::register(&mut third, "ZoneVO", "z3", ADMIN).await.unwrap();
    third.commit().await.unwrap();
    assert_eq!(zone(&store, "z1").await, None);
    assert!(zone(&store, "z3").await.is_some());
}

#[tokio::test]
async fn a_place_that_can_not_be_written_is_named() {
    let error = Store::open("sqlite:///proc/no/such.db").await.unwrap_err();
    assert!(matches!(error, Error::Open { .. }) && error.to_string().contains("/proc/no/such.db"), "{error}");
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store) = fresh().await;
    with_range(&store).await;
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
    assert!(files.len() > 1, "the log lies beside the file");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn another_kind_of_url_is_refused() {
    for url in ["mysql://db/vipgate", "sqlite://", "/var/lib/vipgate.db", "sqlite:///var/lib/vipgate.db?mode=ro"] {
        let error = Store::open(url).await.unwrap_err();
        assert!(matches!(error, Error::Url { .. }) && error.to_string().contains(url), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vipgate.db"), "not a database, but long enough to look at".repeat(100)).unwrap();
    let error = Store::open(&url(&dir)).await.unwrap_err();
    assert!(error.to_string().contains("vipgate.db"), "{error}");
}

#[tokio::test]
async fn deleting_a_zone_takes_everything_below_it_out_of_the_register() {
    let (_dir, store) = fresh().await;
    with_range(&store).await;
    let mut tx = store.begin().await.unwrap();
    resource::delete(&mut tx, "z").await.unwrap();
    for uuid in ["z", "l2", "l3", "r"] {
        assert_eq!(resource::kind_of(&mut tx, uuid).await.unwrap(), None, "{uuid}");
    }
}

#[tokio::test]
async fn an_address_is_taken_once() {
    let (_dir, store) = fresh().await;
    let range = with_range(&store).await;
    let mut tx = store.begin().await.unwrap();
    let address = IpAddr::from([10, 0, 0, 3]);
    assert!(address::take(&mut tx, &range, address).await.unwrap().is_some());
    assert!(address::take(&mut tx, &range, address).await.unwrap().is_none());
}

#[tokio::test]
async fn the_first_free_address_skips_the_used_ones() {
    let (_dir, store) = fresh().await;
    let range = with_range(&store).await;
    let mut tx = store.begin().await.unwrap();
    let at = |last| IpAddr::from([10, 0, 0, last]);
    for last in [2, 3, 5] {
        address::take(&mut tx, &range, at(last)).await.unwrap().unwrap();
    }
    assert_eq!(address::take_first(&mut tx, &range, at(5)).await.unwrap(), None);
    for from in [0, 4] {
        let (taken, free) = address::take_first(&mut tx, &range, at(from)).await.unwrap().expect("one is free");
        assert_eq!(free, at(4));
        assert!(address::take(&mut tx, &range, free).await.unwrap().is_none());
        address::free(&mut tx, &taken).await.unwrap();
    }
    assert!(address::take(&mut tx, &range, at(4)).await.unwrap().is_some());
}

#[tokio::test]
async fn numbers_are_given_in_turn() {
    let (_dir, store) = fresh().await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(number::next(&mut tx, Numbers::Backend).await.unwrap(), 1);
    // Number 1 was not used in the end, and yet is not taken again at once.
    assert_eq!(number::next(&mut tx, Numbers::Backend).await.unwrap(), 2);
    assert_eq!(number::next(&mut tx, Numbers::Service).await.unwrap(), 1);
}

#[tokio::test]
async fn devices_are_those_of_l2_networks_with_an_l3_network() {
    let (_dir, store) = fresh().await;
    assert!(store.devices().await.unwrap().is_empty());
    with_range(&store).await;
    assert_eq!(store.devices().await.unwrap().into_iter().collect::<Vec<_>>(), ["eth0"]);
    let mut tx = store.begin().await.unwrap();
    resource::delete(&mut tx, "l3").await.unwrap();
    tx.commit().await.unwrap();
    assert!(store.devices().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_vips_there_is_nothing_to_do() {
    let (_dir, store) = fresh().await;
    assert_eq!(store.vips().await.unwrap(), []);
    assert_eq!(store.vip("none").await.unwrap(), None);
}

#[test]
fn no_other_module_runs_sql() {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.file_stem().and_then(|name| name.to_str()) {
                Some("store" | "tests") => {}
                _ if path.is_dir() => directories.push(path),
                _ => {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(!text.contains("sqlx"), "{} uses sqlx: give the store a function", path.display());
                }
            }
        }
    }
}
