//! Two controllers, and what the socket answers.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_directory_is_locked_once_until_its_lock_is_dropped() {
    let room = tempfile::tempdir().expect("a directory");
    let directory = room.path().join("tables");
    let held = Lock::make(&directory).expect("nobody has it");
    let refused = Lock::take(&directory).expect_err("it is taken");
    assert!(matches!(&refused, LockError::Held { bpffs } if *bpffs == directory), "{refused}");
    Lock::make(&room.path().join("other")).expect("another directory is another lock");
    drop(held);
    Lock::make(&directory).expect("it is free again");
}

#[test]
fn one_network_namespace_is_one_router_whichever_the_directory() {
    let (one, other) = (Path::new("one"), Path::new("other"));
    let held = namespace(one).expect("nobody has it");
    let refused = namespace(other).expect_err("it is taken");
    assert!(matches!(&refused, LockError::Router { bpffs } if bpffs == other), "{refused}");
    drop(held);
    namespace(other).expect("it is free again");
}

#[test]
fn every_path_to_a_directory_is_the_same_lock() {
    let room = tempfile::tempdir().expect("a directory");
    let directory = room.path().join("tables");
    let _held = Lock::make(&directory).expect("nobody has it");
    let link = room.path().join("link");
    symlink(&directory, &link).expect("a link");
    let slash = PathBuf::from(format!("{}/", directory.display()));
    for path in [link, slash, directory.join("../tables")] {
        assert!(matches!(Lock::take(&path), Err(LockError::Held { .. })), "{}", path.display());
    }
}

#[test]
fn a_directory_that_was_made_for_nothing_goes_with_the_lock() {
    let room = tempfile::tempdir().expect("a directory");
    let directory = room.path().join("tables");
    Lock::take(&directory).expect("nothing to lock");
    assert!(!directory.exists(), "who only cleans up made it");
    drop(Lock::make(&directory).expect("nobody has it"));
    assert!(!directory.exists(), "it stays empty");
    let held = Lock::make(&directory).expect("nobody has it");
    fs::create_dir(directory.join("abi")).expect("a directory");
    drop(held);
    assert!(directory.exists(), "what is used stays");
}

#[tokio::test]
async fn who_holds_it_is_asked_through_it() {
    let room = tempfile::tempdir().expect("a directory");
    let directory = room.path().join("tables");
    let held = Lock::make(&directory).expect("nobody has it");
    assert_eq!(ask(&directory), None);
    let answering = tokio::spawn(held.answer(|| "all is well".to_owned()).expect("a runtime is there"));
    for path in [directory.clone(), room.path().join("tables/")] {
        let said = tokio::task::spawn_blocking(move || ask(&path)).await.expect("no panic");
        assert_eq!(said.as_deref(), Some("all is well"));
    }
    answering.abort();
}
