//! A driver in several versions, each a component of its own in `examples/`: the subject of the tests in which one takes the place of
//! another.
//!
//! What a version writes into a volume's state begins with the number of its form, and a version reads no other form: neither to mount a
//! volume, nor to resize or remove it. From version 2 on there are options with defaults, without which a version mounts nothing. Version 4
//! mounts a directory of the host. With the option `slow` a Create takes a second; with `stubborn` a volume cannot be migrated; with the
//! setting `shut` nothing is mounted.

/// A version: `version!("1.0.0" of form "1", asks for ["suid"])`, and `migrates` where it takes over what form 1 holds.
#[macro_export]
macro_rules! version {
    ($version:literal of form $form:literal, asks for [$($grant:literal),*]) => {
        $crate::version!(@ $version $form "test:version/plain" $($grant)*);
    };
    ($version:literal of form $form:literal, asks for [$($grant:literal),*], migrates) => {
        $crate::version!(@ $version $form "test:version/migrating" $($grant)*);

        impl bindings::exports::wasmvol::driver::migration::Guest for Version {
            fn migrate(volume: Volume, from: String) -> Result<Vec<u8>, Error> {
                if flag(&volume.options, "stubborn") {
                    return Err(unsupported(format!("what version {from} wrote stays as it is")));
                }
                match volume.state.strip_prefix(b"1:") {
                    Some(rest) => Ok([$form.as_bytes(), b":", rest].concat()),
                    None => read(&volume).map(|()| volume.state),
                }
            }
        }
    };
    (@ $version:literal $form:literal $world:literal $($grant:literal)*) => {
        mod bindings {
            wit_bindgen::generate!({
                path: "../../../wit/since_v0.1.0",
                inline: "
                    package test:version;
                    world plain {
                        include wasmvol:driver/driver@0.1.0;
                        include wasmvol:driver/with-resizing@0.1.0;
                    }
                    world migrating {
                        include plain;
                        include wasmvol:driver/with-migration@0.1.0;
                    }
                ",
                world: $world,
                generate_all,
            });
            use super::Version;
            export!(Version);
        }

        use bindings::exports::wasmvol::driver::resizing::Resized;
        use bindings::exports::wasmvol::driver::volumes::{Created, Found};
        use bindings::wasmvol::driver::settings;
        use bindings::wasmvol::driver::types::{
            Description, Error, ErrorCode, HostDirectory, OptionSpec, OptionValue, Owner, Plan, Reclaim, Source,
            Storage, Tmpfs, Value, ValueType, Volume,
        };

        struct Version;

        /// A state of this version's form.
        fn state(what: &str) -> Vec<u8> {
            format!("{}:{what}", $form).into_bytes()
        }

        fn read(volume: &Volume) -> Result<(), Error> {
            let state = String::from_utf8_lossy(&volume.state);
            match state.split_once(':') {
                Some(($form, _)) => Ok(()),
                _ => Err(unsupported(format!("version {} cannot read `{state}`", $version))),
            }
        }

        fn unsupported(message: String) -> Error {
            Error { code: ErrorCode::Unsupported, message }
        }

        fn flag(options: &[OptionValue], key: &str) -> bool {
            options.iter().any(|o| o.key == key && matches!(o.value, Value::Boolean(true)))
        }

        impl bindings::exports::wasmvol::driver::volumes::Guest for Version {
            fn describe() -> Description {
                let spec = |key: &str, value_type| OptionSpec {
                    key: key.to_owned(),
                    value_type,
                    required: false,
                    default: None,
                    help: "for tests".to_owned(),
                };
                let with_default = |key, value_type, default: &str| OptionSpec {
                    default: Some(default.to_owned()),
                    ..spec(key, value_type)
                };
                let mut options = vec![
                    spec("slow", ValueType::Boolean),
                    spec("stubborn", ValueType::Boolean),
                ];
                match $version.starts_with("1.") {
                    true => options.push(spec("size", ValueType::Size)),
                    false => {
                        let size = settings::get("default-size");
                        let size = size.as_deref().unwrap_or("64k");
                        options.push(with_default("size", ValueType::Size, size));
                        options.push(with_default("colour", ValueType::Text, $version));
                    }
                }
                Description {
                    name: "version".to_owned(),
                    version: $version.to_owned(),
                    help: "memory, in several versions".to_owned(),
                    options,
                    grants: vec![$($grant.to_owned()),*],
                }
            }

            fn create(_: String, _: String, options: Vec<OptionValue>) -> Result<Created, Error> {
                if flag(&options, "slow") {
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
                Ok(Created { storage: Storage::None, state: state("made") })
            }

            fn remove(volume: Volume) -> Result<Reclaim, Error> {
                read(&volume).map(|()| Reclaim::Delete)
            }

            fn path(volume: Volume) -> Result<Plan, Error> {
                read(&volume)?;
                if settings::get("shut").is_some() {
                    return Err(unsupported("all is shut".to_owned()));
                }
                if !$version.starts_with("1.") && volume.options.iter().all(|option| option.key != "colour") {
                    return Err(unsupported("it has no colour".to_owned()));
                }
                let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
                Ok(Plan {
                    source: match $version.starts_with("4.") {
                        true => {
                            let path = "/srv/versions".to_owned();
                            Source::HostDirectory(HostDirectory { path, make: Some(owner) })
                        }
                        false => Source::Tmpfs(Tmpfs { size: Some(1 << 20), inodes: None, owner }),
                    },
                    read_only: false,
                    no_exec: false,
                    subpath: None,
                    id_map: None,
                })
            }

            fn list() -> Result<Vec<Found>, Error> {
                Ok(Vec::new())
            }
        }

        impl bindings::exports::wasmvol::driver::resizing::Guest for Version {
            fn resize(volume: Volume, _size: u64) -> Result<Resized, Error> {
                read(&volume)?;
                Ok(Resized { storage: Storage::None, state: state("resized") })
            }
        }
    };
}
