//! Directories named by their volumes, beneath roots that the operator granted: `docker volume create -d wasmvol -o driver=vfs data`
//! is `ROOT/data`.
//!
//! A root may be a local disk, or a mount that several hosts share: what one host made the others find, by the marker that the host
//! wrote beside it. The state of a volume is its path on this host.

use wasmvol_sdk::{
    Created, Description, Driver, Error, ErrorCode, Found, OptionSpec, Plan, Result, Storage,
    Volume, export_driver, roots,
};

struct Vfs;

impl Driver for Vfs {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "directories named by their volumes, on a disk or a share that hosts have in common",
        )
        .option(OptionSpec::text("root", "the granted root; the first one where none is given"))
        .option(OptionSpec::text(
            "path",
            "a place beneath the root, used as it is and never deleted",
        ))
        .option(OptionSpec::size("size", "most bytes; needs a root with project quotas"))
        .owner("0755")
        .grant("host-directory=PATH")
    }

    fn create(volume: &Volume) -> Result<Created> {
        let path = volume.if_given("path", Volume::text)?;
        let root = match volume.if_given("root", Volume::text)? {
            None => path.and_then(root_of).map_or_else(|| roots::choose(None), Ok)?,
            wanted => roots::choose(wanted)?,
        };
        let chosen = path.map(|path| beneath(&root, path)).transpose()?;
        let state = format!("{root}/{}", chosen.unwrap_or(&volume.name));
        let limit = volume.if_given("size", Volume::size)?;
        let storage = Storage::named_directory(&root, chosen, volume.owner()?, limit);
        Ok(Created::from(storage).state(state))
    }

    fn path(volume: &Volume) -> Result<Plan> {
        match std::str::from_utf8(&volume.state) {
            Ok(path) if path.starts_with('/') => Ok(Plan::host_directory(path, None)),
            _ => Err(Error::new(ErrorCode::Internal, "where its directory is was not recorded")),
        }
    }

    fn list() -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for root in roots::granted() {
            for entry in roots::entries(&root)? {
                let path = format!("{root}/{}", entry.directory);
                found.push(entry.found(path));
            }
        }
        Ok(found)
    }
}

/// The granted root that an absolute path lies beneath.
fn root_of(path: &str) -> Option<String> {
    let is_above =
        |root: &String| path.strip_prefix(root.as_str()).is_some_and(|p| p.starts_with('/'));
    roots::granted().into_iter().find(is_above)
}

/// A path as seen from its root.
fn beneath<'a>(root: &str, path: &'a str) -> Result<&'a str> {
    if !path.starts_with('/') {
        return Ok(path);
    }
    let inside = path.strip_prefix(root).and_then(|path| path.strip_prefix('/'));
    inside.ok_or_else(|| Error::invalid_option("path", format!("must be beneath {root}: `{path}`")))
}

export_driver!(Vfs);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    fn created(options: &[(&'static str, &'static str)]) -> Result<Created> {
        let volume = testing::volume::<Vfs>("data", options.iter().copied())?;
        testing::with_roots([("/srv", vec![]), ("/nfs/a", vec![])], || Vfs::create(&volume))
    }

    fn place(options: &[(&'static str, &'static str)]) -> String {
        String::from_utf8(created(options).expect("created").state).expect("a path")
    }

    #[test]
    fn it_keeps_the_contract() {
        let other = testing::volume::<Vfs>("other", []).expect("a volume");
        testing::with_roots([("/srv", vec![testing::entry(&other)])], || {
            testing::conformance::<Vfs>([]);
            testing::conformance::<Vfs>([("path", "old"), ("uid", "1000")]);
        });
    }

    #[test]
    fn a_volume_is_a_directory_of_its_name_beneath_the_first_root_or_the_one_that_is_asked_for() {
        assert_eq!(place(&[]), "/srv/data");
        assert_eq!(place(&[("root", "/nfs/a")]), "/nfs/a/data");
        assert_eq!(place(&[("path", "old/tree")]), "/srv/old/tree");
        assert_eq!(place(&[("path", "/nfs/a/old")]), "/nfs/a/old");
    }

    #[test]
    fn a_size_is_the_limit_of_a_directory_that_is_made() {
        let made = created(&[("size", "1g")]).expect("created").storage;
        let Storage::NamedDirectory(directory) = made else { panic!("{made:?}") };
        assert_eq!(directory.limit, Some(1 << 30));
    }

    #[test]
    fn a_root_that_is_not_granted_is_refused_with_the_grant_to_add() {
        for options in [[("root", "/etc")], [("root", "/srv/")]] {
            let error = created(&options).expect_err("not granted");
            assert_eq!(error.code, ErrorCode::Denied);
            assert!(error.message.contains("driver grant NAME 'host-directory=/"), "{error}");
        }
        let volume = testing::volume::<Vfs>("data", []).expect("a volume");
        let error = Vfs::create(&volume).expect_err("nothing is granted");
        assert!(error.message.contains("driver grant NAME 'host-directory=PATH'"), "{error}");
        let error = created(&[("path", "/etc")]).expect_err("elsewhere");
        assert_eq!(error.message, "option `path`: must be beneath /srv: `/etc`");
    }

    #[test]
    fn what_another_host_has_made_is_found_with_its_options_and_mounted_here() {
        let volume = testing::volume::<Vfs>("theirs", [("uid", "7")]).expect("a volume");
        let listed = testing::with_roots([("/nfs", vec![testing::entry(&volume)])], Vfs::list)
            .expect("a list");
        let [Found { name, id, options, state, owned: true }] = &listed[..] else { panic!("one") };
        assert_eq!((name, id, options), (&volume.name, &Some(volume.id.clone()), &volume.options));
        let found = Volume { state: state.clone(), ..volume };
        assert_eq!(Vfs::path(&found), Ok(Plan::host_directory("/nfs/theirs", None)));
    }
}
