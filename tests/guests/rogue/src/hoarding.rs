//! Things of the host's that are asked for and never given back, and waiting for what never comes.

use wasip2::http::types::{Fields, Method, OutgoingRequest};
use wasip2::io::poll::{Pollable, poll};

use crate::Said;
use crate::asking::request;

/// More than any limit.
const MANY: usize = 100_000;

pub(crate) fn hoard(what: &str) -> Said<String> {
    let nowhere = || request("http://nowhere.example/");
    match what {
        "fields" => fill(|| {
            let fields = Fields::new();
            // As much as fits.
            fields.append("x-large", &[b'x'; 15 << 10]).map_err(|error| error.to_string())?;
            Ok(fields)
        }),
        "headers" => {
            let fields = Fields::new();
            for number in 0..MANY {
                fields.append(&format!("x-{number}"), b"").map_err(|error| error.to_string())?;
            }
            Ok(String::new())
        }
        "methods" => fill(|| {
            let request = OutgoingRequest::new(Fields::new());
            let method = Method::Other("X".repeat(1_000_000));
            request.set_method(&method).map_err(|()| "the method is refused")?;
            Ok(request)
        }),
        "paths" => fill(|| {
            let request = nowhere()?;
            let path = "/".to_owned() + &"x".repeat(60_000);
            request.set_path_with_query(Some(&path)).map_err(|()| "the path is refused")?;
            Ok(request)
        }),
        "authorities" => fill(|| {
            let request = nowhere()?;
            let authority = "x".repeat(900_000);
            request.set_authority(Some(&authority)).map_err(|()| "the authority is refused")?;
            Ok(request)
        }),
        "bodies" => fill(|| {
            let request = nowhere()?;
            let body = request.body().map_err(|()| "no body")?;
            let stream = body.write().map_err(|()| "no stream")?;
            // As much as the host takes before anybody reads it.
            while let Ok(room @ 1..) = stream.check_write() {
                let piece = vec![b'x'; room.try_into().unwrap_or(1)];
                stream.write(&piece).map_err(|error| error.to_string())?;
            }
            Ok((stream, body, request))
        }),
        // A body that nobody reads: its request is never sent.
        "unsent" => {
            let request = nowhere()?;
            let body = request.body().map_err(|()| "no body")?;
            let stream = body.write().map_err(|()| "no stream")?;
            loop {
                let written = stream.blocking_write_and_flush(&[b'x'; 4096]);
                written.map_err(|error| error.to_string())?;
            }
        }
        // Pollables that are never ready, and one that always is.
        "never" | "always" => {
            let kept = nowhere()?;
            let body = kept.body().map_err(|()| "no body")?;
            let stream = body.write().map_err(|()| "no stream")?;
            let ready = stream.subscribe();
            if what == "always" {
                loop {
                    poll(&[&ready]);
                }
            }
            while let Ok(room @ 1..) = stream.check_write() {
                let piece = vec![b'x'; room.try_into().unwrap_or(1)];
                stream.write(&piece).map_err(|error| error.to_string())?;
            }
            let all: Vec<Pollable> = (0..50).map(|_| stream.subscribe()).collect();
            poll(&all.iter().collect::<Vec<_>>());
            Err("it became ready".to_owned())
        }
        _ => Err(format!("`{what}` cannot be hoarded")),
    }
}

fn fill<T>(one: impl Fn() -> Said<T>) -> Said<String> {
    let kept = (0..MANY).map(|_| one()).collect::<Said<Vec<_>>>()?;
    Ok(format!("{} are kept", kept.len()))
}
