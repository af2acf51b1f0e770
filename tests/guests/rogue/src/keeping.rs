//! The store and secrets: over each limit, in every call, and by names that are none.

use crate::Said;
use crate::asking::ask;
use crate::bindings::wasmvol::driver::{secrets, store};

/// More than any limit, and so few that a busy machine asks for all of them within the time of a call.
const MANY: usize = 5_000;

pub(crate) fn write(key: &str, value: &[u8]) -> Said<()> {
    store::set(key, value).map_err(|error| error.message)
}

pub(crate) fn store(what: &str) -> Said<String> {
    let large = vec![1; 16 << 10];
    match what {
        "keys" => all((0..MANY).map(|n| write(&format!("k{n}"), b""))),
        "bytes" => all((0..MANY).map(|n| write(&format!("k{n}"), &large))),
        "value" => write("k", &[1; (16 << 10) + 1]).map(|()| String::new()),
        "key" => write(&"k".repeat(129), b"v").map(|()| String::new()),
        "line" => write("a\nb", b"v").map(|()| String::new()),
        "deletes" => {
            all((0..MANY).map(|n| store::delete(&format!("k{n}")).map_err(|error| error.message)))
        }
        // As much as it may have.
        "full" => all((0..60).map(|n| write(&format!("k{n}"), &large))),
        // What the host remembers of what it was asked.
        "reads" => loop_over(|n| drop(store::get(&format!("{n:0128}")))),
        "lists" => loop_over(|n| drop(store::keys(&format!("{n:0128}")))),
        "list" => loop_over(|_| drop(store::keys(""))),
        // One key that every call reads and writes.
        "count" => {
            let count = store::get("count").map_or(0, |bytes| bytes.len());
            write("count", &vec![1; count + 1])?;
            Ok(String::new())
        }
        _ => Err(format!("`{what}` is nothing to do with a store")),
    }
}

pub(crate) fn reveal(what: &str, name: &str) -> Said<String> {
    let reveal = |name: &str| secrets::reveal(name).map_err(|error| error.message);
    match what {
        // What is done with it is seen elsewhere.
        "one" | "directory" | "kind" | "program" | "key" | "id" => {
            reveal(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        }
        "ask" => {
            let host = reveal(name)?;
            ask("get", &format!("http://{}/", String::from_utf8_lossy(&host)))
        }
        "probe" => {
            let long = "x".repeat(900_000);
            for name in ["", ".", "..", "../key", "/etc/shadow", "a/b", "a\0b", "a\nb", &long] {
                if let Ok(bytes) = reveal(name) {
                    return Err(format!("{name:?} has {} bytes", bytes.len()));
                }
            }
            reveal(name).map(|_| "it was there".to_owned())
        }
        // One after the other, whatever is said.
        "flood" => {
            let mut refused = String::new();
            for _ in 0..MANY {
                refused = reveal(name).err().unwrap_or(refused);
            }
            Err(refused)
        }
        _ => Err(format!("`{what}` is no way to ask for a secret")),
    }
}

fn all(written: impl Iterator<Item = Said<()>>) -> Said<String> {
    let mut count = 0;
    for one in written {
        one.map_err(|why| format!("number {count}: {why}"))?;
        count += 1;
    }
    Ok(format!("{count} times"))
}

fn loop_over(mut one: impl FnMut(u64)) -> ! {
    for number in 0.. {
        one(number);
    }
    unreachable!()
}
