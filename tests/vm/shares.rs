//! File servers: does each answer by every protocol that this machine has them for?

use crate::support::shell;

#[test]
fn the_servers_share_one_directory_by_nfs_and_by_smb() {
    let address = "10.77.1.2";
    for (number, line) in [
        format!("nfs -o vers=3,nolock,addr={address} {address}:/export"),
        format!("nfs4 -o vers=4.2,addr={address} {address}:/export"),
        format!("cifs -o ip={address},vers=3.1.1,seal,username=alice,password=canary-sesame //{address}/share"),
    ]
    .iter()
    .enumerate()
    {
        let files = "touch /mnt/served && ls /mnt/served && umount /mnt";
        let said = shell(&format!("mount -i -t {line} /mnt && {files}"), &[]).ok();
        assert_eq!(said, "/mnt/served", "{number}");
    }
}
