//! mountd as a parent: privileges, restarts, locks.

use crate::machine::{Machine, UID};

pub(crate) const TESTS: &[(&str, fn())] =
    &[("the_daemon_has_no_privileges", the_daemon_has_no_privileges)];

fn the_daemon_has_no_privileges() {
    let machine = Machine::start();
    let daemon = machine.daemon().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(field("Gid:"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("NoNewPrivs:"), "1");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
}
