//! A driver of the made-up line 0.2 in `wit/`, for the test that two lines are served side by side.

mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "driver" });
    use super::Next;
    export!(Next);
}

use bindings::exports::wasmvol::driver::volumes::{Description, Guest};
use bindings::wasmvol::driver::log;
use bindings::wasmvol::driver::types::{Error, ErrorCode, Owner, Plan, Source, Storage, Volume};

struct Next;

impl Guest for Next {
    fn about() -> Description {
        let options = ["size", "fail"].map(str::to_owned).into();
        Description { version: "2.0.0".to_owned(), name: "next".to_owned(), options }
    }

    fn provision(volume: Volume) -> Result<(Vec<u8>, Storage), Error> {
        log::write(&format!("provisions {}", volume.name));
        if option(&volume, "fail").is_some() {
            return Err(Error { message: "it was told to".to_owned(), code: ErrorCode::InUse });
        }
        let state = format!("{} by the next line", volume.id).into_bytes();
        Ok((state, Storage::Directory(Owner { mode: 0o700, uid: 3, gid: 4 })))
    }

    fn retire(volume: Volume) -> Result<bool, Error> {
        Ok(!volume.state.is_empty())
    }

    fn arrange(volume: Volume) -> Result<Plan, Error> {
        let source = match option(&volume, "size").and_then(|size| size.parse().ok()) {
            Some(size) => Source::Memory(size),
            None => Source::Storage,
        };
        Ok(Plan { no_exec: true, source })
    }

    fn known() -> Result<Vec<Volume>, Error> {
        Ok(Vec::new())
    }
}

fn option<'a>(volume: &'a Volume, key: &str) -> Option<&'a str> {
    volume.options.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}
