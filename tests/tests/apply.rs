//! `vipgate apply` and `vipgate export`: configures a router from one file, and checks its traffic.

use anyhow::Context as _;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};
use vipgate_tests::{
    both_hooks,
    lab::{Controller, Lab, LabOptions, Result, Shell, topology::PUBLIC_ROUTER},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const ELASTIC_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
/// Exit code of a dry run that finds something to do.
const DIFFERS: i32 = 2;
const NOTHING: &str = "nothing to do\n";

/// The example file of the book.
fn example() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/router.yaml").display().to_string()
}

/// Everything in the example carries traffic.
fn assert_carries(lab: &Lab) -> Result<()> {
    let (client, guests) = (lab.client(), &lab.backends);
    let asked = client.fetch_many(SocketAddrV4::new(VIP, 80), 4)?;
    let of = |name: &str| asked.iter().filter(|origin| origin.backend == name).count();
    assert_eq!([of("backend1"), of("backend2")], [2, 2], "round robin over two");
    let echo = SocketAddrV4::new(VIP, 7002);
    assert_eq!(client.ask_udp(echo)?.backend, client.ask_udp(echo)?.backend, "balanced by source");
    assert_eq!(client.fetch(SocketAddrV4::new(VIP, 8080))?.backend, "backend3", "the forwarded port");
    assert_eq!(client.fetch(SocketAddrV4::new(ELASTIC_IP, 80))?.backend, "backend2", "the elastic IP");
    assert_eq!(*guests[1].curl(client.web())?.client.ip(), ELASTIC_IP);
    assert_eq!(*guests[0].curl(client.web())?.client.ip(), PUBLIC_ROUTER, "source NAT");
    Ok(())
}

fn started(lab: &mut Lab) -> Result<Controller> {
    lab.serve_outside()?;
    let controller = lab.start_controller()?;
    let shell = Shell { lab };
    shell.types(&shell.login()?)?;
    Ok(controller)
}

both_hooks! {
    fn the_demos_router_is_made_from_one_file_and_follows_its_changes(hook) {
        let mut lab = Lab::new(LabOptions { hook, clients: 1, backends: 3 })?;
        let _controller = started(&mut lab)?;
        let shell = Shell { lab: &lab };
        let apply = format!("apply -f {}", example());
        let plan = shell.fails(&format!("{apply} --dry-run"), DIFFERS, &["not as the file declares"])?;
        assert!(plan.contains("+ listener web/shop/http\n"), "{plan}");
        assert_eq!(shell.types("query zones")?, "none found\n", "a dry run does nothing");
        assert_eq!(shell.types(&apply)?, plan);
        assert_carries(&lab)?;
        assert_eq!(shell.types(&apply)?, NOTHING);
        assert_eq!(shell.types(&format!("{apply} --dry-run --prune"))?, NOTHING);

        let changed = fs::read_to_string(example())?
            .replace("            backends: [backend1, backend2]\n", "            backends: [backend3]\n")
            .replace("ip: 10.1.0.11", "ip: 10.1.0.12");
        let file = lab.directory().join("changed.yaml");
        fs::write(&file, changed)?;
        let apply = format!("apply -f {}", file.display());
        shell.fails(&apply, 2, &["vip mail: ip is 10.1.0.11, not 10.1.0.12", "--recreate"])?;
        let plan = shell.json(&format!("{apply} --recreate"))?;
        let actions: Vec<_> = plan["changes"].as_array().context("changes")?.iter().map(|change| &change["action"]).collect();
        assert_eq!(actions, ["delete", "delete", "create", "create", "update"], "{plan}");
        assert_eq!(lab.client().fetch(SocketAddrV4::new(VIP, 80))?.backend, "backend3");
        assert_eq!(lab.client().fetch(SocketAddrV4::new([10, 1, 0, 12].into(), 80))?.backend, "backend2");
        assert!(lab.client().fetch(SocketAddrV4::new(ELASTIC_IP, 80)).is_err());
        Ok(())
    }

    fn an_exported_router_is_recreated_elsewhere(hook) {
        let exported = {
            let mut lab = Lab::new(LabOptions { hook, clients: 1, backends: 3 })?;
            let _controller = started(&mut lab)?;
            let shell = Shell { lab: &lab };
            shell.types(&format!("apply -f {}", example()))?;
            let exported = shell.types("export")?;
            let file = lab.directory().join("exported.yaml");
            fs::write(&file, &exported)?;
            assert_eq!(shell.types_with("apply -f - --dry-run --prune", &file)?, NOTHING);
            exported
        };
        let mut lab = Lab::new(LabOptions { hook, clients: 1, backends: 3 })?;
        let _controller = started(&mut lab)?;
        let shell = Shell { lab: &lab };
        let file = lab.directory().join("exported.yaml");
        fs::write(&file, &exported)?;
        shell.types_with("apply -f -", &file)?;
        assert_carries(&lab)?;
        assert_eq!(shell.types("export")?, exported);
        Ok(())
    }
}
